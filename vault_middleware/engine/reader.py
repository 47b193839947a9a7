"""The way of one read that the cache cannot answer: one fetch a key, on our own threads, within the caller's time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from fnmatch import fnmatchcase

from ..cache import Entry, Flight, Key, Outcome, SecretCache
from ..config import SecretConfig
from ..errors import InvalidSecretPath, SecretAccessDenied, SecretUnavailable, VaultMiddlewareError
from ..vault.paths import validate
from ..workers import Workers
from .breaker import PATIENCE, Breaker
from .fetcher import Fetcher, unavailable
from .onloop import LoopWatch

__all__ = ["Reader"]


class Reader:
    """Answers the getters: from what the cache has after all, or by a fetch that all who want it wait for."""

    def __init__(
        self,
        config: SecretConfig,
        cache: SecretCache,
        fetcher: Fetcher,
        breaker: Breaker,
        workers: Workers,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._cache = cache
        self._fetcher = fetcher
        self._breaker = breaker
        self._workers = workers
        self._clock = clock
        self._loop_watch = LoopWatch()

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
        path = self.check(key)
        entry = self._cache.entries.get(key)
        now = self._clock()
        if since is None and entry is not None and now < entry.stale_until:
            if now < entry.fresh_until:
                return (entry, "hit"), None, None
            if self._breaker.down or self._fetcher.is_ailing(key, now):
                return (entry, "stale"), None, None
        if self._breaker.down:
            raise unavailable(path, f"Vault does not answer ({self._breaker.reason})")
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
        if not self._workers.submit(group, now, lambda: self._fetcher.fly(key, flight, correlation_id)):
            self._cache.land(key, flight, unavailable(path, "the manager is closed, or the process is ending"))
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
            outcome = unavailable(path, "its lease was over before it arrived; raise the TTL of the role")
        if outcome is None:
            limited = "" if self._config.rate_limit is None else ", and VAULT_RATE_LIMIT if reads wait for their turn"
            outcome = unavailable(
                path, f"the server did not answer in time; raise the timeout if it is only slow{limited}"
            )
        if isinstance(outcome, SecretUnavailable) and not fresh:
            entry = self._cache.entries.get(key)
            if entry is not None and self._clock() < entry.stale_until:
                return entry, "stale"
        error = outcome.again()
        raise error

    def check(self, key: Key) -> str:
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

    # -- for the renewer

    def refresh(self, key: Key) -> Outcome:
        """Fetch *key* anew on the calling thread; or wait for the fetch that is under way."""
        flight, mine = self._cache.lead(key)
        assert flight is not None
        if mine:
            return self._fetcher.fly(key, flight, None)
        outcome = self._wait(flight, self._clock() + self._config.request_timeout)
        path = key if isinstance(key, str) else key[0]
        return outcome if outcome is not None else unavailable(path, "the server did not answer in time")


def _done() -> Flight:
    """A fetch that has just ended."""
    flight = Flight(float("-inf"))
    flight.settle(VaultMiddlewareError("landed"))
    return flight
