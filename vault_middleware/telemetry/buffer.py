"""The buffered audit: lines wait in a bounded queue for one daemon thread, which writes them within a tenth of a second.

A full queue pushes back on the readers, who then help to write it off; nothing is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import AuditError
from .sinks import BUDGET, Sink

__all__ = ["Buffer", "Record"]

_log = logging.getLogger("vault_middleware")

#: Records that may wait.
ROOM = 8192

#: Lines are gathered for so long before they are written, in seconds.
GATHER = 0.05

#: A writer with nothing to do ends after so many seconds; the next record starts another.
IDLE = 5.0

#: How long a flush keeps trying, in seconds.
FLUSH = 1.0

_BEHIND = "the queue of audit lines is not written off in time; see that whoever takes them keeps up"


#: What waits: a line, or what makes that of an access.
Record = tuple[Any, str, str, float, float] | str


class Buffer:
    """A queue of records before *sink*, of which *render* makes lines of plain ASCII.

    Attributes
    ----------
    access
        Queues what makes the line of an access, its five parts one by one; raises as :meth:`put`.
    """

    def __init__(
        self,
        sink: Sink,
        render: Callable[[Record], str],
        *,
        room: int = ROOM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._render = render
        self._room = room
        self._clock = clock
        self._queue: deque[Record] = deque()
        #: What the sink has not taken yet of the last batch.
        self._rest = b""
        #: How often the sink has taken something.
        self._taken = 0
        self._failing = False
        #: Whether the writer looks at the queue by itself; else it must be roused.
        self._awake = False
        self._renew_locks()
        self.access = self._quick()

    def _renew_locks(self) -> None:
        # One at a time writes, so that lines keep their order: the writer, a reader at a full queue, or a flush. It is
        # held over a write, but nobody waits for it longer than the budget.
        self._pen = threading.Lock()
        self._wake = threading.Event()
        self._starting = threading.Lock()
        self._writer: threading.Thread | None = None

    def _quick(self) -> Callable[[Any, str, str, float, float], None]:
        """What :attr:`access` is: :meth:`put` without a look into any object, as it is on the way of every read."""
        queue, room, append = self._queue, self._room, self._queue.append

        def access(context: Any, fragment: str, outcome: str, until: float, now: float) -> None:
            if len(queue) >= room:
                self._make_room()
            append((context, fragment, outcome, until, now))
            if not self._awake:
                self._rouse()

        return access

    def put(self, record: Record) -> None:
        """Queue *record*; where the queue is full, help to write it off.

        Raises
        ------
        AuditError
            The queue is full, and the sink took nothing within its budget. (While it takes lines, a reader that waited for
            so long goes on, as the queue then grows by no more than that: a record each budget and thread.)
        """
        if len(self._queue) >= self._room:
            self._make_room()
        self._queue.append(record)
        if not self._awake:
            self._rouse()

    def _make_room(self) -> None:
        failure: str | None = _BEHIND
        taken = self._taken
        deadline = self._clock() + BUDGET
        if self._pen.acquire(timeout=BUDGET):
            try:
                failure = self._write_off(deadline, self._room * 3 // 4)
            finally:
                self._pen.release()
        if failure is not None and len(self._queue) >= self._room and taken == self._taken:
            raise AuditError(failure)

    def flush(self) -> None:
        """Write everything that waits, within a second; what cannot be written is said in the operational log."""
        deadline = self._clock() + FLUSH
        failure: str | None = _BEHIND
        while self._pen.acquire(timeout=max(0.0, deadline - self._clock())):
            try:
                failure = self._write_off(deadline, 0)
            finally:
                self._pen.release()
            if failure is None or self._clock() >= deadline:
                break
            threading.Event().wait(GATHER)  # the sink may take it a moment later
        if failure is not None:
            waiting = len(self._queue) + self._rest.count(b"\n")
            _log.error("%d audit lines are not written: %s", waiting, failure)

    def after_fork(self) -> None:
        """In a forked child: what waits is the parent's to write; fresh locks and a writer of its own."""
        self._queue.clear()
        self._rest, self._failing, self._awake = b"", False, False
        self._renew_locks()

    # -- the writer

    def _rouse(self) -> None:
        with self._starting:
            self._awake = True
            if self._writer is not None:
                self._wake.set()
                return
            writer = threading.Thread(target=self._run, name="vault-middleware-audit", daemon=True)
            try:
                writer.start()
            except RuntimeError:  # the interpreter is ending: the flush at the stop writes it
                self._awake = False
                return
            self._writer = writer

    def _run(self) -> None:
        wake = self._wake
        while True:
            with self._pen:
                failure = self._write_off(float("inf"), 0)
            self._say(failure)
            wake.wait(GATHER)
            wake.clear()
            if self._queue or self._rest:
                continue
            self._awake = False
            # Whoever put a record before that line relied on us; whoever does it after it will rouse us.
            if not self._queue:
                wake.wait(IDLE)
            with self._starting:
                if not self._queue and not wake.is_set():
                    self._writer = None
                    return
                wake.clear()
                self._awake = True

    def _say(self, failure: str | None) -> None:
        """Log where the sink begins to fail, and where it takes lines again."""
        if failure is not None and not self._failing:
            _log.error("%s. Up to %d lines wait for it, then reads fail", failure, self._room)
        elif failure is None and self._failing:
            _log.warning("the audit log takes lines again; none was lost")
        self._failing = failure is not None

    def _write_off(self, deadline: float, down_to: int) -> str | None:
        """Write until *down_to* records are left or it is *deadline*; why it ended early, or None. With the pen only."""
        try:
            while self._rest or len(self._queue) > down_to:
                batch = self._rest or self._gather()
                self._rest = batch
                self._rest = batch[self._sink.write(batch) :]
                self._taken += 1
                if self._clock() >= deadline:
                    return None if len(self._queue) <= down_to else _BEHIND
        except AuditError as error:
            return str(error)
        return None

    def _gather(self) -> bytes:
        """The lines of the oldest records, as many as one write takes."""
        queue, render, most = self._queue, self._render, self._sink.most
        lines: list[str] = []
        size = 0
        while queue:
            record = queue.popleft()
            line = render(record)
            size += len(line)
            if size > most and lines:
                queue.appendleft(line)
                break
            lines.append(line)
        return "".join(lines).encode()
