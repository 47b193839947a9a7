"""The gate that every read goes through: counted, held, audited, and only then handed over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ..cache import Entry, Key, SecretCache
from ..errors import (
    AuditError,
    InvalidSecretPath,
    LeaseLimitReached,
    SecretAccessDenied,
    SecretNotDynamic,
    SecretNotFound,
    SecretUnavailable,
    VaultMiddlewareError,
)
from ..holds import Holds
from ..telemetry.audit import Audit, Context
from ..telemetry.metrics import Metrics
from .reader import Reader

__all__ = ["Gate", "Reading", "no_hit"]

#: The ``reason`` of ``vault_secret_errors_total`` and the ``outcome`` of the audit line, for each error of a getter.
REASONS: dict[type[VaultMiddlewareError], tuple[str, str]] = {
    SecretNotFound: ("not_found", "error"),
    SecretAccessDenied: ("denied", "denied"),
    InvalidSecretPath: ("invalid_path", "denied"),
    SecretNotDynamic: ("not_dynamic", "error"),
    SecretUnavailable: ("unavailable", "error"),
    LeaseLimitReached: ("lease_limit", "error"),
    AuditError: ("audit", "error"),
}


class Reading(Protocol):
    """Who reads: a request's accessor, or the manager itself."""

    @property
    def context(self) -> Context:
        """The audit line's part about the request."""

    @property
    def request_id(self) -> str | None:
        """What travels to Vault as ``X-Correlation-ID``."""

    def take(self, holds: Holds) -> None:
        """Hold a lease until the reader ends.

        Also where it turns out to be replaced before it was handed over: another thread of the same reader may have it.
        """


def no_hit(_key: Key, _dynamic: bool, _by: Reading) -> None:
    """What there is at hand where no manager is started."""


class Gate:
    """Every read of every getter; the hit path is :meth:`hit`."""

    def __init__(
        self,
        cache: SecretCache,
        reader: Reader,
        audit: Audit,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries = cache.entries
        self._cache = cache
        self._reader = reader
        self._audit = audit
        self._access = audit.access
        self._metrics = metrics
        self._hit = metrics.hit
        self._clock = clock
        #: The hit path: called with the key, whether it must be a lease, and who reads; the entry, audited, if the cache has
        #: a fresh one, else None. Raises AuditError where the line could not be written.
        self.hit = self._quick()

    def _quick(self) -> Callable[[Key, bool, Reading], Entry | None]:
        """What :attr:`hit` is. It is on the way of every read, so what it needs is at hand without a look into any object."""
        find, clock, hits, access = self._cache.entries.get, self._clock, self._metrics.hits, self._audit.access
        held = self._held

        def hit(key: Key, dynamic: bool, by: Reading) -> Entry | None:
            entry = find(key)
            if entry is None:
                return None
            now = clock()
            until = entry.fresh_until
            if now >= until or not (held(key, entry, dynamic, by) if entry.holds is not None else not dynamic):
                return None
            entry.last_read = now
            next(hits)
            try:
                access(by.context, entry.fragment, "hit", until, now)
            except AuditError:
                self._metrics.error("audit")
                raise
            return entry

        return hit

    def read(self, key: Key, dynamic: bool, fresh: bool, timeout: float | None, by: Reading) -> Entry:
        """The entry of *key*, audited; raises as the getters do."""
        if not fresh and (found := self.hit(key, dynamic, by)) is not None:
            return found
        failure = None if fresh else self._cache.refusal(key)
        outcome = "negative"
        while failure is None:
            try:
                entry, outcome = self._reader.get(key, fresh=fresh, timeout=timeout, correlation_id=by.request_id)
            except VaultMiddlewareError as error:
                failure, outcome = error.with_traceback(None), ""
                break
            if self._held(key, entry, dynamic, by):
                return self._hand_over(entry, outcome, self._clock(), by)
            failure, outcome = self._not_dynamic(key, entry, dynamic), ""
        raise self._failed(key, failure, outcome, dynamic, by)

    async def aread(self, key: Key, dynamic: bool, fresh: bool, timeout: float | None, by: Reading) -> Entry:
        """As :meth:`read`, without blocking the event loop; a hit does not leave it."""
        if not fresh and (found := self.hit(key, dynamic, by)) is not None:
            return found
        failure = None if fresh else self._cache.refusal(key)
        outcome = "negative"
        while failure is None:
            try:
                entry, outcome = await self._reader.aget(
                    key, fresh=fresh, timeout=timeout, correlation_id=by.request_id
                )
            except VaultMiddlewareError as error:
                failure, outcome = error.with_traceback(None), ""
                break
            if self._held(key, entry, dynamic, by):
                return self._hand_over(entry, outcome, self._clock(), by)
            failure, outcome = self._not_dynamic(key, entry, dynamic), ""
        raise self._failed(key, failure, outcome, dynamic, by)

    def _held(self, key: Key, entry: Entry, dynamic: bool, by: Reading) -> bool:
        """Take hold of the lease behind *entry*; False if it was replaced just now, or is none where one is wanted."""
        holds = entry.holds
        if holds is None:
            return not dynamic
        by.take(holds)
        # Only now look whether it is still the one: a rotation that does not see the hold has published before.
        current = self._entries.get(key)
        return current is not None and current.holds is holds

    def _hand_over(self, entry: Entry, outcome: str, now: float, by: Reading) -> Entry:
        """Count and audit; the value goes out only if the audit line could be written."""
        if outcome == "miss":
            entry.last_read = max(entry.last_read, entry.fetched)
            self._metrics.miss()
        else:
            entry.last_read = now
            self._hit()
            if outcome == "stale":
                self._metrics.stale()
        until = entry.stale_until if outcome == "stale" else entry.fresh_until
        try:
            self._access(by.context, entry.fragment, outcome, until, now)
        except AuditError:
            self._metrics.error("audit")
            raise
        return entry

    @staticmethod
    def _not_dynamic(key: Key, entry: Entry, dynamic: bool) -> VaultMiddlewareError | None:
        if not dynamic or entry.holds is not None:
            return None
        path = key if isinstance(key, str) else key[0]
        return SecretNotDynamic(path, f"{path!r} answered without a lease, so it is a static secret; use get_secret")

    def denied(self, key: Key, failure: SecretAccessDenied, dynamic: bool, by: Reading) -> VaultMiddlewareError:
        """Count and audit a read that was refused before it came here; the error for the caller to raise."""
        return self._failed(key, failure, "", dynamic, by)

    def _failed(
        self, key: Key, failure: VaultMiddlewareError, outcome: str, dynamic: bool, by: Reading
    ) -> VaultMiddlewareError:
        """Count and audit a read that gives nothing; the error for the caller to raise."""
        reason, usual = REASONS.get(type(failure), ("error", "error"))
        if outcome == "negative":
            self._hit()
        else:
            self._metrics.miss()
        self._metrics.error(reason)
        path = key[0] if isinstance(key, tuple) else key  # a caller may have passed anything
        try:
            self._audit.failure(by.context, str(path), "dynamic" if dynamic else "static", outcome or usual, reason)
        except AuditError as error:
            # Nothing was handed over; the first error says more than that its line could not be written.
            self._metrics.error("audit")
            del error
        return failure
