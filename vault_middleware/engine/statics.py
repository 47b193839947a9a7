"""The life of static secrets: published, refreshed ahead of their TTL as long as someone reads them."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..cache import Entry, Key, Outcome, SecretCache
from ..config import SecretConfig
from ..errors import SecretUnavailable
from ..renewal.renewer import Renewer, Task
from ..renewal.schedule import after_outage, refresh
from ..retry import Backoff, Uniform, for_lease
from ..secret import Secret
from ..vault.client import Reading

__all__ = ["Statics", "same_values"]

#: A static secret that nobody has read for so many TTLs is not refreshed any more.
USED_WITHIN = 12

#: A static database role is read again so long after its rotation was due, and so often until the new password shows
#: (seconds; at the instant of the rotation the server may still answer with the old one).
ROLE_SETTLES, ROLE_POLL, ROLE_PATIENCE = 0.5, 0.25, 10.0

#: Over so many seconds the workers of one server spread their first fetches in the background.
FORK_SPREAD = 2.0


def same_values(one: Secret, other: Secret, reading: Reading) -> bool:
    """Whether *reading* changed nothing from *one* to *other*; that a static role's time runs is no change."""
    if reading.ttl is None:
        return one == other
    return {**one, "ttl": None} == {**other, "ttl": None}


class Statics:
    """Keeps the static entries on the renewer's schedule; *fetch* reads a path anew and publishes it (the reader's part)."""

    def __init__(
        self,
        config: SecretConfig,
        cache: SecretCache,
        renewer: Renewer,
        *,
        uniform: Uniform,
        clock: Callable[[], float] = time.monotonic,
        server_down: Callable[[], bool],
        fragment: Callable[[Secret], str],
    ) -> None:
        self._config = config
        self._cache = cache
        self._renewer = renewer
        self._uniform = uniform
        self._clock = clock
        self._server_down = server_down
        self._fragment = fragment
        self.fetch: Callable[[Key], Outcome]
        self._tasks: dict[Key, Task] = {}
        self._waiting: dict[Key, float] = {}
        self._backoffs: dict[Key, Backoff] = {}

    def publish(self, key: Key, path: str, reading: Reading, old: Entry | None) -> Entry:
        """Make *reading* the current entry of *key*, unless a later fetch has overtaken it; the current entry."""
        if old is not None and old.fetched > reading.started:
            return old
        secret = Secret(path, reading.data, version=reading.version, request_id=reading.request_id)
        ttl, stale = self._config.cache_ttl, self._config.cache_stale_ttl
        again = refresh(ttl, self._uniform)
        if reading.ttl is not None:
            # A static role's password is good until its rotation; then the new one is read as soon as it shows.
            left = max(reading.ttl - reading.age, 0.0)
            if left < ROLE_SETTLES and old is not None and same_values(old.secret, secret, reading):
                # Where the rotation does not come, the database being down, the polls get rarer.
                waits = reading.started - self._waiting.setdefault(key, reading.started)
                again = min(again, max(ROLE_POLL, waits / 4))
            else:
                self._waiting.pop(key, None)
                again = min(again, left + ROLE_SETTLES)
            ttl, stale = min(ttl, left + ROLE_PATIENCE), 0.0
        entry = Entry(
            secret,
            fetched=reading.started,
            fresh_until=reading.started + ttl,
            stale_until=reading.started + ttl + stale,
            fragment=self._fragment(secret),
            last_read=reading.started if old is None else old.last_read,  # to refresh it is not to read it
        )
        self._cache.put(key, entry)
        self._backoffs.pop(key, None)
        if key not in self._tasks:
            self._tasks[key] = self._task(key, reading.mount.path)
        self._renewer.schedule(self._tasks[key], self._clock() + again)
        return entry

    def adopt(self) -> None:
        """Take care of what was inherited from a parent process; the first refreshes of its children spread out."""
        now = self._clock()
        for key, entry in list(self._cache.entries.items()):
            self._tasks[key] = self._task(key, entry.secret.path.split("/", 1)[0])
            due = min(entry.fresh_until, now + FORK_SPREAD)
            self._renewer.schedule(self._tasks[key], now + self._uniform(0.0, max(0.0, due - now)))

    def wake(self) -> None:
        """The server answers again: what could not be refreshed meanwhile is, soon; see `after_outage`."""
        now = self._clock()
        for key in list(self._backoffs):
            self._backoffs.pop(key, None)
            task = self._tasks.get(key)
            if task is not None:
                self._renewer.hasten(task, now + after_outage(float("inf"), self._uniform))  # the stale value serves

    def _task(self, key: Key, group: str) -> Task:
        care = _Care(self, key)
        return Task(care.refresh, group=group, deadline=care.deadline)

    def _fresh_until(self, key: Key) -> float:
        entry = self._cache.entries.get(key)
        return 0.0 if entry is None else entry.fresh_until

    def _forget(self, key: Key) -> None:
        self._tasks.pop(key, None)
        self._backoffs.pop(key, None)
        self._waiting.pop(key, None)

    def _refresh(self, key: Key) -> float | None:
        """Read a secret again, if someone still uses it; when to try again after a failure."""
        entry = self._cache.entries.get(key)
        ttl = self._config.cache_ttl
        if entry is None or entry.holds is not None or self._clock() - entry.last_read > USED_WITHIN * ttl:
            self._forget(key)
            return None
        outcome: Outcome
        if self._server_down():
            outcome = SecretUnavailable(entry.secret.path, "the server is known to be down")
        else:
            outcome = self.fetch(key)
        if isinstance(outcome, Entry):
            return None  # scheduled where it was published
        if not isinstance(outcome, SecretUnavailable):
            self._forget(key)  # the server refused it: not found, or denied
            return None
        backoff = self._backoffs.get(key)
        if backoff is None:
            # While it is fresh the tries race its end; past that there is no deadline, and they keep a TTL's pace.
            backoff = for_lease(lambda: entry.fresh_until - self._clock(), self._uniform)
            self._backoffs[key] = backoff
        pause = backoff.failed(outcome)
        if pause is not None:
            return self._clock() + pause
        self._backoffs[key] = for_lease(lambda: float("inf"), self._uniform)
        return self._clock() + max(1.0, min(ttl, 10.0)) * self._uniform(0.75, 1.0)


class _Care:
    """What the renewer calls for one entry; there is one for each, and closures would take three times its memory."""

    __slots__ = ("_key", "_statics")

    def __init__(self, statics: Statics, key: Key) -> None:
        self._statics = statics
        self._key = key

    def refresh(self) -> float | None:
        """Fetch the entry anew; when next."""
        return self._statics._refresh(self._key)

    def deadline(self) -> float:
        """When it is fresh no longer."""
        return self._statics._fresh_until(self._key)
