"""One fetch: ask the server, publish what it answers or remember what it refuses, and let everyone who waits for it know."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ..cache import Entry, Flight, Key, Outcome, SecretCache
from ..config import SecretConfig
from ..errors import SecretAccessDenied, SecretError, SecretNotFound, SecretUnavailable, VaultMiddlewareError
from ..renewal.schedule import AFTER_OUTAGE
from ..retry import FLOOR
from ..secret import DynamicSecret, Secret
from ..vault.client import Forbidden, Reading, VaultClient
from .keeper import Keeper
from .leases import Leases
from .session import Generation, Session
from .statics import Statics, same_values
from .verification import Verification

__all__ = ["Callback", "Fetcher", "unavailable"]

_log = logging.getLogger("vault_middleware")

#: How long a refusal by the policy is remembered, in seconds.
DENIED_TTL = 5.0

#: A token that was found valid less than so many seconds ago is not looked up again for a name that never gave a secret:
#: whoever makes up names that are denied costs the server one request each, and not two.
VALID_LATELY = 1.0

#: While one path cannot be fetched from a server that is up, its readers get the stale value for so long (seconds)
#: before the next of them tries.
AILING = 1.0

Callback = Callable[[Secret], object]


class Fetcher:
    """Carries fetches out, each on the thread that calls :meth:`fly`."""

    def __init__(
        self,
        config: SecretConfig,
        client: VaultClient,
        cache: SecretCache,
        session: Session,
        leases: Leases,
        keeper: Keeper,
        statics: Statics,
        verification: Verification,
        *,
        suspect: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        fetched: Callable[[float], None],
        callbacks: dict[str, list[Callback]],
        closing: threading.Event,
    ) -> None:
        self._config = config
        self._client = client
        self._cache = cache
        self._session = session
        self._leases = leases
        self._keeper = keeper
        self._statics = statics
        self._verification = verification
        self._suspect = suspect
        self._clock = clock
        self._fetched = fetched
        self._callbacks = callbacks
        self._closing = closing
        self._ailing: dict[Key, float] = {}
        self._lenient_until = float("-inf")
        self._last: dict[str, Secret] = {}  # of each leased path, also when its lease is over

    def is_ailing(self, key: Key, now: float) -> bool:
        """Whether *key* could not be fetched just now, so that a stale value will do."""
        return now < self._ailing.get(key, self._lenient_until)

    def wake(self) -> None:
        """The server answers again: no path is passed over any more, and what is stale is refreshed in its turn."""
        self._ailing.clear()
        self._lenient_until = self._clock() + AFTER_OUTAGE

    def forget(self) -> None:
        """The manager has stopped: no value is kept."""
        self._last.clear()

    def fly(self, key: Key, flight: Flight, correlation_id: str | None) -> Outcome:
        """Carry out a fetch on the calling thread and let everyone who waits for it have the outcome."""
        path = key if isinstance(key, str) else key[0]
        outcome: Outcome = unavailable(path, "a fault of this package; please report what the log says about it")
        started = self._clock()
        try:
            outcome = self._fetch(key, path, correlation_id)
        except SecretError as error:
            outcome = error.with_traceback(None)
        except VaultMiddlewareError as error:
            outcome = unavailable(path, str(error))
            self._suspect()
        finally:
            self._note(key, outcome)
            self._cache.land(key, flight, outcome)
            self._fetched(self._clock() - started)
        return outcome

    def _note(self, key: Key, outcome: Outcome) -> None:
        """Remember a refusal; what was cached before is not served against the server's word."""
        now = self._clock()
        if isinstance(outcome, SecretUnavailable):
            if key in self._cache.entries:  # for a stale value only; so hostile names take no memory
                self._ailing[key] = now + AILING
            return
        self._ailing.pop(key, None)
        if isinstance(outcome, SecretNotFound | SecretAccessDenied):
            ttl = self._config.cache_negative_ttl if isinstance(outcome, SecretNotFound) else DENIED_TTL
            self._cache.refuse(key, outcome, now + ttl)
            entry = self._cache.entries.get(key)
            if entry is not None and entry.holds is None:
                self._cache.drop(key, entry)

    def _fetch(self, key: Key, path: str, correlation_id: str | None) -> Entry:
        deadline = self._clock() + self._config.request_timeout
        again = False
        while True:
            if self._closing.is_set():
                raise unavailable(path, "the manager is closed")
            entry = self._cache.entries.get(key)
            if entry is None:
                self._verification.may_fetch(path)
            static = entry is not None and entry.holds is None
            lasting = 0.0 if static else 2 * self._config.lease_min_validity
            with self._session.lend(self._left(deadline), lasting=lasting) as generation:
                try:
                    reading = self._read(key, path, generation, deadline, correlation_id)
                except Forbidden as answer:
                    denied = self._client.denied(path, answer.mount)
                else:
                    return self._publish(key, path, reading, generation, deadline)
            # The same 403 means "policy" and "no such token": only the server can tell them apart.
            lately = VALID_LATELY if entry is None else 0.0
            if again or self._session.is_valid(generation, self._left(deadline), lately=lately):
                raise denied
            again = True

    def _left(self, deadline: float) -> float:
        return max(FLOOR, min(deadline - self._clock(), self._config.request_timeout))

    def _read(
        self, key: Key, path: str, generation: Generation, deadline: float, correlation_id: str | None
    ) -> Reading:
        """Ask the server; a path that may make a lease takes its place among them first."""
        mount = self._client.mount_of(path, generation.token, self._left(deadline))
        entry = self._cache.entries.get(key)
        new = mount.kv_version is None and entry is None
        if new:
            self._leases.reserve(path)
        try:
            return self._client.read(
                path,
                generation.token,
                version=None if isinstance(key, str) else key[1],
                timeout=self._left(deadline),
                correlation_id=correlation_id,
            )
        finally:
            if new:
                self._leases.release_reservation(path)

    def _publish(self, key: Key, path: str, reading: Reading, generation: Generation, deadline: float) -> Entry:
        """Make *reading* what is served, once it has passed its probe."""
        if reading.lease_id:
            return self._publish_lease(path, reading, generation, deadline)
        if self._closing.is_set():
            raise unavailable(path, "the manager is closed")
        old = self._cache.entries.get(key)
        before = None if old is None else old.secret
        new = Secret(path, reading.data, version=reading.version, request_id=reading.request_id)
        changed = before is None or not same_values(before, new, reading)
        if changed and key == path:
            self._verification.check(new, self._left(deadline))
        entry = self._statics.publish(key, path, reading, old)
        if changed and before is not None:
            self._tell(path, entry.secret)
        return entry

    def _publish_lease(self, path: str, reading: Reading, generation: Generation, deadline: float) -> Entry:
        old = self._cache.entries.get(path)

        def published(new: DynamicSecret) -> None:
            # An entry goes with its lease, but whoever is told of changes may still use what it held.
            before = self._last.get(path, None if old is None else old.secret)
            self._remember(path, new)
            if self._closing.is_set():
                return  # nobody is to have it
            if before is not None and not same_values(before, new, reading):
                self._tell(path, new)

        entry = self._leases.publish(
            path,
            reading,
            generation,
            verify=lambda new: self._verification.check(new, self._left(deadline)),
            published=published,
        )
        leased = self._leases.of(entry)
        if self._closing.is_set() and leased is not None:
            self._keeper.disown(leased)
            raise unavailable(path, "the manager is closed")
        return entry

    def _remember(self, path: str, secret: Secret) -> None:
        """Keep *secret* to compare the next one with; of as many paths as there may be leases, and of those with callbacks."""
        if path not in self._last and len(self._last) >= self._config.max_leases:
            self._last.pop(next((each for each in self._last if not self._callbacks.get(each)), path), None)
        self._last[path] = secret

    def _tell(self, path: str, secret: Secret) -> None:
        for callback in tuple(self._callbacks.get(path, ())):
            try:
                callback(secret)
            except Exception as error:
                # Only its type: a user's exception may well hold the credential it was given.
                _log.error("the on_rotate callback for %r failed with %s", path, type(error).__name__)


def unavailable(path: str, cause: str) -> SecretUnavailable:
    """The error of a secret that cannot be had now."""
    return SecretUnavailable(path, f"the secret {path!r} cannot be had now: {cause}")
