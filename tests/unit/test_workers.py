"""The pool on which everything runs that may wait for the server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from prometheus_client import CollectorRegistry

from vault_middleware.config import SecretConfig
from vault_middleware.engine.engine import Engine
from vault_middleware.manager import SecretsManager
from vault_middleware.renewal.renewer import Task
from vault_middleware.workers import Workers

WAIT = 5.0


def test_jobs_of_one_group_run_side_by_side_up_to_the_groups_bound() -> None:
    workers = Workers("test", size=8, per_group=4)
    together = threading.Barrier(4)
    done = threading.Semaphore(0)

    def job() -> None:
        together.wait(WAIT)
        done.release()

    for _ in range(4):
        workers.submit("database/", 0.0, job)
    assert all(done.acquire(timeout=WAIT) for _ in range(4))
    workers.close()
    assert workers.join(WAIT)


def test_a_group_that_hangs_leaves_the_other_groups_their_threads() -> None:
    workers = Workers("test", size=2, per_group=1)
    hang, other = threading.Event(), threading.Event()
    workers.submit("database/", 0.0, lambda: hang.wait(WAIT))
    for _ in range(5):
        workers.submit("database/", 0.0, lambda: None)
    workers.submit("kv/", 1.0, other.set)
    assert other.wait(WAIT)
    hang.set()
    workers.close()
    assert workers.join(WAIT)


def test_the_earliest_deadline_goes_first() -> None:
    workers = Workers("test", size=1, per_group=1)
    hang, entered = threading.Event(), threading.Event()
    order: list[str] = []
    finished = threading.Event()

    def first() -> None:
        entered.set()
        hang.wait(WAIT)

    workers.submit("a/", 0.0, first)
    assert entered.wait(WAIT)

    def last() -> None:
        order.append("last")
        finished.set()

    workers.submit("a/", 30.0, last)
    workers.submit("b/", 20.0, lambda: order.append("second"))
    workers.submit("c/", 10.0, lambda: order.append("first"))
    hang.set()
    assert finished.wait(WAIT)
    assert order == ["first", "second", "last"]
    workers.close()
    assert workers.join(WAIT)


def test_a_closed_pool_takes_no_job_and_forgets_those_that_wait() -> None:
    workers = Workers("test", size=1, per_group=1)
    hang, entered = threading.Event(), threading.Event()
    ran: list[int] = []

    def first() -> None:
        entered.set()
        hang.wait(WAIT)

    workers.submit("a/", 0.0, first)
    assert entered.wait(WAIT)
    workers.submit("a/", 0.0, lambda: ran.append(1))
    workers.close()
    assert not workers.submit("a/", 0.0, lambda: ran.append(2))
    assert not workers.join(0.01)
    hang.set()
    assert workers.join(WAIT)
    assert ran == []


def test_a_job_that_raises_is_logged_and_costs_no_thread(caplog) -> None:  # type: ignore[no-untyped-def]
    workers = Workers("test", size=1, per_group=1)
    after = threading.Event()

    def broken() -> None:
        raise ZeroDivisionError

    workers.submit("a/", 0.0, broken)
    workers.submit("a/", 1.0, after.set)
    assert after.wait(WAIT)
    assert "background job failed" in caplog.text
    workers.close()
    assert workers.join(WAIT)


# -- the bounds that the engine gives its two pools


class Hanging:
    """Jobs for the pools of a whole engine, each of which says that it runs and then hangs until the test is over."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.over = threading.Event()
        self._running: queue.Queue[str] = queue.Queue()
        self._earlier = set(threading.enumerate())

    def hang(self, mount: str) -> None:
        self._running.put(mount)
        self.over.wait()

    def fetch(self, mount: str) -> None:
        assert self.engine.workers.submit(mount, 0.0, partial(self.hang, mount))

    def renew(self, mount: str) -> None:
        self.engine.renewer.schedule(Task(partial(self.hang, mount), group=mount, deadline=lambda: 0.0), 0.0)
        self.engine.renewer.run_due(0.0)

    def next(self) -> str:
        """The mount of the next job that runs."""
        return self._running.get(timeout=WAIT)

    def threads(self, name: str) -> int:
        """How many threads the pool has started; a job that may run has one from the moment of its submission."""
        started = [thread for thread in set(threading.enumerate()) - self._earlier if thread.name == name]
        assert all(thread.daemon for thread in started)
        return len(started)


@contextmanager
def hanging() -> Iterator[Hanging]:
    config = SecretConfig(vault_addr="http://127.0.0.1:1", audit_log="off", startup="lazy")
    jobs = Hanging(SecretsManager(config, registry=CollectorRegistry())._engine)
    try:
        yield jobs
    finally:
        jobs.over.set()
        jobs.engine.renewer.stop(WAIT)
        jobs.engine.workers.close()
        assert jobs.engine.workers.join(WAIT)


def test_the_renewers_calls_are_one_at_a_time_a_mount_and_four_in_all() -> None:
    with hanging() as jobs:
        jobs.renew("database/")
        assert jobs.next() == "database/"
        for _ in range(3):
            jobs.renew("database/")
        assert jobs.threads("vault-middleware-renewal") == 1
        for number in range(6):
            jobs.renew(f"kv-{number}/")
        assert {jobs.next() for _ in range(3)} == {"kv-0/", "kv-1/", "kv-2/"}
        assert jobs.threads("vault-middleware-renewal") == 4


def test_the_fetches_of_one_mount_are_sixteen_at_a_time_and_sixty_four_in_all() -> None:
    with hanging() as jobs:
        for _ in range(16):
            jobs.fetch("database/")
            assert jobs.next() == "database/"
        for _ in range(4):
            jobs.fetch("database/")
        assert jobs.threads("vault-middleware-fetch") == 16
        for mount in ("one/", "two/", "three/", "four/"):
            for _ in range(16):
                jobs.fetch(mount)
        assert {jobs.next() for _ in range(48)} == {"one/", "two/", "three/"}
        assert jobs.threads("vault-middleware-fetch") == 64
