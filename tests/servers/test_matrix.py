"""Some cells of the matrix, for every run of the tests; and what is true of one server only."""

from __future__ import annotations

import collections
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from tests.integration.support import Running, answers, eventually, serve
from tests.waiting import in_threads
from vault_middleware.devstack import DevStack

from .cells import CELLS, CUTTING_UWSGI, FINISHING, GUNICORN, REPRESENTATIVE, UWSGI, Cell
from .counting import READS
from .run import PATIENCE, ROOT, make_stack, run

pytestmark = pytest.mark.integration

WORKERS = 4


@pytest.fixture(scope="module")
def short() -> Iterator[DevStack]:
    """Servers whose leases are rotated within seconds."""
    with make_stack() as started:
        yield started


def test_the_matrix_has_each_cell_once() -> None:
    names = [str(cell) for cell in CELLS]
    assert len(names) == len(set(names))
    assert len(REPRESENTATIVE) == 3


@pytest.mark.parametrize("cell", REPRESENTATIVE, ids=str)
def test_200_requests_across_a_rotation_and_a_stop_that_leaves_nothing(
    cell: Cell, short: DevStack, tmp_path: Path
) -> None:
    outcome = run(cell, short, tmp_path)
    assert not outcome.problems, f"{outcome}\n{outcome.log}"
    assert outcome.requests >= 200
    assert outcome.rotations


def test_uwsgi_without_threads_is_refused_with_what_to_add(short: DevStack, tmp_path: Path) -> None:
    pytest.importorskip("pyuwsgi", reason="there is no uWSGI here")
    with serve((*UWSGI, "--module", "examples.wsgi_gateway:app"), short, tmp_path, root=ROOT) as running:
        assert running.process.wait(PATIENCE) != 0
        said = running.log.read_text()
    assert "ConfigurationError: uWSGI runs this process without threads" in said
    assert "start it with --enable-threads" in said


def test_at_sigterm_uwsgi_lets_a_worker_finish_its_request_and_close(short: DevStack, tmp_path: Path) -> None:
    pytest.importorskip("pyuwsgi", reason="there is no uWSGI here")
    of_others = set(short.leases())
    go = tmp_path / "go"
    os.mkfifo(go)
    command = (*UWSGI, "--enable-threads", "--module", "tests.servers.busy:app")
    with (
        serve(command, short, tmp_path, root=ROOT, GO=str(go)) as running,
        httpx.Client(trust_env=False, timeout=PATIENCE) as client,
        ThreadPoolExecutor() as pool,
    ):
        eventually(lambda: "spawned uWSGI worker 2" in running.log.read_text(), "the workers", PATIENCE)
        answer = pool.submit(client.get, running.url)
        eventually(lambda: running.lines("secret_access"), "the request to have read", PATIENCE)
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Gracefully killing" in running.log.read_text(), "uWSGI to have the signal", PATIENCE)
        go.write_bytes(b"now")
        assert answer.result().text.startswith("v-")
        running.process.wait(PATIENCE)
        assert [line["hook"] for line in running.lines("stop")] == ["atexit"]  # the other one has read nothing
        assert "die-on-term" not in running.log.read_text()
    eventually(lambda: set(short.leases()) <= of_others, "the lease to be revoked", 2)


def test_uwsgi_with_die_on_term_is_warned_of(short: DevStack, tmp_path: Path) -> None:
    pytest.importorskip("pyuwsgi", reason="there is no uWSGI here")
    command = (*CUTTING_UWSGI, "--enable-threads", "--module", "tests.servers.counting:app")
    with serve(command, short, tmp_path, root=ROOT) as running:
        eventually(lambda: answers(running, "/read"), "the server to answer", PATIENCE)
        assert "what that has leased is not revoked; use hook-master-start" in running.log.read_text()


def test_the_page_says_how_uwsgi_is_to_take_sigterm() -> None:
    assert f'`{FINISHING[0]} "{FINISHING[1]}"`' in (ROOT / "docs" / "servers.md").read_text()


def test_the_metrics_of_four_gunicorn_workers_add_up_exactly(short: DevStack, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    command = (*GUNICORN, "--workers", str(WORKERS), "tests.servers.counting:app")
    with serve(command, short, tmp_path, root=ROOT, PROMETHEUS_MULTIPROC_DIR=str(metrics)) as running:
        eventually(lambda: answers(running, "/"), "the server to answer", PATIENCE)
        done = _read_until(running, lambda: len(_pids(running)) == WORKERS)
        short.revoke_all_leases()  # so that each worker's next renewal fails
        done += _read_until(running, lambda: len(running.lines("lease_renewal_failed")) >= WORKERS)
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(PATIENCE)
        failed = len(running.lines("lease_renewal_failed"))
        outcomes = collections.Counter(line["outcome"] for line in running.lines("secret_access"))
        assert {line["pid"] for line in running.lines("stop")} == _pids(running)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(metrics))  # type: ignore[no-untyped-call]
    value = registry.get_sample_value
    assert set(outcomes) == {"hit", "miss"}
    assert outcomes["miss"] >= 2 * WORKERS
    assert value("vault_secret_requests_total") == done * READS
    assert value("vault_secret_cache_hits_total") == done * READS - outcomes["miss"]
    assert value("vault_lease_renewal_errors_total") == failed >= WORKERS


def _pids(running: Running) -> set[int]:
    return {line["pid"] for line in running.lines("start")}


def _read_until(running: Running, happened: Callable[[], bool]) -> int:
    """Send requests from eight threads until it has happened, and at least 100; how many were answered."""
    enough = threading.Event()

    def ask(_index: int) -> int:
        done = 0
        while not enough.is_set() or done < 13:
            assert httpx.get(f"{running.url}/read", trust_env=False, timeout=20).text == "ok"
            done += 1
        return done

    def look(_index: int) -> int:
        try:
            eventually(happened, "what the requests are for", PATIENCE)
        finally:
            enough.set()
        return 0

    return sum(in_threads(9, lambda index: ask(index) if index else look(index)))
