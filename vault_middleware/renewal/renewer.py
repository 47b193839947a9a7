"""The renewer: one thread, one heap, one condition variable, which own the schedule of everything that comes due.

The thread itself never waits for the server: a task that comes due is run on the workers, and says when it wants to
run next.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from ..workers import Workers

__all__ = ["Renewer", "Task"]

_log = logging.getLogger("vault_middleware")

#: After a fault of our own in a task, in seconds.
_FAULT_PAUSE = 5.0


class Task:
    """Something to be run at a time, again and again.

    Parameters
    ----------
    run
        Does the work and returns when it wants to run next, on the renewer's clock in seconds; None for never again.
    group
        The mount whose calls it makes; one task of a group runs at a time. None: quick, runs on the renewer's thread.
    deadline
        When the work is too late, on the same clock; among tasks that are due, the earliest deadline goes first.
    """

    __slots__ = ("_due", "_running", "_ticket", "_wanted", "deadline", "group", "run")

    def __init__(self, run: Callable[[], float | None], *, group: str | None, deadline: Callable[[], float]) -> None:
        self.run = run
        self.group = group
        self.deadline = deadline
        self._ticket = -1  # the one heap item of this task that still counts; -1: not scheduled
        self._due = 0.0
        self._running = False
        self._wanted: float | None = None  # asked for while running


class Renewer:
    """Owns the schedule; see the module's text."""

    def __init__(self, workers: Workers, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Task]] = []
        self._tickets = itertools.count()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self) -> None:
        """Start the thread, if it does not run yet."""
        with self._changed:
            if self._stopped or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._main, name="vault-middleware-renewer", daemon=True)
            thread = self._thread
        thread.start()

    def stop(self, timeout: float) -> None:
        """Run nothing more, and wait at most *timeout* seconds for what runs; what hangs is abandoned."""
        deadline = self._clock() + timeout
        with self._changed:
            self._stopped = True
            self._heap.clear()
            self._changed.notify_all()
            thread = self._thread
        self._workers.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - self._clock()))
        self._workers.join(max(0.0, deadline - self._clock()))

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def schedule(self, task: Task, at: float) -> None:
        """Run *task* at *at*, instead of when it was to run; a running task runs again, no later than *at*."""
        with self._changed:
            if self._stopped:
                return
            if task._running:
                task._wanted = at if task._wanted is None else min(task._wanted, at)
                return
            self._push(task, at)

    def hasten(self, task: Task, at: float) -> None:
        """Run *task* at *at* unless it is to run earlier anyway or is not scheduled."""
        with self._changed:
            if not self._stopped and task._ticket != -1 and at < task._due:
                self._push(task, at)

    def cancel(self, task: Task) -> None:
        """Do not run *task* any more (a run under way ends, and its wish to run again counts)."""
        with self._changed:
            task._ticket = -1
            task._wanted = None

    def run_due(self, now: float) -> float | None:
        """Hand every task that is due at *now* to the workers; when the next one is due, or None."""
        due: list[Task] = []
        with self._changed:
            while self._heap and self._heap[0][0] <= now:
                _, ticket, task = heapq.heappop(self._heap)
                if ticket == task._ticket:
                    task._ticket = -1
                    task._running = True
                    due.append(task)
        for task in due:
            if task.group is None:
                self._run(task)
            else:
                self._workers.submit(task.group, task.deadline(), partial(self._run, task))
        with self._changed:
            return self._heap[0][0] if self._heap else None

    def _push(self, task: Task, at: float) -> None:
        task._ticket = next(self._tickets)
        task._due = at
        heapq.heappush(self._heap, (at, task._ticket, task))
        if self._heap[0][1] == task._ticket:  # else the thread wakes in time for it anyway
            self._changed.notify()

    def _run(self, task: Task) -> None:
        again: float | None = self._clock() + _FAULT_PAUSE
        try:
            again = task.run()
        except Exception:
            _log.exception("a renewal task failed unexpectedly; please report this")
        finally:
            with self._changed:
                task._running = False
                wanted, task._wanted = task._wanted, None
                times = [at for at in (again, wanted) if at is not None]
                if times and not self._stopped:
                    self._push(task, min(times))

    def _main(self) -> None:
        try:
            while True:
                due = self.run_due(self._clock())
                with self._changed:
                    if self._stopped:
                        return
                    # What was pushed since run_due() looked is seen here; nothing can be missed.
                    if self._heap and (due is None or self._heap[0][0] < due):
                        due = self._heap[0][0]
                    self._changed.wait(None if due is None else max(0.0, min(due - self._clock(), 3600.0)))
        except BaseException:
            _log.exception("the renewer died; it is started again")
            with self._changed:
                self._thread = None
            self.start()
