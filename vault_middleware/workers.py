"""A small pool of daemon threads, on which everything that may wait for the server runs.

``concurrent.futures.ThreadPoolExecutor`` will not do: the interpreter joins its threads at exit, so one hung server
would hang the process, and it knows neither deadlines nor a bound for each group of jobs.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import sys
import threading
from collections.abc import Callable

from .errors import ConfigurationError

__all__ = ["Job", "Workers", "require_threads"]

Job = Callable[[], object]

_log = logging.getLogger("vault_middleware")


def require_threads() -> None:
    """Refuse a server under which threads do not run: uWSGI stops them all between two requests unless told otherwise.

    Raises
    ------
    ConfigurationError
        It is uWSGI, without ``enable-threads``.
    """
    uwsgi = sys.modules.get("uwsgi")  # which exists within the server only
    options = getattr(uwsgi, "opt", None)
    if options is not None and not any(options.get(name) for name in ("enable-threads", "threads")):
        raise ConfigurationError(
            "uWSGI runs this process without threads, so that no lease would be renewed; start it with --enable-threads"
        )


class Workers:
    """Runs jobs on at most *size* threads, at most *per_group* of a group at once, earliest deadline first.

    A group is a mount: one that hangs then holds its own share of the threads and not those of the others.
    """

    def __init__(self, name: str, *, size: int, per_group: int) -> None:
        self._name = name
        self._size = size
        self._per_group = per_group
        self._ready = threading.Condition()
        self._waiting: dict[str, list[tuple[float, int, Job]]] = {}
        self._running: dict[str, int] = {}
        self._threads = 0
        self._idle = 0
        self._serial = itertools.count()
        self._closed = False

    def submit(self, group: str, deadline: float, job: Job) -> bool:
        """Queue *job*; False if the pool is closed or the interpreter starts no threads any more.

        *deadline* (seconds on any one clock) only orders the jobs.
        """
        with self._ready:
            if self._closed:
                return False
            heapq.heappush(self._waiting.setdefault(group, []), (deadline, next(self._serial), job))
            # Idle threads may already be promised to jobs that were queued a moment ago.
            if self._idle < self._startable() and self._threads < self._size:
                self._threads += 1
                start = True
            else:
                start = False
            self._ready.notify()
        return self._start() if start else True

    def close(self) -> None:
        """Take no more jobs and forget those that wait; what runs is left to end by itself."""
        with self._ready:
            self._closed = True
            self._waiting.clear()
            self._ready.notify_all()

    def join(self, timeout: float) -> bool:
        """Wait at most *timeout* seconds for running jobs to end; whether they did."""
        with self._ready:
            return self._ready.wait_for(lambda: not self._running, timeout)

    def _start(self) -> bool:
        try:
            threading.Thread(target=self._work, name=f"vault-middleware-{self._name}", daemon=True).start()
        except RuntimeError:  # the interpreter is shutting down, or the system has no threads left
            with self._ready:
                self._threads -= 1
                return self._threads > 0
        return True

    def _startable(self) -> int:
        """How many of the waiting jobs could run at this moment, were there threads enough."""
        return sum(
            min(len(queue), self._per_group - self._running.get(group, 0)) for group, queue in self._waiting.items()
        )

    def _next(self) -> str | None:
        """The group whose first job is the next to run; None if all that wait belong to groups at their bound."""
        heads = [
            (queue[0][:2], group)
            for group, queue in self._waiting.items()
            if self._running.get(group, 0) < self._per_group
        ]
        return min(heads)[1] if heads else None

    def _take(self) -> tuple[str, Job] | None:
        """The next job, as (group, job), or None once the pool is closed; waits for one."""
        with self._ready:
            while not self._closed:
                if (group := self._next()) is not None:
                    queue = self._waiting[group]
                    job = heapq.heappop(queue)[2]
                    if not queue:
                        del self._waiting[group]
                    self._running[group] = self._running.get(group, 0) + 1
                    return group, job
                self._idle += 1
                self._ready.wait()
                self._idle -= 1
            self._threads -= 1
            return None

    def _done(self, group: str) -> None:
        with self._ready:
            self._running[group] -= 1
            if not self._running[group]:
                del self._running[group]
            # The job that may run now is taken by this very thread; only who waits for the end has to be told.
            if self._closed:
                self._ready.notify_all()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            group, job = taken
            try:
                job()
            except Exception:
                _log.exception("a background job failed unexpectedly; please report this")
            finally:
                del job, taken
                self._done(group)
