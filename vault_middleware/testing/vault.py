"""A Vault in memory: what the client would ask a server for."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SecretAccessDenied, SecretNotFound, VaultUnavailable
from ..vault.client import Forbidden, Grant, LeaseGone, Reading, Token, VaultClient
from ..vault.paths import Mount

__all__ = ["MemoryVault", "leased"]


@dataclass(frozen=True, slots=True)
class leased:  # noqa: N801 (it reads as a function)
    """A secret with a lease, of *ttl* and at most *max_ttl* seconds; each lease after the first has values of its own.

    A plain dictionary at a path with ``/creds/`` in it is one too, with these defaults.
    """

    data: Mapping[str, Any] = field(repr=False)
    ttl: float = 3600.0
    max_ttl: float = math.inf
    renewable: bool = True


class _Secret:
    """What is at one path: its versions, or what its leases are made of."""

    def __init__(self, path: str, given: Mapping[str, Any] | leased) -> None:
        self.lease = given if isinstance(given, leased) else leased(given) if "/creds/" in path else None
        first = given.data if isinstance(given, leased) else given
        self.versions: list[dict[str, Any]] = [dict(first)]
        self.count = itertools.count(1)

    def fresh(self, number: int) -> dict[str, Any]:
        """The values as given, told apart by *number* from the second on: user and password, else every text."""
        given = self.versions[-1]
        if number == 1:
            return dict(given)
        pair = {"username", "password"} & set(given)
        names = pair or {name for name, value in given.items() if isinstance(value, str)}
        return {name: f"{value}-{number}" if name in names else value for name, value in given.items()}


class MemoryVault(VaultClient):
    """Stands in for a server and the client that asks it.

    Attributes
    ----------
    reads
        The paths that were read, in order; a cached read is none.
    is_down
        Whether every call fails.
    denied_paths
        The paths that the policy refuses.
    leases
        The ids of the leases that live.
    """

    def __init__(self, secrets: Mapping[str, Mapping[str, Any] | leased], *, clock: Callable[[], float]) -> None:
        # Nothing of the client's own is made: it would be ready to ask a server.
        self._clock = clock
        self._lock = threading.Lock()
        self._secrets = {path: _Secret(path, given) for path, given in secrets.items()}
        self._ids = itertools.count(1)
        self._lives: dict[str, tuple[float, float]] = {}
        self.reads: list[str] = []
        self.is_down = False
        self.denied_paths: set[str] = set()

    # -- for the test

    def put(self, path: str, given: Mapping[str, Any] | leased) -> None:
        """Write a secret: a new one, a new version, or what leases are made of from now on."""
        with self._lock:
            before = self._secrets.get(path)
            if before is None or before.lease is not None or isinstance(given, leased):
                self._secrets[path] = _Secret(path, given)
            else:
                before.versions.append(dict(given))

    def renew_values(self, path: str) -> None:
        """Write a new version of a static secret, with other values."""
        with self._lock:
            secret = self._known(path)
            if secret.lease is None:
                first = _Secret(path, secret.versions[0])
                secret.versions.append(first.fresh(len(secret.versions) + 1))

    def remove(self, path: str) -> None:
        """Remove the secret."""
        with self._lock:
            self._secrets.pop(path, None)

    @property
    def leases(self) -> list[str]:
        """The ids of the leases that live."""
        now = self._clock()
        return sorted(lease_id for lease_id, (ends, _) in list(self._lives.items()) if ends > now)

    def _known(self, path: str) -> _Secret:
        secret = self._secrets.get(path)
        if secret is None:
            known = ", ".join(map(repr, self._secrets)) or "none"
            raise SecretNotFound(path, f"there is no secret {path!r} in this test; it has {known}")
        return secret

    # -- what the client does

    def _answer(self) -> None:
        if self.is_down:
            raise VaultUnavailable("the test has taken Vault down; up() brings it back")

    def probe(self, timeout: float) -> None:
        """Fails while it is down."""
        self._answer()

    def oldest_call(self, now: float) -> float:
        """No call hangs."""
        return 0.0

    def close(self) -> None:
        """Nothing is open."""

    def log_in(self, timeout: float) -> Token:
        """A token without an end."""
        self._answer()
        return Token("token-of-the-test", 0.0, False, math.inf, "", "auth/test/login", owned=True)

    def renew_token(self, token: Token, timeout: float) -> Token:
        """The same token."""
        return token

    def revoke_token(self, token: Token, timeout: float) -> None:
        """The leases go with it."""
        self._answer()
        self._lives.clear()

    def token_is_valid(self, token: Token, timeout: float) -> bool:
        """It is."""
        self._answer()
        return True

    def mount_of(self, path: str, token: Token, timeout: float) -> Mount:
        """A database where the path is leased, else KV version 2."""
        self._answer()
        name = path.partition("/")[0]
        secret = self._secrets.get(path)
        return (
            Mount(f"{name}/", "kv", 2)
            if secret is None or secret.lease is None
            else Mount(f"{name}/", "database", None)
        )

    def read(
        self, path: str, token: Token, *, version: int | None, timeout: float, correlation_id: str | None
    ) -> Reading:
        """A version, or a new lease."""
        mount = self.mount_of(path, token, timeout)
        with self._lock:
            number = next(self._ids)
            self.reads.append(path)
            if path in self.denied_paths:
                raise Forbidden(mount)
            now, secret, request_id = self._clock(), self._known(path), f"request-{number}"
            if secret.lease is None:
                at = len(secret.versions) if version is None else version
                if at > len(secret.versions):
                    raise SecretNotFound(path, f"{path!r} has no version {at} in this test; put() adds versions")
                return Reading(mount, secret.versions[at - 1], now, 0.0, request_id, at)
            ttl = min(secret.lease.ttl, secret.lease.max_ttl)
            lease_id = f"{path}/{number}"
            self._lives[lease_id] = now + ttl, now + secret.lease.max_ttl
            data = secret.fresh(next(secret.count))
            return Reading(mount, data, now, 0.0, request_id, None, None, lease_id, ttl, secret.lease.renewable)

    def denied(self, path: str, mount: Mount | None) -> SecretAccessDenied:
        """As of a policy that does not know the path."""
        return SecretAccessDenied(path, f"the test denies {path!r}; allow() takes that back")

    def renew_lease(self, lease_id: str, increment: float, token: Token, timeout: float) -> Grant:
        """To its max TTL."""
        self._answer()
        now = self._clock()
        ends, at_most = self._lives.get(lease_id, (0.0, 0.0))
        if ends <= now:
            self._lives.pop(lease_id, None)
            raise LeaseGone("lease not found")
        granted = min(increment, at_most - now)
        self._lives[lease_id] = now + granted, at_most
        return Grant(granted, True, now)

    def revoke_lease(self, lease_id: str, token: Token, timeout: float) -> None:
        """It is gone."""
        self._answer()
        self._lives.pop(lease_id, None)

    def ends_with(self, token: Token, lease_id: str) -> bool:
        """As a server with one namespace has it."""
        return True

    def lease_line(self, call: str, lease_id: str) -> str:
        """No policy is in the way."""
        return f"permit sys/leases/{call}"
