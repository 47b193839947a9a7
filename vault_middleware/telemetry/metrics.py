"""The metrics, in the words of prometheus_client; the hit path only draws a number.

Counts of reads are gathered without a lock and moved into the Prometheus counters by :meth:`Metrics.flush`, which the
renewer calls each second and the manager at its stop. A process that is scraped by itself flushes before it is collected,
so that such a scrape is exact. In multiprocess mode another process reads the files; it lags by at most that second.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from prometheus_client import CollectorRegistry, Counter

from ..events import (
    Event,
    LeakFound,
    LeaseRenewalFailed,
    LeaseRenewed,
    LeaseRotated,
    LoggedIn,
    LoginFailed,
)
from .declared import REASONS, Counts, Gauges

__all__ = ["Metrics"]

#: Exported for the time of what does not exist: no alert on ``x - time()`` or ``time() - x`` fires on it.
NEVER = float("inf")


class Metrics:
    """The metrics of one registry, for however many managers; :meth:`for_registry` gives them.

    Attributes
    ----------
    hit
        Counts one read that was answered without a server call of its own.
    hits
        The same as an iterator: each number drawn from it counts one such read, whoever draws it.
    miss
        Counts one read that was not.
    stale
        Counts one stale value that was served; the read itself is counted with ``hit``.
    """

    _making = threading.Lock()
    _paused: ClassVar[list[Metrics]] = []
    _made: ClassVar[weakref.WeakKeyDictionary[CollectorRegistry, Metrics]] = weakref.WeakKeyDictionary()

    def __init__(self, registry: CollectorRegistry, *, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        #: Held by whoever calls prometheus_client, so that a fork can wait until nobody does.
        self._lock = threading.Lock()
        self._hits, self._misses, self._stale = _Tally(), _Tally(), _Tally()
        self.hit = self._hits.add
        self.hits = self._hits.numbers
        self.miss = self._misses.add
        self.stale = self._stale.add
        self._registry = weakref.ref(registry)
        self._counts = Counts(registry, self.flush)
        self._gauges: Gauges | None = None
        self._leaks: Counter | None = None
        self._states: weakref.WeakKeyDictionary[object, _State] = weakref.WeakKeyDictionary()

    @classmethod
    def for_registry(cls, registry: CollectorRegistry) -> Metrics:
        """The metrics in *registry*: one object, whoever asks.

        Raises
        ------
        ConfigurationError
            The registry holds a metric with one of our names that is not ours.
        """
        with cls._making:
            metrics = cls._made.get(registry)
            if metrics is None:
                metrics = cls._made[registry] = cls(registry)
            return metrics

    # -- counts

    def error(self, reason: str) -> None:
        """Count one read that gave nothing, or nothing that could be audited."""
        with self._lock:
            self._counts.errors.labels(reason if reason in REASONS else "error").inc()

    def observe_call(self, operation: str, seconds: float) -> None:
        """One call to the server, answered or not."""
        with self._lock:
            self._counts.calls.labels(operation).observe(seconds)

    def observe_fetch(self, seconds: float) -> None:
        """One fetch of a secret, with every call and try that it took."""
        with self._lock:
            self._counts.fetches.observe(seconds)

    def flush(self) -> None:
        """Move what was gathered into the Prometheus counters; nothing is lost, nothing counted twice."""
        with self._lock:
            # Hits are taken first and added last, so that no scrape sees more of them than requests.
            hits, misses, stale = self._hits.take(), self._misses.take(), self._stale.take()
            self._counts.requests.inc(hits + misses)
            self._counts.hits.inc(hits)
            self._counts.stale.inc(stale)

    def __call__(self, event: Event) -> None:
        """Count a fact."""
        with self._lock:
            self._count(event)

    def _count(self, event: Event) -> None:
        counts = self._counts
        match event:
            case LeaseRenewed():
                counts.renewals.inc()
            case LeaseRenewalFailed():
                counts.renewal_errors.inc()
            case LeaseRotated():
                counts.rotations.inc()
            case LoggedIn():
                counts.logins.labels("success").inc()
            case LoginFailed():
                counts.logins.labels("failure").inc()
            case LeakFound() if self._leaks is not None:
                self._leaks.labels(event.where).inc()

    def expect_leaks(self) -> None:
        """There is a tripwire: have a metric for what it finds."""
        registry = self._registry()
        with self._lock:
            if self._leaks is None and registry is not None:
                self._leaks = Counter(
                    "vault_secret_leaks", "Live values that the tripwire found.", ["where"], registry=registry
                )
                for where in ("header", "body", "log"):  # from 0 on, or the first leak would be no increase
                    self._leaks.labels(where)

    # -- state

    def set_state(
        self,
        owner: object,
        *,
        leases_active: int,
        leases_draining: int,
        cache_entries: int,
        token_ttl: float | None,
        soonest_lease_ttl: float | None,
        token_left: float | None = None,
        lease_left: float | None = None,
        server_up: bool = True,
    ) -> None:
        """What *owner* has now, and that its renewer lives.

        Parameters
        ----------
        owner
            The manager's engine; the gauges tell the sum over all of them, or the earliest of their times.
        token_ttl, soonest_lease_ttl
            Seconds from now; None where there is none.
        token_left, lease_left
            The share of its duration that is left, of the token and of the lease that is nearest to its end; None where
            there is none.
        server_up
            Whether its server is known to answer.
        """
        now = self._wall()
        with self._lock:
            self._states[owner] = _State(
                now,
                leases_active,
                leases_draining,
                cache_entries,
                NEVER if token_ttl is None else now + token_ttl,
                NEVER if soonest_lease_ttl is None else now + soonest_lease_ttl,
                NEVER if token_left is None else token_left,
                NEVER if lease_left is None else lease_left,
                server_up,
            )
            self._show()

    def forget(self, owner: object) -> None:
        """*owner* has stopped: it has nothing any more, and no heartbeat is expected of it."""
        with self._lock:
            if self._states.pop(owner, None) is not None:
                self._show()

    def _show(self) -> None:
        """Set the gauges; under the lock."""
        gauges = self._gauges
        if gauges is None:
            gauges = self._gauges = Gauges(self._registry())
        states = list(self._states.values())
        gauges.active.set(sum(state.leases_active for state in states))
        gauges.draining.set(sum(state.leases_draining for state in states))
        gauges.entries.set(sum(state.cache_entries for state in states))
        gauges.token.set(min((state.token_expiry for state in states), default=NEVER))
        gauges.lease.set(min((state.lease_expiry for state in states), default=NEVER))
        gauges.heartbeat.set(min((state.beat for state in states), default=NEVER))
        gauges.token_left.set(min((state.token_left for state in states), default=NEVER))
        gauges.lease_left.set(min((state.lease_left for state in states), default=NEVER))
        gauges.server_up.set(all(state.server_up for state in states))

    # -- fork

    @classmethod
    def before_any_fork(cls) -> None:
        """Let nothing of ours hold a lock of prometheus_client's, which a forked child would find locked for ever."""
        cls._paused = list(cls._made.values())
        for metrics in cls._paused:
            metrics._lock.acquire()

    @classmethod
    def after_fork_in_parent(cls) -> None:
        """Go on counting."""
        for metrics in cls._paused:
            metrics._lock.release()
        cls._paused = []

    @classmethod
    def after_fork_in_child(cls) -> None:
        """Count anew, for this process."""
        for metrics in cls._paused:
            metrics.after_fork()
        cls._paused = []

    def after_fork(self) -> None:
        """In a forked child: what was gathered and not flushed is the parent's to flush, and so is its state."""
        Metrics._making = threading.Lock()
        self._lock = threading.Lock()
        for tally in (self._hits, self._misses, self._stale):
            tally.take()
        self._states.clear()


class _Tally:
    """A count that any thread adds to without a lock; it is taken from by one at a time."""

    __slots__ = ("_drawn", "add", "numbers")

    def __init__(self) -> None:
        # A draw from a count is atomic, where += on an integer loses updates between threads.
        self.numbers = itertools.count()
        self.add: Callable[[], int] = self.numbers.__next__
        self._drawn = -1

    def take(self) -> int:
        """How often it was added to since the last take."""
        drawn = self.add()
        new, self._drawn = drawn - self._drawn - 1, drawn
        return new


class _State(NamedTuple):
    """What one manager has; times are Unix timestamps in seconds, for exporting only."""

    beat: float
    leases_active: int
    leases_draining: int
    cache_entries: int
    token_expiry: float
    lease_expiry: float
    token_left: float
    lease_left: float
    server_up: bool
