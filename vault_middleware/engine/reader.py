"""The way of one read that the cache cannot answer: one fetch a key, on our own threads, within the caller's time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from fnmatch import fnmatchcase

from ..cache import Entry, Flight, Key, Outcome, SecretCache
from ..config import SecretConfig
from ..errors import (
    InvalidSecretPath,
    SecretAccessDenied,
    SecretError,
    SecretNotFound,
    SecretUnavailable,
    VaultMiddlewareError,
)
from ..renewal.schedule import AFTER_OUTAGE
from ..retry import FLOOR
from ..secret import DynamicSecret, Secret
from ..vault.client import Forbidden, Reading, VaultClient
from ..vault.paths import validate
from ..workers import Workers
from .breaker import PATIENCE, Breaker
from .keeper import Keeper
from .leases import Leases
from .onloop import LoopWatch
from .session import Generation, Session
from .statics import Statics, same_values
from .verification import Verification

__all__ = ["Reader"]

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


class Reader:
    """Fetches, publishes and refreshes; see the module's text."""

    def __init__(
        self,
        config: SecretConfig,
        client: VaultClient,
        cache: SecretCache,
        session: Session,
        leases: Leases,
        keeper: Keeper,
        statics: Statics,
        breaker: Breaker,
        workers: Workers,
        verification: Verification,
        *,
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
        self._breaker = breaker
        self._workers = workers
        self._verification = verification
        self._clock = clock
        self._fetched = fetched
        self._callbacks = callbacks
        self._closing = closing
        self._loop_watch = LoopWatch()
        self._ailing: dict[Key, float] = {}
        self._lenient_until = float("-inf")
        self._last: dict[str, Secret] = {}  # of each leased path, also when its lease is over
        keeper.replace = self.refresh
        statics.fetch = self.refresh

    # -- for the getters

    def get(self, key: Key, *, fresh: bool, timeout: float | None, correlation_id: str | None) -> tuple[Entry, str]:
        """The entry of *key* and the outcome for the audit line (``hit``, ``miss``, ``stale``).

        Raises
        ------
        SecretError
            As the table of errors says; within *timeout* seconds.
        """
        asked = self._clock()
        deadline = asked + self._budget(timeout)
        while True:
            found, flight, mine = self._start(key, asked if fresh else None, correlation_id)
            if found is not None:
                return found
            assert flight is not None
            self._loop_watch.about_to_wait()
            outcome = self._wait(flight, deadline)
            if mine is None and outcome is not None:
                continue  # an older fetch had to end first
            return self._finish(key, outcome, bool(mine), fresh)

    async def aget(
        self, key: Key, *, fresh: bool, timeout: float | None, correlation_id: str | None
    ) -> tuple[Entry, str]:
        """As :meth:`get`, for the event loop: waits without blocking it, and may be cancelled without harm."""
        asked = self._clock()
        deadline = asked + self._budget(timeout)
        while True:
            found, flight, mine = self._start(key, asked if fresh else None, correlation_id)
            if found is not None:
                return found
            assert flight is not None
            outcome = await self._await(flight, deadline)
            if mine is None and outcome is not None:
                continue
            return self._finish(key, outcome, bool(mine), fresh)

    def _budget(self, timeout: float | None) -> float:
        longest = self._config.request_timeout
        return longest if timeout is None else max(0.0, min(timeout, longest))

    def _start(
        self, key: Key, since: float | None, correlation_id: str | None
    ) -> tuple[tuple[Entry, str] | None, Flight | None, bool | None]:
        """What the cache can answer after all; else the fetch to wait for, and whether it is the caller's own.

        The last is None where an older fetch must end before a fresh one may start.
        """
        path = self._check(key)
        entry = self._cache.entries.get(key)
        now = self._clock()
        if since is None and entry is not None and now < entry.stale_until:
            if now < entry.fresh_until:
                return (entry, "hit"), None, None
            if self._breaker.down or now < self._ailing.get(key, self._lenient_until):
                return (entry, "stale"), None, None
        if self._breaker.down:
            raise self.unavailable(path, f"Vault does not answer ({self._breaker.reason})")
        flight, mine = self._cache.lead(key, since=since)
        if flight is None:
            return None, self._cache.under_way(key) or _done(), None
        if not mine:
            return None, flight, False
        current = self._cache.entries.get(key)
        if since is None and current is not None and self._clock() < current.fresh_until:
            self._cache.land(key, flight, current)  # a fetch has landed between the look and the lead
            return (current, "hit"), None, None
        group = path.split("/", 1)[0]
        if not self._workers.submit(group, now, lambda: self._fly(key, flight, correlation_id)):
            self._cache.land(key, flight, self.unavailable(path, "the manager is closed, or the process is ending"))
        return None, flight, True

    def _wait(self, flight: Flight, deadline: float) -> Outcome | None:
        """The outcome of *flight*; None if the time ran out first."""
        left = deadline - self._clock()
        try:
            return flight.result(min(PATIENCE, max(left, 0.0)))
        except FutureTimeout:
            pass
        self._breaker.suspect()
        try:
            return flight.result(max(deadline - self._clock(), 0.0))
        except FutureTimeout:
            return None

    async def _await(self, flight: Flight, deadline: float) -> Outcome | None:
        import asyncio  # noqa: PLC0415 (who awaits has loaded it; where nobody does, it is a fifth of the whole import)

        waiter = asyncio.wrap_future(flight)
        done, _ = await asyncio.wait([waiter], timeout=min(PATIENCE, max(deadline - self._clock(), 0.0)))
        if not done:
            self._breaker.suspect()
            done, _ = await asyncio.wait([waiter], timeout=max(deadline - self._clock(), 0.0))
        return waiter.result() if done else None

    def _finish(self, key: Key, outcome: Outcome | None, mine: bool, fresh: bool) -> tuple[Entry, str]:
        """Turn the end of a fetch into the getter's: the value, the stale one, or the caller's own copy of the error."""
        path = key if isinstance(key, str) else key[0]
        if isinstance(outcome, Entry):
            if outcome.holds is None or self._clock() < outcome.stale_until:
                return outcome, "miss" if mine else "hit"
            outcome = self.unavailable(path, "its lease was over before it arrived; raise the TTL of the role")
        if outcome is None:
            limited = "" if self._config.rate_limit is None else ", and VAULT_RATE_LIMIT if reads wait for their turn"
            outcome = self.unavailable(
                path, f"the server did not answer in time; raise the timeout if it is only slow{limited}"
            )
        if isinstance(outcome, SecretUnavailable) and not fresh:
            entry = self._cache.entries.get(key)
            if entry is not None and self._clock() < entry.stale_until:
                return entry, "stale"
        error = outcome.again()
        raise error

    def _check(self, key: Key) -> str:
        """The path of *key*; refused where it is malformed, or not on the list of those that may be read at all."""
        path, version = key if isinstance(key, tuple) else (key, 1)
        path = validate(path, self._config.namespace)
        if type(version) is not int or version < 1:  # a bool is no version
            raise InvalidSecretPath(
                path, f"the version asked for {path!r} is no whole number from 1; give one, or none"
            )
        allowed = self._config.allowed_paths
        if allowed and not any(fnmatchcase(path, pattern) for pattern in allowed):
            raise SecretAccessDenied(
                path, f"{path!r} is not on this process's list of allowed paths; add it to VAULT_ALLOWED_PATHS"
            )
        return path

    def begin(self, key: Key) -> None:
        """Start a fetch of *key* and do not wait for it."""
        self._start(key, None, None)

    @staticmethod
    def unavailable(path: str, cause: str) -> SecretUnavailable:
        return SecretUnavailable(path, f"the secret {path!r} cannot be had now: {cause}")

    # -- the fetch itself

    def _fly(self, key: Key, flight: Flight, correlation_id: str | None) -> Outcome:
        """Carry out a fetch on the calling thread and let everyone who waits for it have the outcome."""
        path = key if isinstance(key, str) else key[0]
        outcome: Outcome = self.unavailable(path, "a fault of this package; please report what the log says about it")
        started = self._clock()
        try:
            outcome = self._fetch(key, path, correlation_id)
        except SecretError as error:
            outcome = error.with_traceback(None)
        except VaultMiddlewareError as error:
            outcome = self.unavailable(path, str(error))
            self._breaker.suspect()
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
                raise self.unavailable(path, "the manager is closed")
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
            raise self.unavailable(path, "the manager is closed")
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
            raise self.unavailable(path, "the manager is closed")
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

    # -- for the renewer

    def refresh(self, key: Key) -> Outcome:
        """Fetch *key* anew on the calling thread; or wait for the fetch that is under way."""
        flight, mine = self._cache.lead(key)
        assert flight is not None
        if mine:
            return self._fly(key, flight, None)
        outcome = self._wait(flight, self._clock() + self._config.request_timeout)
        path = key if isinstance(key, str) else key[0]
        return outcome if outcome is not None else self.unavailable(path, "the server did not answer in time")

    def forget(self) -> None:
        """The manager has stopped: no value is kept."""
        self._last.clear()

    def wake(self) -> None:
        """The server answers again: no path is passed over any more, and what is stale is refreshed in its turn."""
        self._ailing.clear()
        self._lenient_until = self._clock() + AFTER_OUTAGE


def _done() -> Flight:
    """A fetch that has just ended."""
    flight = Flight(float("-inf"))
    flight.settle(VaultMiddlewareError("landed"))
    return flight
