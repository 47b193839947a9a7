"""The pool on which everything runs that may wait for the server."""

from __future__ import annotations

import threading

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
