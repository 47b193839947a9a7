"""What one request has read: the same object again while that is valid, how often, and the leases it holds.

Several threads may read for one request, so what changes here in more than one place changes under a lock; a read that hits
takes none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from .cache import Entry, Key
from .engine.repeats import Repeat
from .holds import Holds
from .manager import SecretsManager
from .secret import Secret
from .telemetry.audit import Context

__all__ = ["NO_HOLDS", "NO_REPEATS", "STALE_PIN", "Pins"]

#: How long a request goes on with a stale value before it asks again whether the server is back, in seconds.
STALE_PIN = 1.0

#: It can be taken again by its thread, as the garbage collector may close what was left open at any time.
_changing = threading.RLock()

#: What a request has that reads nothing twice, and none that is leased: so that it need not make a dict for it.
NO_REPEATS: Final[dict[Key, Repeat]] = {}
NO_HOLDS: Final[dict[Holds, None]] = {}


class Pins:
    """The base of :class:`~vault_middleware.RequestSecrets`, which fills it: each request makes one, at the cost of one call.

    Attributes
    ----------
    context
        The audit line's part about the request.
    """

    __slots__ = ("_clock", "_holds", "_manager", "_pins", "_repeats", "context")

    _manager: SecretsManager
    _clock: Callable[[], float]
    #: What was read once, and of that what was read again.
    _pins: dict[Key, Entry]
    _repeats: dict[Key, Repeat]
    _holds: dict[Holds, None]
    context: Context

    def _again(self, key: Key, dynamic: bool) -> Secret | None:
        """The secret, if the request has read it and it is still valid."""
        entry = self._pins.get(key)
        if entry is None or self._clock() >= entry.fresh_until or (dynamic and entry.holds is None):
            return None
        repeat = self._repeated(key, entry, entry.fresh_until)
        if repeat is None:
            return None
        next(repeat.draws)
        return repeat.secret

    def _pinned(self, key: Key, entry: Entry, fresh: bool) -> Entry:
        """What is pinned from now on: *entry*, unless another thread of the request has pinned a valid one meanwhile."""
        pinned = self._pins.setdefault(key, entry)
        if pinned is not entry:
            same_kind = (pinned.holds is None) is (entry.holds is None)
            if same_kind and not fresh and self._clock() < pinned.fresh_until:
                return pinned
            self._unpin(key, pinned, entry)
        if entry.last_read >= entry.fresh_until:
            # In an outage: a stale value is looked at again now and then, not for each of its reads.
            self._repeated(key, entry, min(entry.stale_until, entry.last_read + STALE_PIN))
        return entry

    def _repeated(self, key: Key, entry: Entry, until: float) -> Repeat | None:
        """From now on repeat reads of *key* are answered at the top of the getters; None if it is pinned no more."""
        repeat = Repeat(entry, until, self._manager.hits)
        with _changing:
            if self._pins.get(key) is not entry:
                return None
            before = self._repeats.get(key)
            if before is not None and before.until >= until:  # another thread was faster
                return before
            if self._repeats is NO_REPEATS:
                self._repeats = {}
            self._repeats[key] = repeat
        if before is not None:
            self._report(before)
        return repeat

    def _unpin(self, key: Key, entry: Entry, instead: Entry | None = None) -> None:
        """Pin *entry* no more, if it still is, but *instead*."""
        with _changing:
            if self._pins.get(key) is entry:
                del self._pins[key]
            if instead is not None:
                self._pins[key] = instead
            repeat = self._repeats.pop(key, None)
        if repeat is not None:
            self._report(repeat)

    def _let_go(self) -> None:
        """Pin nothing any more."""
        with _changing:
            repeats, self._repeats = self._repeats, NO_REPEATS
            self._pins.clear()
        for repeat in list(repeats.values()):
            self._report(repeat)

    def _report(self, repeat: Repeat) -> None:
        """One closing line for reads that were answered from the pin."""
        reads = repeat.reads
        if reads:
            self._manager.audit.repeats(self.context, repeat.entry.fragment, reads)

    def _hand_on(self, other: Pins) -> None:
        """What was pinned so far is *other*'s from now on."""
        with _changing:
            other._pins, self._pins = self._pins, {}
            other._repeats, self._repeats = self._repeats, NO_REPEATS

    def _hold(self, holds: Holds) -> None:
        """Hold a lease, to be given back at the end."""
        holds.take(self)
        if self._holds is NO_HOLDS:
            with _changing:
                self._holds = {} if self._holds is NO_HOLDS else self._holds
        self._holds[holds] = None


def _after_fork() -> None:
    """In a forked child: a fresh lock."""
    global _changing  # noqa: PLW0603
    _changing = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
