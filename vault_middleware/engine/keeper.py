"""The keeper of our leases: what the renewer runs for each, from its first renewal to its revocation."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from ..cache import Outcome
from ..config import SecretConfig
from ..errors import SecretUnavailable, VaultMiddlewareError, VaultUnavailable
from ..events import Emit, LeaseRenewalFailed, LeaseRenewed, LeaseRevocationFailed, LeaseRevoked
from ..renewal.renewer import Renewer
from ..renewal.schedule import after_outage, granted_short, renewal, renewed_until
from ..retry import FLOOR, Backoff, Uniform, for_lease, for_login
from ..secret import Lease
from ..vault.client import Forbidden, Grant, LeaseGone, VaultClient
from .leases import Leased, Leases
from .session import Generation, Session

__all__ = ["Keeper"]

_DOWN = "the server is known to be down"

#: The most that one revocation may take at a stop, in seconds: a mount whose database hangs must not cost the others theirs.
REVOCATION = 1.0


class Keeper:
    """Renews, replaces, drains and revokes.

    *replace* fetches a path anew and publishes what comes (the reader's part), so that a rotation and a request that
    misses are one fetch.
    """

    def __init__(
        self,
        config: SecretConfig,
        client: VaultClient,
        leases: Leases,
        renewer: Renewer,
        session: Session,
        *,
        emit: Emit,
        uniform: Uniform,
        clock: Callable[[], float] = time.monotonic,
        suspect: Callable[[], None],
        server_down: Callable[[], bool],
    ) -> None:
        self._config = config
        self._client = client
        self._leases = leases
        self._renewer = renewer
        self._session = session
        self._emit = emit
        self._uniform = uniform
        self._clock = clock
        self._suspect = suspect
        self._server_down = server_down
        self.replace: Callable[[str], Outcome]
        self._closing = False
        #: Whether the policy permits revoking leases, as far as is known.
        self.may_revoke = True
        leases.tend = self.tend
        session.replaced = self._generation_replaced
        session.extended = leases.extend_all

    def tend(self, leased: Leased) -> float | None:
        """Renew, replace, revoke or let go of *leased*, as the moment demands; when to look again (monotonic seconds)."""
        now = self._clock()
        if leased.ended:
            return None
        if leased.generation.dead or now >= leased.deadline:
            if not (leased.generation.dead or leased.holds.draining or leased.backoff) and now >= leased.expires:
                # Nothing has failed that would have been told already: the machine, or its mount's other leases, took long.
                self._failed(leased, VaultUnavailable("its turn came too late"), retry_in=None)
            self._leases.end(leased)
            return None
        if leased.holds.draining:
            return self._tend_draining(leased)
        if self._server_down() and self._leases.ours:  # a proxy goes on answering with what it has
            return self._again(leased, VaultUnavailable(_DOWN))
        if leased.rejected:
            return self._rotate(leased, "it did not work")
        if self._leases.is_idle(leased, now):
            self._leases.withdraw(leased)
            leased.holds.drain()
            return now
        if not self._leases.ours:
            return self._rotate(leased, "its end is near")
        if not leased.lease.renewable:
            return self._rotate(leased, "it cannot be renewed")
        if not leased.generation.retired:
            return self._renew(leased)
        if leased.backoff is not None and leased.deadline - now < leased.lease.lease_duration / 3:
            return self._renew(leased)  # a replacement cannot be had at the moment: keep what serves
        return self._rotate(leased, "a new token took over")

    def _tend_draining(self, leased: Leased) -> float | None:
        unused = not leased.holds and not leased.holds.unbounded
        if not unused and (not leased.holds or not leased.lease.renewable or not self._leases.ours):
            return leased.deadline
        if self._server_down():
            return self._again(leased, VaultUnavailable(_DOWN))
        return self._revoke(leased, self._config.client_timeout) if unused else self._renew(leased)

    # -- renew

    def _renew(self, leased: Leased) -> float | None:
        lease = leased.lease
        grant: Grant | VaultMiddlewareError
        gone = forbidden = False
        try:
            grant = self._client.renew_lease(
                lease.lease_id, leased.issued_for, leased.generation.token, self._timeout(leased)
            )
        except LeaseGone as answer:
            gone, grant = True, VaultUnavailable(f"the server says of the lease: {answer.reason}")
        except Forbidden:
            forbidden = True
            grant = VaultUnavailable("the server refused it; " + self._client.lease_line("renew", lease.lease_id))
        except VaultMiddlewareError as error:
            grant = error.with_traceback(None)
        if isinstance(grant, VaultMiddlewareError):
            return self._renewal_failed(leased, grant, gone=gone, forbidden=forbidden)
        leased.backoff, self._leases.renewals_refused = None, False
        until = renewed_until(leased.expires, grant.started + grant.lease_duration)
        self._leases.extend(leased, Lease(lease.lease_id, grant.lease_duration, grant.renewable, until))
        self._emit(LeaseRenewed(leased.path, lease.lease_id, grant.lease_duration))
        if granted_short(leased.issued_for, grant.lease_duration) or not grant.renewable:
            return leased.deadline if leased.holds.draining else self._rotate(leased, "its max TTL is near")
        return self._next_renewal(leased)

    def _next_renewal(self, leased: Leased) -> float:
        now = self._clock()
        return now + self._leases.in_time(leased, renewal(leased.expires - now, self._uniform))

    def _renewal_failed(
        self, leased: Leased, failure: VaultMiddlewareError, *, gone: bool, forbidden: bool
    ) -> float | None:
        if forbidden and not self._token_lives(leased, self._config.client_timeout):
            self._failed(leased, failure, retry_in=None)
            return None  # the lease died with its token; see generation_died
        if not gone and not forbidden:
            return self._again(leased, failure)
        self._leases.renewals_refused = forbidden
        self._failed(leased, failure, retry_in=0.0)
        self._leases.never_renew(leased)
        if not leased.holds.draining:
            return self._rotate(leased, "it cannot be renewed any more")
        if gone:
            self._leases.end(leased)
        return leased.deadline

    # -- replace

    def _rotate(self, leased: Leased, why: str) -> float | None:
        """Fetch the path anew; what comes is published, and *leased* drains."""
        leased.why = why
        outcome = self.replace(leased.path)
        if isinstance(outcome, VaultMiddlewareError) and not leased.holds.draining:
            return self._again(leased, outcome)
        # Without a holder its end has been scheduled where it was made to drain; with one it is renewed meanwhile.
        return self._next_renewal(leased) if leased.lease.renewable and self._leases.ours else leased.deadline

    def _again(self, leased: Leased, failure: VaultMiddlewareError) -> float | None:
        """A try failed, or was not worth making: when to try next, as long as the lease lives."""
        pause = self._pause(leased, failure)
        if self._server_down():
            return leased.deadline if pause is None else self._clock() + pause
        self._failed(leased, failure, retry_in=pause)
        self._suspect()
        if pause is not None:
            return self._clock() + pause
        if leased.holds.draining or not leased.lease.renewable or self._clock() >= leased.deadline:
            return leased.deadline
        # No further renewal fits: a new lease is the last thing to try.
        self._leases.never_renew(leased)
        return self._rotate(leased, "it could not be renewed")

    def _pause(self, leased: Leased, failure: VaultMiddlewareError) -> float | None:
        if leased.backoff is None:
            leased.backoff = for_lease(
                lambda: leased.deadline - self._clock(), self._uniform, useful=lambda: self._time_to_try(leased)
            )
        return leased.backoff.failed(failure)

    def _time_to_try(self, leased: Leased) -> float:
        """Seconds for further tries; of a renewal only while it is handed out, so that a rotation comes in time."""
        kept_back = self._leases.kept_back(leased) if leased.lease.renewable and not leased.holds.draining else 0.0
        return leased.deadline - kept_back - self._clock()

    def _failed(self, leased: Leased, failure: VaultMiddlewareError, *, retry_in: float | None) -> None:
        left = leased.deadline - self._clock()
        self._emit(LeaseRenewalFailed(leased.path, leased.lease.lease_id, str(failure), left, retry_in))

    def _token_lives(self, leased: Leased, timeout: float) -> bool:
        try:
            return self._session.is_valid(leased.generation, max(FLOOR, min(timeout, self._timeout(leased))))
        except VaultMiddlewareError:
            return True  # not known

    def _timeout(self, leased: Leased) -> float:
        return max(0.1, min(self._config.client_timeout, leased.deadline - self._clock()))

    # -- revoke

    def _revoke(self, leased: Leased, timeout: float) -> float | None:
        """Revoke *leased*, where it is ours and we may; else it ends with its own time."""
        lease = leased.lease
        if not self._leases.ours or not self.may_revoke or leased.generation.dead:
            self._leases.end(leased)
            return None
        failure: VaultMiddlewareError | None = None
        deadline = self._clock() + timeout
        try:
            self._client.revoke_lease(lease.lease_id, leased.generation.token, timeout)
        except Forbidden:
            if self._token_lives(leased, deadline - self._clock()):
                self.may_revoke = False  # said once; from now on leases end with their time, or our token
                failure = VaultUnavailable(
                    "the server refused it; " + self._client.lease_line("revoke", lease.lease_id)
                )
        except VaultMiddlewareError as error:
            failure = error.with_traceback(None)
        if failure is None:
            self._emit(LeaseRevoked(leased.path, lease.lease_id))
            self._leases.end(leased)
            return None
        left = leased.deadline - self._clock()
        self._emit(LeaseRevocationFailed(leased.path, lease.lease_id, str(failure), left))
        if self.may_revoke and not self._closing and (pause := self._pause(leased, failure)) is not None:
            return self._clock() + pause
        self._leases.end(leased)
        return None

    def close(self, timeout: float) -> None:
        """Revoke every lease of ours within *timeout* seconds, on the calling thread; a proxy's are left alone."""
        deadline = self._clock() + timeout
        self._closing = True
        hanging: set[str | None] = set()
        # The longest-lived first: what is not reached in time would stay for as long.
        for leased in sorted(self._leases.live(), key=lambda leased: leased.deadline, reverse=True):
            left = deadline - self._clock()
            if left <= 0 or not self.may_revoke:
                return
            if leased.task.group in hanging:
                continue  # its database does not answer, and others' leases wait
            before = self._clock()
            self._revoke(leased, min(left, REVOCATION))
            if self._clock() - before >= min(left, REVOCATION):
                hanging.add(leased.task.group)

    def disown(self, leased: Leased) -> None:
        """A lease came after the stop: nobody is to have it."""
        self._closing = True
        self._revoke(leased, self._config.shutdown_timeout)

    # -- when the token or the server changes

    def _generation_replaced(self, old: Generation) -> None:
        """A new token took over: every lease of the old one is issued again before the old token goes."""
        now = self._clock()
        for leased in list(old.leases):
            leased.backoff = None
            if not leased.holds.draining:
                self._renewer.schedule(leased.task, now)

    def generation_died(self, generation: Generation) -> None:
        """The token is gone, and its leases with it: none is handed out any more, and those in use are issued again."""
        for leased in list(generation.leases):
            wanted = not leased.holds.draining
            self._leases.end(leased)
            if wanted:
                leased.task.run = partial(self._restore, leased, for_login(self._uniform))
                self._renewer.schedule(leased.task, self._clock())

    def _restore(self, leased: Leased, backoff: Backoff) -> float | None:
        """Fetch the path of *leased*, which is over, anew, unless someone has; when to try again."""
        if self._closing or self._leases.current(leased.path) is not None:
            return None
        outcome = self.replace(leased.path)
        if not isinstance(outcome, VaultMiddlewareError):
            return None
        pause = backoff.failed(outcome) if isinstance(outcome, SecretUnavailable) else None
        self._emit(LeaseRenewalFailed(leased.path, leased.lease.lease_id, str(outcome), 0.0, pause))
        return None if pause is None else self._clock() + pause

    def wake(self) -> None:
        """The server answers again: what waits for its next try is tried soon; see `after_outage`."""
        now = self._clock()
        for leased in self._leases.live():
            if leased.backoff is not None:
                leased.backoff = None
                self._renewer.hasten(leased.task, now + after_outage(leased.deadline - now, self._uniform))
