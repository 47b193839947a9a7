"""The cache: a dict of immutable entries that is read without a lock, one fetch a key, and bounds.

A hit is ``entries.get(key)`` and a comparison with the clock. The lock guards only what changes the table, and is never
held over a call to the server.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from operator import itemgetter
from typing import Final, NamedTuple

from .errors import SecretAccessDenied, SecretError, VaultMiddlewareError
from .holds import Holds
from .secret import Secret

__all__ = ["Entry", "Flight", "Key", "Outcome", "SecretCache", "folder"]

#: A path, or (path, version) for a version that was asked for.
Key = str | tuple[str, int]

#: How many refusals ("not found", "denied") are remembered, and how many bytes they may take; bounds of their own, so that
#: hostile names evict nothing else.
MAX_REFUSALS, MAX_REFUSAL_BYTES = 131_072, 64 * 1024 * 1024

#: What remembering one takes in bytes, beside its texts (measured).
_REFUSAL: Final = 330

#: Who reads a secret again so long after it was fetched, in seconds, has come back to it. (One that was refreshed was
#: fetched after it was last read.)
COME_BACK: Final = 1.0

#: How many different wordings of refusals are kept; far fewer are in use.
_MAX_WORDINGS: Final = 256


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
    last_read
        When it was last handed out without a fetch for it; ``fetched`` itself where that never was.
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


class _Refusal(NamedTuple):
    """A remembered refusal: what it takes to say it again. ``wording`` is its message with blanks for the path."""

    until: float
    kind: type[SecretError]
    path: str
    wording: str
    size: int


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
        #: How many static entries each folder has.
        self._folders: Counter[str] = Counter()
        self._flights: dict[Key, Flight] = {}
        self._refusals: OrderedDict[Key, _Refusal] = OrderedDict()
        self._refusal_bytes = 0
        self._wordings: dict[str, str] = {}

    def inherit(self, parent: SecretCache) -> None:
        """Take over the static entries of the parent process; its leases are the parent's."""
        for key, entry in list(parent.entries.items()):
            if entry.holds is None:
                self.entries[key] = entry
                self._count(key, 1)

    # -- entries

    def put(self, key: Key, entry: Entry) -> Entry | None:
        """Make *entry* the current one by one assignment; the entry it replaces, or None."""
        with self._lock:
            old = self.entries.get(key)
            if entry.holds is None and (old is None or old.holds is not None):
                if self._static >= self._max_entries:
                    self._evict()
                self._count(key, 1)
            elif entry.holds is not None and old is not None and old.holds is None:
                self._count(key, -1)
            self.entries[key] = entry
            self._forget_refusal(key)
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
                self._count(key, -1)
            return True

    def _evict(self) -> None:
        """Forget the least recently read static entry of the fullest folder, of those first that nobody came back to.

        So names that someone makes up below ``shared/`` push out each other: nothing of another folder, and nothing below
        ``shared/`` that is in use.
        """
        fullest = max(self._folders, key=self._folders.__getitem__)
        there = (
            (not 0.0 <= entry.last_read - entry.fetched < COME_BACK, entry.last_read, key)
            for key, entry in self.entries.items()
            if entry.holds is None and folder(key) == fullest
        )
        _, _, oldest = min(there, key=itemgetter(0, 1))
        del self.entries[oldest]
        self._count(oldest, -1)

    def _count(self, key: Key, more: int) -> None:
        """There is one static entry more (1) or less (-1)."""
        self._static += more
        self._folders[folder(key)] += more
        if not self._folders[folder(key)]:
            del self._folders[folder(key)]

    # -- refusals

    def refuse(self, key: Key, error: SecretError, until: float) -> None:
        """Remember that *key* was refused with *error*, until the monotonic time *until*."""
        path = error.path
        wording = _blanked(str(error.with_traceback(None)), path)
        size = _REFUSAL + sys.getsizeof(path)
        with self._lock:
            shared = self._wordings.get(wording)
            if shared is None:
                # Most refusals of a mount differ in the path alone: their wording is kept once.
                if len(self._wordings) >= _MAX_WORDINGS:
                    self._wordings.clear()
                shared = self._wordings[wording] = wording
                size += sys.getsizeof(wording)
            self._forget_refusal(key)
            self._refusals[key] = _Refusal(until, type(error), path, shared, size)
            self._refusal_bytes += size
            while len(self._refusals) > MAX_REFUSALS or self._refusal_bytes > MAX_REFUSAL_BYTES:
                self._refusal_bytes -= self._refusals.popitem(last=False)[1].size

    def refusal(self, key: Key) -> VaultMiddlewareError | None:
        """The remembered refusal of *key*, made anew, or None."""
        remembered = self._refusals.get(key)
        if remembered is None or self._clock() >= remembered.until:
            return None
        return remembered.kind(remembered.path, _filled(remembered.wording, remembered.path))

    def forget_refusals(self, now: float) -> None:
        """Give back the memory of refusals that have run out."""
        with self._lock:
            for key in [key for key, refusal in self._refusals.items() if refusal.until <= now]:
                self._forget_refusal(key)

    def forget_denials(self) -> None:
        """The token turned out to be invalid: that it was denied something says nothing of the next one."""
        with self._lock:
            for key in [key for key, refusal in self._refusals.items() if refusal.kind is SecretAccessDenied]:
                self._forget_refusal(key)

    def _forget_refusal(self, key: Key) -> None:
        refusal = self._refusals.pop(key, None)
        if refusal is not None:
            self._refusal_bytes -= refusal.size

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
            self._wordings.clear()
            self._folders.clear()
            self._static = self._refusal_bytes = 0

    def __repr__(self) -> str:
        return f"SecretCache({len(self.entries)} entries)"


def folder(key: Key) -> str:
    """All but the last segment of the path."""
    return (key if isinstance(key, str) else key[0]).rpartition("/")[0]


def _blanked(message: str, path: str) -> str:
    """*message* with blanks where it names *path*, or what is left of it behind its first segment."""
    return message.replace(path, "\0").replace(path.partition("/")[2] or path, "\1")


def _filled(wording: str, path: str) -> str:
    """The message that :func:`_blanked` made *wording* of; a path holds no control characters."""
    return wording.replace("\1", path.partition("/")[2] or path).replace("\0", path)
