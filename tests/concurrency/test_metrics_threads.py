"""Counts and lines from many threads at once: none is lost, none counted twice, none torn."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from vault_middleware.telemetry.audit import Audit
from vault_middleware.telemetry.metrics import Metrics
from vault_middleware.telemetry.sinks import FileSink

THREADS = 8
EACH = 5000
WAIT = 30.0


@pytest.fixture(autouse=True)
def _threads_change_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run(*works: Callable[[], object]) -> None:
    """Run every work in a thread of its own, all at once; the first error is raised."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def guarded(work: Callable[[], object]) -> None:
        try:
            start.wait(WAIT)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_reads_flushes_and_scrapes_side_by_side_lose_and_double_no_count() -> None:
    registry = CollectorRegistry()
    metrics = Metrics.for_registry(registry)

    def read() -> None:
        for _ in range(EACH):
            metrics.hit()
            metrics.miss()

    def flush() -> None:
        for _ in range(200):
            metrics.flush()

    def scrape() -> None:
        for _ in range(50):
            families = {family.name: family for family in registry.collect()}
            hits, requests = (
                families[name].samples[0].value for name in ("vault_secret_cache_hits", "vault_secret_requests")
            )
            assert hits <= requests

    run(*[read] * THREADS, flush, flush, scrape, scrape)
    assert registry.get_sample_value("vault_secret_requests_total") == 2 * THREADS * EACH
    assert registry.get_sample_value("vault_secret_cache_hits_total") == THREADS * EACH


def test_managers_that_come_up_at_once_share_one_metrics_object() -> None:
    registry = CollectorRegistry()
    found: list[Metrics] = []
    run(*[lambda: found.append(Metrics.for_registry(registry))] * THREADS)
    assert len(set(found)) == 1


def test_managers_that_come_and_go_leave_the_sum_of_those_that_stay() -> None:
    registry = CollectorRegistry()
    metrics = Metrics.for_registry(registry)

    class Owner:
        pass

    stay = Owner()

    def set_state(owner: object, active: int) -> None:
        metrics.set_state(
            owner, leases_active=active, leases_draining=0, cache_entries=0, token_ttl=None, soonest_lease_ttl=None
        )

    def come_and_go() -> None:
        for _ in range(100):
            owner = Owner()
            set_state(owner, 1)
            generate_latest(registry)
            metrics.forget(owner)

    run(*[come_and_go] * 4, *[lambda: set_state(stay, 5)] * 4)
    assert registry.get_sample_value("vault_leases_active") == 5


@pytest.mark.parametrize("mode", ["strict", "buffered"])
def test_the_lines_of_many_threads_are_all_there_and_whole(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(FileSink(str(path)), mode=mode)

    def read(number: int) -> None:
        for turn in range(1000):
            audit.access(f',"thread":{number}', f',"turn":{turn}', "hit", 1.0, 0.0)

    run(*[lambda number=number: read(number) for number in range(THREADS)])
    audit.flush()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((line["thread"], line["turn"]) for line in lines) == [
        (number, turn) for number in range(THREADS) for turn in range(1000)
    ]


def test_no_line_is_lost_or_torn_while_its_file_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    ticks = iter(range(10**9))
    audit = Audit(FileSink(str(path), lambda: float(next(ticks))))  # so that every write looks for a rotation
    done = threading.Event()

    def read() -> None:
        for _ in range(1000):
            audit.access("", "", "hit", 1.0, 0.0)

    def rotate() -> None:
        for number in range(50):
            if path.exists():
                path.rename(tmp_path / f"audit.log.{number}")
            done.wait(0.001)

    run(*[read] * 4, rotate)
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == 4 * 1000
    assert all(json.loads(line)["outcome"] == "hit" for line in lines)
