"""What is known of the server's health, so that nobody waits for a dead server to find out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..errors import VaultUnavailable
from ..events import Emit, ServerDown, ServerUp
from ..retry import Uniform

__all__ = ["PATIENCE", "Breaker"]

#: How long, in seconds, a reader waits for a fetch before it asks whether the server answers at all.
PATIENCE = 0.35

#: The most one probe may take, in seconds. With PATIENCE, a server that hangs is known to hang within a second.
PROBE_TIMEOUT = 0.6

#: A failure that comes sooner than this, in seconds, may be one lost connection; it takes a second probe to believe it.
_QUICK = 0.25

#: After a good answer no further suspicion is followed up for so long, in seconds.
_TRUST = 0.25


class Breaker:
    """Open while the server is known to be down; one for the request path and the renewer.

    It opens only on a failed probe, an unauthenticated question for the server's health: a slow database behind a
    healthy server is no reason. While it is open, one probe each 0.5 to 1.5 s asks whether it may close.

    Attributes
    ----------
    down : bool
        Whether the server is known to be down. Read without a lock.
    reason : str
        The last failure, for messages.
    """

    def __init__(
        self,
        probe: Callable[[float], None],
        *,
        emit: Emit,
        uniform: Uniform,
        clock: Callable[[], float] = time.monotonic,
        opened: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        self.down = False
        self.reason = ""
        self._probe = probe
        self._emit = emit
        self._uniform = uniform
        self._clock = clock
        self._opened = opened
        self._closed = closed
        self._lock = threading.Lock()
        self._probing = False
        self._stopping = threading.Event()
        self._since = 0.0
        self._trusted_until = float("-inf")

    def suspect(self) -> None:
        """A call failed or takes long: ask the server for its health, unless that is being done."""
        with self._lock:
            if self._probing or self._stopping.is_set() or self._clock() < self._trusted_until:
                return
            self._probing = True
        self._start()

    def stop(self) -> None:
        """Probe no more."""
        self._stopping.set()

    def _start(self) -> None:
        try:
            threading.Thread(target=self._watch, name="vault-middleware-probe", daemon=True).start()
        except RuntimeError:  # no threads any more: the interpreter is shutting down
            self._probing = False

    def _watch(self) -> None:
        """Probe until the server answers."""
        while (pause := self._look()) is not None and not self._stopping.wait(pause):
            pass

    def _look(self) -> float | None:
        """One probe; the seconds to the next one, or None where the server answers."""
        if not self._stopping.is_set() and not self._ask():
            return self._uniform(0.5, 1.5)
        with self._lock:
            self._probing = False
        return None

    def _ask(self) -> bool:
        """One question, two where the first failed quickly; whether the server answers."""
        before = self._clock()
        failure = self._failure()
        if failure is not None and not self.down and self._clock() - before < _QUICK:
            failure = self._failure()
        if self._stopping.is_set():
            return True
        if failure is None:
            self._answers()
            return True
        self.reason = str(failure)
        if not self.down:
            self._since = before
            self.down = True
            self._emit(ServerDown(self.reason))
            self._opened()
        return False

    def _failure(self) -> VaultUnavailable | None:
        try:
            self._probe(PROBE_TIMEOUT)
        except VaultUnavailable as error:
            return error.with_traceback(None)
        return None

    def _answers(self) -> None:
        self._trusted_until = self._clock() + _TRUST
        if self.down:
            self.down = False
            self._emit(ServerUp(self._clock() - self._since))
            self._closed()
