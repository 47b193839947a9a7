"""A sync getter that waits on a running event loop: it works, and is said once, with the place and the alternative."""

from __future__ import annotations

import logging
import sys
from types import FrameType

__all__ = ["LoopWatch"]

_log = logging.getLogger("vault_middleware")

_PACKAGE = __name__.partition(".")[0]


class LoopWatch:
    """Warns once in its life; asked only by a read that is about to wait, so that a hit pays nothing."""

    def __init__(self) -> None:
        self._said = False

    def about_to_wait(self) -> None:
        """The calling thread will wait for the server: warn where it runs an event loop."""
        if self._said or not _on_a_loop():
            return
        self._said = True
        getter, place = _caller(sys._getframe(1))
        _log.warning(
            "%s was called on the event loop at %s and had to wait for the server, and everything on the loop with it; "
            "use: await secrets.a%s(...)",
            getter,
            place,
            getter,
        )


def _on_a_loop() -> bool:
    asyncio = sys.modules.get("asyncio")  # where nobody has loaded it, no loop runs
    try:
        return asyncio is not None and asyncio.get_running_loop() is not None
    except RuntimeError:
        return False


def _caller(frame: FrameType | None) -> tuple[str, str]:
    """The getter that was called, and where outside of this package that was."""
    getter = "get_secret"
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        if frame.f_code.co_name in {"get_secret", "get_dynamic_secret"}:
            getter = frame.f_code.co_name
        frame = frame.f_back
    return getter, "an unknown place" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
