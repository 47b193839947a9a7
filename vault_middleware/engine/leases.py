"""The table of our leases: what is held, published and counted. Nothing in this room talks to the server."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..cache import Entry, SecretCache, folder
from ..config import SecretConfig
from ..errors import LeaseLimitReached, SecretUnavailable
from ..events import Emit, LeaseRotated
from ..holds import Holds
from ..renewal.renewer import Renewer, Task
from ..renewal.schedule import first_renewal, in_time, renewal, rotation
from ..retry import Backoff, Uniform
from ..secret import DynamicSecret, Lease
from ..vault.client import Reading
from .session import Generation

__all__ = ["Leased", "Leases"]


@dataclass(eq=False, slots=True)
class Leased:
    """One lease of ours, from its issue until it is revoked or over.

    ``issued`` is when it was asked for (a proxy: last) and ``expires`` the lease's own end, on the monotonic clock in
    seconds; the deadline that is served (``secret.lease.deadline``) is no later than the token's. ``issued_for`` is the
    duration first granted, in seconds, which every renewal asks for again.
    """

    path: str
    secret: DynamicSecret
    generation: Generation
    issued: float
    issued_for: float
    expires: float
    fragment: str
    holds: Holds
    task: Task
    backoff: Backoff | None = None
    #: Why it is replaced, for the audit line.
    why: str = "read anew"
    rejected: bool = False
    ended: bool = False

    @property
    def lease(self) -> Lease:
        """The lease as last renewed."""
        return self.secret.lease

    @property
    def deadline(self) -> float:
        """When it may be served no longer, on the monotonic clock in seconds."""
        return self.secret.lease.deadline


class Leases:
    """Every lease of this process, current and draining.

    *tend* is what the renewer runs for a lease; *ended* is told when a lease of a generation is over.
    """

    def __init__(
        self,
        config: SecretConfig,
        cache: SecretCache,
        renewer: Renewer,
        *,
        emit: Emit,
        uniform: Uniform,
        clock: Callable[[], float] = time.monotonic,
        fragment: Callable[[DynamicSecret], str],
        ended: Callable[[Generation], None],
    ) -> None:
        self._config = config
        self._cache = cache
        self._renewer = renewer
        self._emit = emit
        self._uniform = uniform
        self._clock = clock
        self._fragment = fragment
        self._ended = ended
        self.tend: Callable[[Leased], float | None]
        #: False behind a proxy, which renews and revokes its own leases.
        self.ours = config.auth_method != "proxy"
        #: The policy has refused the last renewal: new leases are replaced late instead of renewed early.
        self.renewals_refused = False
        self._lock = threading.Lock()
        self._live: dict[Holds, Leased] = {}
        #: How many places each folder takes: leases that live, and reads under way that may bring one.
        self._folders: Counter[str] = Counter()
        self._places = 0

    def live(self) -> list[Leased]:
        """Every lease that has not ended, current and draining."""
        with self._lock:
            return list(self._live.values())

    def of(self, entry: Entry | None) -> Leased | None:
        """The lease behind *entry*, if it has one that has not ended."""
        return None if entry is None or entry.holds is None else self._live.get(entry.holds)

    def current(self, path: str) -> Leased | None:
        """The lease that is served for *path*, if there is one."""
        return self.of(self._cache.entries.get(path))

    def least_left(self, now: float) -> float | None:
        """The share of its duration that is left of the served lease nearest to its end; None where there is none.

        Not asked of a lease that drains, which ends when its holders do, nor of a proxy's, which is the proxy's to renew.
        """
        if not self.ours:
            return None
        served = [leased for leased in self.live() if not leased.holds.draining and leased.issued_for]
        return min((max(0.0, leased.expires - now) / leased.issued_for for leased in served), default=None)

    # -- the bound

    def reserve(self, path: str) -> None:
        """Take the place of a new lease, before it is asked for.

        Raises
        ------
        LeaseLimitReached
            There are ``VAULT_MAX_LEASES`` already, or three quarters of them in the folder of *path*.
        """
        most = self._config.max_leases
        share = most - most // 4
        with self._lock:
            if self._places >= most:
                full = f"the {most} that this process may hold"
            elif self._folders[folder(path)] >= share:
                full = f"the {share} of {most} that one folder may have"
            else:
                self._count(path, 1)
                return
        raise LeaseLimitReached(
            path,
            f"a lease for {path!r} would be one more than {full}; "
            "raise VAULT_MAX_LEASES, or read fewer different dynamic secrets",
        )

    def release_reservation(self, path: str) -> None:
        """Give the reserved place back, whether the lease came to be or not."""
        with self._lock:
            self._count(path, -1)

    def _count(self, path: str, more: int) -> None:
        """One place more (1) or less (-1) is taken; under the lock."""
        self._places += more
        self._folders[folder(path)] += more
        if not self._folders[folder(path)]:
            del self._folders[folder(path)]

    # -- what is served

    def publish(
        self,
        path: str,
        reading: Reading,
        generation: Generation,
        *,
        verify: Callable[[DynamicSecret], None] = lambda _secret: None,
        published: Callable[[DynamicSecret], None] = lambda _secret: None,
    ) -> Entry:
        """Make the lease of *reading* the current one of *path* in one assignment; the one before it drains.

        What *verify* raises is raised; then the new lease is given back, and the one before it serves on. *published* is told
        of the new one before the old one may be revoked.
        """
        old = self._cache.entries.get(path)
        previous = self.of(old)
        if previous is not None and previous.lease.lease_id == reading.lease_id:
            return self._same_again(previous, reading)
        leased = self._enter(path, reading, generation)
        try:
            verify(leased.secret)
        except BaseException:
            leased.holds.drain()
            raise
        if leased.ended:
            raise SecretUnavailable(
                path, f"the secret {path!r} cannot be had now: its token ended while it was verified"
            )
        old = self._cache.entries.get(path)  # to verify it may have taken a while
        previous = self.of(old)
        if old is not None and previous is not None and old.fetched > reading.started:
            leased.holds.drain()  # a later fetch has overtaken this one: nobody is to have it
            return old
        entry = self._entry(leased, reading.started if old is None else old.last_read)
        previous = self.of(self._cache.put(path, entry))
        now = self._clock()
        self._renewer.schedule(leased.task, now + self._first_due(leased, now))
        if previous is not None:
            self._emit(
                LeaseRotated(path, reading.lease_id, previous.lease.lease_id, previous.why, leased.deadline - now)
            )
        published(leased.secret)
        if previous is not None:
            previous.holds.drain()
        return entry

    def _enter(self, path: str, reading: Reading, generation: Generation) -> Leased:
        expires = reading.started + self._left(reading)
        deadline = min(expires, generation.token.deadline)
        lease = Lease(reading.lease_id, reading.lease_duration, reading.renewable, deadline)
        secret = DynamicSecret(path, reading.data, lease, request_id=reading.request_id)
        leased: Leased
        task = Task(lambda: self.tend(leased), group=reading.mount.path, deadline=lambda: leased.deadline)
        leased = Leased(
            path=path,
            secret=secret,
            generation=generation,
            issued=reading.started,
            issued_for=reading.lease_duration,
            expires=expires,
            fragment=self._fragment(secret),
            holds=Holds(lambda: self._renewer.schedule(task, self._clock())),
            task=task,
        )
        with self._lock:
            self._live[leased.holds] = leased
            self._count(path, 1)
        generation.leases.add(leased)
        return leased

    def _left(self, reading: Reading) -> float:
        """Seconds that the lease of *reading* is good for, from when it was asked for."""
        left = reading.lease_duration - reading.age
        # A proxy renews its lease without telling, and lets go of it while a tenth of the duration is left: past the
        # duration in the body, what it answers with is good for that long, and only reading again tells more.
        return left if self.ours else max(left, min(5.0, 0.1 * reading.lease_duration))

    def _same_again(self, leased: Leased, reading: Reading) -> Entry:
        """A proxy answered with the lease that we have: its end moves, nothing else changes."""
        leased.issued, leased.backoff = reading.started, None
        until = reading.started + self._left(reading)
        self.extend(leased, Lease(reading.lease_id, reading.lease_duration, reading.renewable, until))
        now = self._clock()
        self._renewer.schedule(leased.task, now + self._first_due(leased, now))
        return self._cache.entries.get(leased.path) or self._entry(leased, reading.started)

    def _first_due(self, leased: Leased, now: float) -> float:
        if leased.generation.retired or leased.generation.dead:
            return 0.0  # that happened while it was fetched, so nobody else has it issued again
        lease = leased.lease
        left = leased.expires - now
        if lease.renewable and self.ours and not self.renewals_refused:
            first = min(first_renewal(lease.lease_duration, self._uniform), renewal(left, self._uniform))
            return self.in_time(leased, first)
        due = self.in_time(leased, rotation(left, self._uniform))
        # To ask a proxy costs little: of a short time, early rather than too late.
        return due if self.ours or left > 1.0 else min(due, max(0.1, left / 4))

    def in_time(self, leased: Leased, delay: float) -> float:
        """*delay* in seconds, or less where nothing of *leased* could be handed out by then.

        Where its token's end cuts it short it is the session's turn: renewing or replacing it would not help.
        """
        now = self._clock()
        return min(in_time(delay, leased.expires - now, self.kept_back(leased)), leased.deadline - now)

    def kept_back(self, leased: Leased) -> float:
        """Seconds before the deadline in which *leased* is not handed out any more."""
        # A lease shorter than the least validity could never be served; half of it is what can be kept back then.
        served = leased.lease.lease_duration if self.ours else leased.expires - leased.issued
        return min(self._config.lease_min_validity, served / 2)

    def _entry(self, leased: Leased, last_read: float) -> Entry:
        until = leased.issued if leased.rejected else leased.deadline - self.kept_back(leased)
        return Entry(
            leased.secret,
            fetched=leased.issued,
            fresh_until=until,
            stale_until=until,
            fragment=leased.fragment,
            holds=leased.holds,
            last_read=last_read,
        )

    def extend(self, leased: Leased, lease: Lease) -> None:
        """Put *lease*, a renewal, in the place of the one before it, also in the cache if it is the current one.

        ``lease.deadline`` is the lease's own end; what is served is capped by the token's.
        """
        leased.expires = lease.deadline
        capped = min(lease.deadline, leased.generation.token.deadline)
        leased.secret = leased.secret.with_lease(Lease(lease.lease_id, lease.lease_duration, lease.renewable, capped))
        entry = self._cache.entries.get(leased.path)
        if entry is not None and entry.holds is leased.holds:
            self._cache.swap(leased.path, entry, self._entry(leased, entry.last_read))

    def extend_all(self, generation: Generation) -> None:
        """The token lives longer: so may the leases that its end cut short."""
        for leased in list(generation.leases):
            lease = leased.lease
            if lease.deadline < leased.expires:
                self.extend(leased, Lease(lease.lease_id, lease.lease_duration, lease.renewable, leased.expires))

    def never_renew(self, leased: Leased) -> None:
        """The lease cannot be renewed any more; what is left of it serves while a replacement is fetched."""
        lease = leased.lease
        self.extend(leased, Lease(lease.lease_id, lease.lease_duration, False, leased.expires))

    def rejected(self, entry: Entry) -> None:
        """*entry* holds a credential that did not work: replace its lease at once, in the background too."""
        leased = self.of(entry)
        if leased is not None:
            leased.rejected = True
            self._renewer.schedule(leased.task, self._clock())

    def withdraw(self, leased: Leased) -> None:
        """Serve *leased* to no one who asks from now on."""
        entry = self._cache.entries.get(leased.path)
        if entry is not None and entry.holds is leased.holds:
            self._cache.drop(leased.path, entry)

    def is_idle(self, leased: Leased, now: float) -> bool:
        """Whether nobody has read it for ``VAULT_LEASE_IDLE_TTL``, and nobody holds it."""
        idle = self._config.lease_idle_ttl
        entry = self._cache.entries.get(leased.path)
        return bool(idle) and not leased.holds and (entry is None or now - entry.last_read >= idle)

    def forget(self) -> None:
        """The manager has stopped: whatever could not be revoked ends with its own time."""
        for leased in self.live():
            self.end(leased)

    def end(self, leased: Leased) -> None:
        """*leased* is over: nothing of it is served, renewed or counted any more."""
        leased.ended = True
        with self._lock:
            if self._live.pop(leased.holds, None) is not None:
                self._count(leased.path, -1)
        self.withdraw(leased)
        leased.generation.leases.discard(leased)
        self._ended(leased.generation)
