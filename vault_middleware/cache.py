"""The cache: a dict of immutable entries that is read without a lock, one fetch a key, and bounds.

A hit is ``entries.get(key)`` and a comparison with the clock. The lock guards only what changes the table, and is never
held over a call to the server.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Final

from .errors import VaultMiddlewareError
from .holds import Holds
from .secret import Secret

__all__ = ["Entry", "Flight", "Key", "Outcome", "SecretCache"]

#: A path, or (path, version) for a version that was asked for.
Key = str | tuple[str, int]

#: How many refusals ("not found", "denied") are remembered; a bound of their own, so that hostile names evict nothing.
MAX_REFUSALS: Final = 131_072


class Entry:
    """One cached secret; immutable but for the time it was last read.

    Attributes
    ----------
    secret
        What a getter returns.
    fresh_until, stale_until
        On the monotonic clock, in seconds: served without a question before the first; while Vault cannot answer, a
        static one before the second. For a leased one both are the deadline, less the least validity handed out.
    holds
        Who holds the lease; None for a static secret.
    fragment
        The audit line's part about this secret, rendered once.
    fetched
        When the request for it was sent.
    """

    __slots__ = ("fetched", "fragment", "fresh_until", "holds", "last_read", "secret", "stale_until")

    def __init__(
        self,
        secret: Secret,
        *,
        fetched: float,
        fresh_until: float,
        stale_until: float,
        fragment: str = "",
        holds: Holds | None = None,
        last_read: float | None = None,
    ) -> None:
        self.secret: Final = secret
        self.fetched: Final = fetched
        self.fresh_until: Final = fresh_until
        self.stale_until: Final = stale_until
        self.fragment: Final = fragment
        self.holds: Final = holds
        self.last_read = fetched if last_read is None else last_read

    def __repr__(self) -> str:
        return f"Entry({self.secret!r})"


#: What a fetch ended with. A failure is a value here: each waiter raises its own copy.
Outcome = Entry | VaultMiddlewareError


class Flight(Future[Outcome]):
    """One fetch under way, which everyone who wants the key waits for.

    It cannot be cancelled: a waiter that gives up leaves the fetch to the others.
    """

    def __init__(self, started: float) -> None:
        super().__init__()
        self.started = started
        self.set_running_or_notify_cancel()

    def settle(self, outcome: Outcome) -> None:
        """Give the waiters *outcome*, unless they have been given one before."""
        try:
            self.set_result(outcome)
        except InvalidStateError:
            return


class SecretCache:
    """Entries, remembered refusals and fetches under way. See the module's text."""

    def __init__(self, *, max_entries: int, clock: Callable[[], float] = time.monotonic) -> None:
        #: Read it without a lock; write it through the methods.
        self.entries: dict[Key, Entry] = {}
        self._max_entries = max_entries
        self._clock = clock
        self._lock = threading.Lock()
        self._static = 0
        self._flights: dict[Key, Flight] = {}
        self._refusals: OrderedDict[Key, tuple[float, VaultMiddlewareError]] = OrderedDict()

    def inherit(self, parent: SecretCache) -> None:
        """Take over the static entries of the parent process; its leases are the parent's."""
        for key, entry in list(parent.entries.items()):
            if entry.holds is None:
                self.entries[key] = entry
                self._static += 1

    # -- entries

    def put(self, key: Key, entry: Entry) -> Entry | None:
        """Make *entry* the current one by one assignment; the entry it replaces, or None."""
        with self._lock:
            old = self.entries.get(key)
            if entry.holds is None and (old is None or old.holds is not None):
                if self._static >= self._max_entries:
                    self._evict()
                self._static += 1
            elif entry.holds is not None and old is not None and old.holds is None:
                self._static -= 1
            self.entries[key] = entry
            self._refusals.pop(key, None)
            return old

    def swap(self, key: Key, old: Entry, new: Entry) -> bool:
        """Replace *old* by *new* if *old* is still the current one; whether it was."""
        with self._lock:
            if self.entries.get(key) is not old:
                return False
            self.entries[key] = new
            return True

    def drop(self, key: Key, entry: Entry) -> bool:
        """Forget *entry* if it is still the current one; whether it was."""
        with self._lock:
            if self.entries.get(key) is not entry:
                return False
            del self.entries[key]
            if entry.holds is None:
                self._static -= 1
            return True

    def _evict(self) -> None:
        """Forget the least recently read static entry."""
        oldest = min(
            (key for key, entry in self.entries.items() if entry.holds is None),
            key=lambda key: self.entries[key].last_read,
        )
        del self.entries[oldest]
        self._static -= 1

    # -- refusals

    def refuse(self, key: Key, error: VaultMiddlewareError, until: float) -> None:
        """Remember that *key* was refused with *error*, until the monotonic time *until*."""
        with self._lock:
            self._refusals[key] = (until, error.with_traceback(None))
            self._refusals.move_to_end(key)
            while len(self._refusals) > MAX_REFUSALS:
                self._refusals.popitem(last=False)

    def refusal(self, key: Key) -> VaultMiddlewareError | None:
        """A new copy of the remembered refusal of *key*, or None."""
        remembered = self._refusals.get(key)
        if remembered is None or self._clock() >= remembered[0]:
            return None
        return remembered[1].again()

    def forget_refusals(self, now: float) -> None:
        """Give back the memory of refusals that have run out."""
        with self._lock:
            for key in [key for key, (until, _) in self._refusals.items() if until <= now]:
                del self._refusals[key]

    # -- fetches under way

    def lead(self, key: Key, *, since: float | None = None) -> tuple[Flight | None, bool]:
        """The fetch of *key* under way and whether the caller is the one to carry it out.

        With *since*, a fetch that started before that time does not count: (None, False) says that one is under way,
        whose end must be waited for first (see :meth:`under_way`).
        """
        with self._lock:
            flight = self._flights.get(key)
            # A flight that is done but not landed hangs at a server whose waiters were let go: it is passed by.
            if flight is None or flight.done():
                flight = self._flights[key] = Flight(self._clock())
                return flight, True
            if since is not None and flight.started < since:
                return None, False
            return flight, False

    def under_way(self, key: Key) -> Flight | None:
        """The fetch of *key* under way, or None."""
        return self._flights.get(key)

    def land(self, key: Key, flight: Flight, outcome: Outcome) -> None:
        """End *flight*; whoever asks from now on gets what the fetch has put into the cache."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.settle(outcome)

    def release_waiters(self, error_for: Callable[[str], VaultMiddlewareError]) -> None:
        """Let everyone who waits for a fetch go on with an error; the fetches themselves end as they may."""
        with self._lock:
            flights = list(self._flights.items())
        for key, flight in flights:
            flight.settle(error_for(key if isinstance(key, str) else key[0]))

    def clear(self) -> None:
        """Forget everything, at the end: no value is to outlive the manager."""
        with self._lock:
            self.entries.clear()
            self._refusals.clear()
            self._static = 0

    def __repr__(self) -> str:
        return f"SecretCache({len(self.entries)} entries)"
