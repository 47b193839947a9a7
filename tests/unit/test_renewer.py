"""The schedule: what runs when. The clock is the test's; tasks are run by hand, so nothing sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from vault_middleware.renewal.renewer import Renewer, Task
from vault_middleware.workers import Workers

WAIT = 5.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Inline(Workers):
    """Workers that do a job at once, on the thread that submits it."""

    def __init__(self) -> None:
        super().__init__("inline", size=1, per_group=1)
        self.held: list[Callable[[], object]] | None = None

    def submit(self, group: str, deadline: float, job: Callable[[], object]) -> bool:
        if self.held is not None:
            self.held.append(job)
        else:
            job()
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workers() -> Inline:
    return Inline()


@pytest.fixture
def renewer(workers: Inline, clock: Clock) -> Renewer:
    return Renewer(workers, clock=clock)


def task(runs: list[str], name: str = "ran", then: float | None = None, group: str | None = "kv/") -> Task:
    def run() -> float | None:
        runs.append(name)
        return then

    return Task(run, group=group, deadline=lambda: 0.0)


def test_a_task_runs_when_it_is_due_and_not_before(renewer: Renewer) -> None:
    runs: list[str] = []
    renewer.schedule(task(runs), 10.0)
    assert renewer.run_due(9.9) == 10.0
    assert runs == []
    assert renewer.run_due(10.0) is None
    assert runs == ["ran"]


def test_a_task_runs_again_when_it_asked_to(renewer: Renewer) -> None:
    runs: list[str] = []
    renewer.schedule(task(runs, then=20.0), 10.0)
    assert renewer.run_due(10.0) == 20.0
    assert renewer.run_due(20.0) == 20.0
    assert runs == ["ran", "ran"]


def test_a_new_time_replaces_the_one_before(renewer: Renewer) -> None:
    runs: list[str] = []
    one = task(runs)
    renewer.schedule(one, 10.0)
    renewer.schedule(one, 30.0)
    renewer.run_due(20.0)
    assert runs == []
    renewer.run_due(30.0)
    assert runs == ["ran"]


def test_hastening_brings_a_task_forward_and_never_puts_it_off(renewer: Renewer) -> None:
    runs: list[str] = []
    one = task(runs)
    renewer.hasten(one, 1.0)
    assert renewer.run_due(50.0) is None
    renewer.schedule(one, 10.0)
    renewer.hasten(one, 20.0)
    renewer.hasten(one, 5.0)
    renewer.run_due(5.0)
    assert runs == ["ran"]
    assert renewer.run_due(50.0) is None


def test_a_task_that_is_scheduled_while_it_runs_runs_once_more(renewer: Renewer, workers: Inline) -> None:
    runs: list[str] = []
    one = task(runs, then=100.0)
    workers.held = []
    renewer.schedule(one, 1.0)
    renewer.run_due(1.0)
    renewer.schedule(one, 2.0)  # it is under way
    assert renewer.run_due(2.0) is None
    for job in workers.held:
        job()
    workers.held = None
    assert renewer.run_due(1.9) == 2.0
    renewer.run_due(2.0)
    assert runs == ["ran", "ran"]


def test_a_task_that_fails_unexpectedly_is_logged_and_tried_again(
    renewer: Renewer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[str] = []

    def run() -> float | None:
        runs.append("ran")
        raise ZeroDivisionError

    renewer.schedule(Task(run, group="kv/", deadline=lambda: 0.0), 1.0)
    due = renewer.run_due(1.0)
    assert due is not None
    assert due > clock.now
    assert "renewal task failed" in caplog.text
    renewer.run_due(due)
    assert runs == ["ran", "ran"]


def test_nothing_runs_after_the_stop(renewer: Renewer) -> None:
    runs: list[str] = []
    renewer.schedule(task(runs), 1.0)
    renewer.stop(0.0)
    renewer.schedule(task(runs), 1.0)
    assert renewer.run_due(5.0) is None
    assert runs == []


def test_the_thread_runs_what_is_due_and_ends_with_the_stop() -> None:
    renewer = Renewer(Workers("test", size=1, per_group=1))
    ran = threading.Event()
    renewer.start()
    renewer.schedule(Task(ran.set, group="kv/", deadline=lambda: 0.0), 0.0)
    assert ran.wait(WAIT)
    assert renewer.alive
    renewer.stop(WAIT)
    assert not renewer.alive


def test_the_thread_is_started_again_if_it_dies(caplog: pytest.LogCaptureFixture) -> None:
    renewer = Renewer(Workers("test", size=1, per_group=1))
    ran = threading.Event()
    whole = renewer.run_due
    died: list[int] = []

    def dies_once(now: float) -> float | None:
        if not died:
            died.append(1)
            raise MemoryError
        return whole(now)

    renewer.run_due = dies_once  # type: ignore[method-assign]
    renewer.start()
    renewer.schedule(Task(ran.set, group="kv/", deadline=lambda: 0.0), 0.0)
    assert ran.wait(WAIT)
    assert "the renewer died" in caplog.text
    renewer.stop(WAIT)
