"""A manager over a client that asks no server: for tests about what happens to a secret once it has been read.

::

    vault = FakeVault()
    with manager_over(vault) as manager:
        manager.get_secret(STATIC)["value"]            # "value-1"
        manager.get_dynamic_secret(DYNAMIC)["username"] # "user-2", with the password "password-2"
"""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from prometheus_client import CollectorRegistry

from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.engine import engine
from vault_middleware.errors import SecretAccessDenied, SecretNotFound, VaultUnavailable
from vault_middleware.vault.client import Grant, Reading, Token
from vault_middleware.vault.paths import Mount

__all__ = ["DYNAMIC", "STATIC", "Clock", "FakeVault", "audit_lines", "manager_over"]

STATIC = "app/key"
DYNAMIC = "db/creds/app"

#: Seconds; of a lease.
LEASE = 60.0


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeVault:
    """Stands for `VaultClient`: each read of ``app/…`` gives a new value, each of ``db/…`` a new lease; else not found.

    Attributes
    ----------
    reads
        The paths that were read, in order.
    correlation_ids
        What came along with them.
    revoked
        The ids of the leases that were revoked.
    tokens_revoked
        How many tokens were.
    down
        Whether every call fails.
    open
        Reads wait for it; set at first.
    waiting
        Released once for each read that has begun.
    """

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.correlation_ids: list[str | None] = []
        self.revoked: list[str] = []
        self.tokens_revoked = 0
        self.down = False
        self.open = threading.Event()
        self.open.set()
        self.waiting = threading.Semaphore(0)
        self._serial = itertools.count(1)
        self._clock: Callable[[], float] = time.monotonic

    def __call__(self, _config: SecretConfig, *, clock: Callable[[], float], **_rest: Any) -> Self:
        self._clock = clock
        return self

    def _answer(self) -> None:
        if self.down:
            raise VaultUnavailable("the fake is down")

    def probe(self, _timeout: float) -> None:
        self._answer()

    def close(self) -> None:
        """Nothing is open."""

    def oldest_call(self, _now: float) -> float:
        return 0.0

    def log_in(self, _timeout: float) -> Token:
        self._answer()
        return Token("canary-token", 0.0, False, math.inf, "", "auth/kubernetes/login", True)

    def renew_token(self, token: Token, _timeout: float) -> Token:
        return token

    def revoke_token(self, _token: Token, _timeout: float) -> None:
        self.tokens_revoked += 1

    def token_is_valid(self, _token: Token, _timeout: float) -> bool:
        return True

    def mount_of(self, path: str, _token: Token, _timeout: float) -> Mount:
        self._answer()
        name = path.partition("/")[0]
        return Mount(f"{name}/", "database", None) if name == "db" else Mount(f"{name}/", "kv", 2)

    def read(
        self, path: str, token: Token, *, version: int | None, timeout: float, correlation_id: str | None
    ) -> Reading:
        started = self._clock()
        mount = self.mount_of(path, token, timeout)
        self.reads.append(path)
        self.correlation_ids.append(correlation_id)
        self.waiting.release()
        self.open.wait(30)
        self._answer()
        number = next(self._serial)
        request_id = f"fetch-{number}"
        if mount.kv_version is None:
            pair = {"username": f"user-{number}", "password": f"password-{number}"}
            return Reading(mount, pair, started, 0.0, request_id, None, None, f"{path}/{number}", LEASE, True)
        if not path.startswith("app/"):
            raise SecretNotFound(path, f"there is no secret {path!r}; check the path")
        return Reading(mount, {"value": f"value-{number}"}, started, 0.0, request_id, version or number)

    def denied(self, path: str, _mount: Mount | None) -> SecretAccessDenied:
        return SecretAccessDenied(path, f"the policy does not permit {path!r}; add a line")

    def renew_lease(self, _lease_id: str, increment: float, _token: Token, _timeout: float) -> Grant:
        self._answer()
        return Grant(increment, True, self._clock())

    def revoke_lease(self, lease_id: str, _token: Token, _timeout: float) -> None:
        self._answer()
        self.revoked.append(lease_id)

    def ends_with(self, _token: Token, _lease_id: str) -> bool:
        return True

    def lease_line(self, call: str, _lease_id: str) -> str:
        return f"add {call}"


@contextmanager
def manager_over(
    vault: FakeVault, *, clock: Callable[[], float] = time.monotonic, audit: Path | None = None, **settings: Any
) -> Iterator[SecretsManager]:
    """A manager over *vault*, not started yet, with metrics of its own; *audit* is where its lines go."""
    settings.setdefault("vault_addr", "http://127.0.0.1:1")
    config = SecretConfig(audit_log="off" if audit is None else str(audit), **settings)
    with patch.object(engine, "VaultClient", vault):
        manager = SecretsManager(config, registry=CollectorRegistry(), clock=clock)
        try:
            yield manager
        finally:
            vault.open.set()
            manager.close()


def audit_lines(audit: Path, event: str) -> list[dict[str, Any]]:
    """The lines about *event*, so far; one that is being written is none yet."""
    lines = [json.loads(text) for text in audit.read_text().rpartition("\n")[0].splitlines()]
    return [line for line in lines if line["event"] == event]
