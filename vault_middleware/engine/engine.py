"""The engine: everything that belongs to one process, built and wired in one place.

A forked child builds a new one and takes over the static entries; the parent's threads, connections, locks, token and
leases stay the parent's.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from ..cache import Entry, SecretCache
from ..config import SecretConfig
from ..errors import AuthenticationError, VaultMiddlewareError
from ..events import Emit, LeasesLeft
from ..renewal.renewer import Renewer, Task
from ..retry import Uniform
from ..secret import DynamicSecret, Secret
from ..telemetry.audit import Audit
from ..telemetry.metrics import Metrics
from ..vault.client import VaultClient
from ..workers import Workers
from .breaker import PATIENCE, Breaker
from .fetcher import Callback, Fetcher, unavailable
from .gate import Gate
from .keeper import Keeper
from .leases import Leases
from .reader import Reader
from .session import Generation, Session
from .statics import FORK_SPREAD, Statics
from .verification import Probe, Verification

__all__ = ["Engine"]

#: Threads for reads that miss, and how many of them one mount may have: one that hangs leaves the others theirs.
FETCHERS, FETCHERS_PER_MOUNT = 64, 16

#: Threads for what the renewer runs; one call a mount at a time.
RENEWERS = 4

#: How long a stop waits for what the renewer has under way, in seconds; what hangs is abandoned.
RENEWER_STOP = 2.0

#: The renewer's own pulse: counts are flushed and the gauges set so often, in seconds.
PULSE = 0.5


class Engine:
    """The pieces of one process, under the names of their classes."""

    def __init__(
        self,
        config: SecretConfig,
        *,
        emit: Emit,
        audit: Audit,
        metrics: Metrics,
        callbacks: dict[str, list[Callback]],
        probes: dict[str, Probe],
        clock: Callable[[], float] = time.monotonic,
        uniform: Uniform | None = None,
        client: VaultClient | None = None,
    ) -> None:
        uniform = uniform or random.Random().uniform  # a seed of its own in each process
        self._config = config
        self._uniform = uniform
        #: Whether the first warm-up is over.
        self.warm = False
        self._metrics = metrics
        self._emit = emit
        self._clock = clock
        self.closing = threading.Event()
        self.client = client or VaultClient(config, clock=clock, on_call=metrics.observe_call, closing=self.closing)
        self.cache = SecretCache(max_entries=config.cache_max_entries, clock=clock)
        self.workers = Workers("fetch", size=FETCHERS, per_group=FETCHERS_PER_MOUNT)
        self.renewer = Renewer(Workers("renewal", size=RENEWERS, per_group=1), clock=clock)
        self.breaker = Breaker(
            self.client.probe,
            emit=emit,
            uniform=uniform,
            clock=clock,
            opened=self._server_lost,
            closed=self._server_back,
        )
        self.session = Session(
            config, self.client, self.renewer, emit=emit, uniform=uniform, clock=clock, suspect=self.breaker.suspect
        )
        self.leases = Leases(
            config,
            self.cache,
            self.renewer,
            emit=emit,
            uniform=uniform,
            clock=clock,
            fragment=lambda secret: audit.secret_fragment(secret, "dynamic"),
            ended=self.session.released,
        )
        self.keeper = Keeper(
            config,
            self.client,
            self.leases,
            self.renewer,
            self.session,
            emit=emit,
            uniform=uniform,
            clock=clock,
            suspect=self.breaker.suspect,
            server_down=self._is_down,
        )
        self.session.died = self._token_died
        self.statics = Statics(
            config,
            self.cache,
            self.renewer,
            uniform=uniform,
            clock=clock,
            server_down=self._is_down,
            fragment=lambda secret: audit.secret_fragment(secret, "static"),
        )
        self.verification = Verification(probes, closing=self.closing, uniform=uniform, clock=clock)
        self.fetcher = Fetcher(
            config,
            self.client,
            self.cache,
            self.session,
            self.leases,
            self.keeper,
            self.statics,
            self.verification,
            suspect=self.breaker.suspect,
            clock=clock,
            fetched=metrics.observe_fetch,
            callbacks=callbacks,
            closing=self.closing,
        )
        self.reader = Reader(config, self.cache, self.fetcher, self.breaker, self.workers, clock=clock)
        self.keeper.replace = self.statics.fetch = self.reader.refresh
        self.gate = Gate(self.cache, self.reader, audit, metrics, clock=clock)
        self._pulse_task = Task(self._pulse, group=None, deadline=lambda: 0.0)
        self._sweep_at = clock()

    def start(self) -> None:
        """Start the renewer; everything else starts when it is needed."""
        self.renewer.start()
        self.renewer.schedule(self._pulse_task, self._clock())
        self.statics.adopt()

    def warm_up(self, timeout: float) -> None:
        """Log in and fetch ``VAULT_PREFETCH``, within *timeout* seconds.

        Raises
        ------
        AuthenticationError, VaultUnavailable, SecretError
            The last failure, when the time is over; at once where waiting would not help.
        """
        deadline = self._clock() + timeout
        while (failure := self._try_to_warm_up(deadline)) is not None:
            pause = min(1.0, deadline - self._clock())
            lasting = isinstance(failure, AuthenticationError) and not failure.passing
            if lasting or pause <= 0 or self.closing.wait(pause):
                raise failure

    def warm_up_aside(self) -> None:
        """As :meth:`warm_up`, in the background and as often as it takes; workers that start at once spread out."""
        task = Task(self._warm_up_or_again, group="log-in", deadline=lambda: 0.0)
        self.renewer.schedule(task, self._clock() + self._uniform(0.0, FORK_SPREAD))

    def _warm_up_or_again(self) -> float | None:
        if self._try_to_warm_up(self._clock() + self._config.request_timeout) is None:
            return None
        return self._clock() + self._uniform(0.75, 1.0)

    def _try_to_warm_up(self, deadline: float) -> VaultMiddlewareError | None:
        left = max(0.1, min(self._config.request_timeout, deadline - self._clock()))
        try:
            self.session.get(left)
            for path in self._config.prefetch:
                self.reader.begin(path)
            for path in self._config.prefetch:
                self.reader.get(path, fresh=False, timeout=left, correlation_id=None)
        except VaultMiddlewareError as error:
            return error.with_traceback(None)
        self.warm = True
        return None

    def stop(self, timeout: float) -> None:
        """Take no new work, wait a little for what runs, and revoke what is ours within *timeout* seconds."""
        deadline = self._clock() + timeout
        self.closing.set()
        self.breaker.stop()
        self.workers.close()
        self.renewer.stop(min(RENEWER_STOP, timeout))
        if not self.breaker.down:
            # Some of the time is the tokens': revoking one takes along the leases that were not reached.
            self.keeper.close(0.7 * (deadline - self._clock()))
            self.session.close(deadline - self._clock())
        else:
            self.session.leave(f"Vault does not answer ({self.breaker.reason})")
        self._tell_of_leases_left()
        self.client.close()
        self.leases.forget()
        self.session.forget()
        self.fetcher.forget()
        self.cache.clear()

    def _tell_of_leases_left(self) -> None:
        """What the stop did not come to revoke, in one line."""
        now = self._clock()
        left = [leased for leased in self.leases.live() if self.leases.ours and leased.expires > now]
        if not left:
            return
        lasting = [
            leased
            for leased in left
            if not (leased.generation.revoked and self.client.ends_with(leased.generation.token, leased.lease.lease_id))
        ]
        if not lasting:
            reason = "our token takes them along"
        elif self.breaker.down:
            reason = f"Vault does not answer ({self.breaker.reason})"
        elif not self.keeper.may_revoke:
            reason = "the policy does not permit revoking them"
        else:
            reason = "the time for the stop was over; raise VAULT_SHUTDOWN_TIMEOUT"
        self._emit(LeasesLeft(len(left), reason, max((leased.expires - now for leased in lasting), default=0.0)))

    def reject(self, secret: Secret) -> None:
        """*secret* did not work: if it is still the current one, the next reader gets another."""
        for key, entry in list(self.cache.entries.items()):
            if entry.secret.path != secret.path or not _same(entry.secret, secret):
                continue
            now = self._clock()
            rejected = Entry(
                entry.secret,
                fetched=entry.fetched,
                fresh_until=now,
                stale_until=now,
                fragment=entry.fragment,
                holds=entry.holds,
                last_read=entry.last_read,
            )
            if self.cache.swap(key, entry, rejected):
                self.leases.rejected(rejected)

    def health(self) -> dict[str, Any]:
        """See :meth:`SecretsManager.health`."""
        now = self._clock()
        generation = self.session.current
        live = self.leases.live()
        failure = self.session.failure
        token = None
        if generation is not None and generation.token.deadline != float("inf"):
            token = round(generation.token.deadline - now, 3)
        soonest = min((leased.secret.lease.deadline - now for leased in live), default=None)
        return {
            "server": {"up": not self.breaker.down, "last_error": self.breaker.reason or None},
            "token": {
                "valid": generation is not None,
                "ttl": token,
                "last_error": None if failure is None else str(failure),
            },
            "leases": {
                "active": sum(not leased.holds.draining for leased in live),
                "draining": sum(leased.holds.draining for leased in live),
                "soonest_expiry": None if soonest is None else round(soonest, 3),
            },
            "cache": {"entries": len(self.cache.entries)},
            "renewer": {"alive": self.renewer.alive},
        }

    def _is_down(self) -> bool:
        return self.breaker.down

    def _token_died(self, generation: Generation) -> None:
        self.cache.forget_denials()
        self.keeper.generation_died(generation)

    def _server_lost(self) -> None:
        """Let everyone who waits go on: with the stale value, or an error at once."""
        reason = self.breaker.reason
        self.cache.release_waiters(lambda path: unavailable(path, f"Vault does not answer ({reason})"))

    def _server_back(self) -> None:
        self.session.wake()
        self.fetcher.wake()
        self.keeper.wake()
        self.statics.wake()

    def _pulse(self) -> float:
        """The renewer's own beat: flush the counts, set the gauges."""
        now = self._clock()
        if self.closing.is_set():
            return now + PULSE
        if self.client.oldest_call(now) > PATIENCE:
            self.breaker.suspect()  # a call of the renewer's hangs; no reader is to be the one who finds out
        self._metrics.flush()
        live = self.leases.live()
        generation = self.session.current
        self._metrics.set_state(
            self,
            leases_active=sum(not leased.holds.draining for leased in live),
            leases_draining=sum(leased.holds.draining for leased in live),
            cache_entries=len(self.cache.entries),
            token_ttl=None if generation is None else generation.token.deadline - now,
            soonest_lease_ttl=min((leased.secret.lease.deadline - now for leased in live), default=None),
            token_left=None if generation is None else generation.left(now),
            lease_left=self.leases.least_left(now),
            server_up=not self.breaker.down,
        )
        if now >= self._sweep_at:
            self.cache.forget_refusals(now)
            self._sweep_at = now + 10.0
        return now + PULSE


def _same(current: Secret, rejected: Secret) -> bool:
    """Whether the two are one credential; a renewal makes a new object of the same lease."""
    if isinstance(current, DynamicSecret) and isinstance(rejected, DynamicSecret):
        return current.lease.lease_id == rejected.lease.lease_id
    return current is rejected
