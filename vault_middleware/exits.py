"""The ways in which a process ends, and a call on each of them, so that a stop leaves nothing behind.

No single hook runs under every server. Measured: ``atexit`` runs at SIGTERM under gunicorn, and under uWSGI in a worker that
may finish its request, but never in one that ``die-on-term`` ends in the middle of it; granian's and
hypercorn's worker processes end by ``multiprocessing``, which runs its own finalizers instead, and from Python 3.13
``atexit`` before them; waitress leaves SIGTERM to its default, which runs nothing; uvicorn, also each of its workers, puts
the default back and raises the signal again when it is done, which runs nothing either.
"""

from __future__ import annotations

import atexit
import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from multiprocessing.util import Finalize

__all__ = ["ExitHooks"]

_log = logging.getLogger("vault_middleware")

#: Before anything else that ``multiprocessing`` finalizes: its own use priorities of 0 to 100.
_FIRST = 1000


class ExitHooks:
    """Calls *close* with the name of the hook (``atexit``, ``finalize``, ``sigterm``) when the process ends in order."""

    #: Whether SIGTERM is what ends the process; of the process, whichever manager has taken the signal.
    _by_signal: ClassVar[bool] = False

    def __init__(self, close: Callable[[str], None]) -> None:
        self._close = close
        self._finalize: Finalize | None = None

    def take_sigterm(self) -> None:
        """Make SIGTERM an orderly end where it would be none; nothing where the server handles it. Main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return
        present = signal.getsignal(signal.SIGTERM)
        if present is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._end)
        elif getattr(present, "__module__", "").startswith("uvicorn."):
            atexit.register(_let_sigterm_through)  # before any manager's, so that it runs after them
            signal.signal(signal.SIGTERM, lambda number, frame: self._end_uvicorn(present, number, frame))

    def install(self) -> None:
        """Be called when the interpreter ends; of this process, so again after a fork."""
        self.remove()
        _warn_of_die_on_term()
        atexit.register(self._at_exit)
        if "multiprocessing.process" in sys.modules:  # only then can this be one of its processes
            from multiprocessing.util import Finalize  # noqa: PLC0415 (an eighth of our whole import)

            self._finalize = Finalize(None, self._at_finalize, exitpriority=_FIRST)

    def remove(self) -> None:
        """Be called no more."""
        atexit.unregister(self._at_exit)
        if self._finalize is not None:
            self._finalize.cancel()
            self._finalize = None

    def _end(self, number: int, _frame: FrameType | None) -> None:
        """SIGTERM over the default handler: end as ``sys.exit`` does. A second one kills."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ExitHooks._by_signal = True
        raise SystemExit(128 + number)

    def _end_uvicorn(self, present: Any, number: int, frame: FrameType | None) -> None:
        """uvicorn's own handler, with the signal that it raises again at its end held back until we are done."""
        present(number, frame)
        ExitHooks._by_signal = True
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _at_exit(self) -> None:
        self._end_of_process("atexit")

    def _at_finalize(self) -> None:
        self._end_of_process("finalize")

    def _end_of_process(self, hook: str) -> None:
        self._close("sigterm" if self._by_signal else hook)


def _warn_of_die_on_term() -> None:
    """Say that uWSGI will run no hook where it ends its workers in the middle of a request."""
    uwsgi = sys.modules.get("uwsgi")  # which exists within the server only
    if getattr(uwsgi, "opt", {}).get("die-on-term"):
        _log.warning(
            "uWSGI runs with die-on-term: at SIGTERM it ends a worker in the middle of its request, and what that has "
            "leased is not revoked; use hook-master-start = unix_signal:15 gracefully_kill_them_all instead"
        )


def _let_sigterm_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
