"""What the server's answers mean: checked, typed, and with the two refusals that decide what happens next."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ..errors import VaultMiddlewareError, VaultUnavailable
from ..secret import freeze
from . import faults
from .paths import Mount
from .transport import Answer

__all__ = ["Forbidden", "Grant", "LeaseGone", "Reading", "Token", "failure", "given_token", "grant", "reading", "token"]

#: No duration is believed beyond this, in seconds (ten years): sums with it stay exact on a clock.
_LONGEST: Final = 10 * 365 * 86400.0

#: How deep a secret may be nested.
_DEEPEST: Final = 100


class Forbidden(VaultMiddlewareError):
    """403: the policy, or a token that is not valid any more; the server says the same for both."""

    def __init__(self, mount: Mount | None = None) -> None:
        super().__init__(mount)
        self.mount = mount


class LeaseGone(VaultMiddlewareError):
    """400 to a renewal: the lease is not there any more, or cannot be renewed. *reason* is one of two fixed texts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Token:
    """A token: ``lease_duration`` seconds as granted, ``deadline`` on the monotonic clock (infinite where it never ends).

    ``namespace`` is where its own calls go, ``auth_path`` where it comes from (for messages). ``owned``: a log-in of ours
    made it, so that it is ours to revoke.
    """

    value: str = field(repr=False)
    lease_duration: float
    renewable: bool
    deadline: float
    namespace: str
    auth_path: str
    owned: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """A secret as it was read. Durations are in seconds, ``started`` on the monotonic clock.

    ``ttl`` is that of a static role: how long its password is good still. ``age`` has been spent in a proxy's cache.
    """

    mount: Mount
    data: Mapping[str, Any] = field(repr=False)
    started: float
    age: float
    request_id: str
    version: int | None = None
    ttl: float | None = None
    lease_id: str = field(default="", repr=False)
    lease_duration: float = 0.0
    renewable: bool = False


class Grant(NamedTuple):
    """What a renewal granted, in seconds from ``started``."""

    lease_duration: float
    renewable: bool
    started: float


def token(answer: Answer, server: str, *, namespace: str, auth_path: str) -> Token:
    """The token of a log-in's or a renewal's answer."""
    auth = answer.body.get("auth")
    value = auth.get("client_token") if isinstance(auth, dict) else None
    # It goes into a header, and so must be what a header can hold.
    if not isinstance(auth, dict) or not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,65536}", value):
        raise faults.not_vault(server, "a log-in without a token in it")
    duration = _duration(auth.get("lease_duration"), server)
    return Token(
        value=value,
        lease_duration=duration,
        renewable=auth.get("renewable") is True,
        deadline=answer.started + duration if duration else math.inf,
        namespace=namespace,
        auth_path=auth_path,
        owned=True,
    )


def given_token(answer: Answer, value: str, server: str, *, namespace: str, auth_path: str) -> Token:
    """The token *value* that we were given, as its look-up describes it; it is not ours to revoke."""
    data = answer.body.get("data")
    if not isinstance(data, dict):
        raise faults.not_vault(server, "a look-up without data in it")
    ttl = _duration(data.get("ttl"), server)
    # A renewal is asked for what was granted at first, or the time left would shrink with every start.
    duration = _duration(data.get("creation_ttl", ttl), server)
    return Token(
        value=value,
        lease_duration=max(duration, ttl),
        renewable=data.get("renewable") is True,
        deadline=answer.started + ttl if ttl else math.inf,
        namespace=namespace,
        auth_path=auth_path,
        owned=False,
    )


def grant(answer: Answer, server: str) -> Grant:
    """The answer to a lease's renewal."""
    return Grant(
        _duration(answer.body.get("lease_duration"), server), answer.body.get("renewable") is True, answer.started
    )


def reading(answer: Answer, mount: Mount, server: str) -> Reading | None:
    """The secret in a read's answer; None where there is none (a deleted version)."""
    body = answer.body
    data = body.get("data")
    version: int | None = None
    if mount.kv_version == 2:
        if not isinstance(data, dict):
            raise faults.not_vault(server, "a secret without data in it")
        metadata = data.get("metadata")
        number = metadata.get("version") if isinstance(metadata, dict) else None
        version = number if isinstance(number, int) and not isinstance(number, bool) else None
        data = data.get("data")
        if data is None:
            return None
    lease_id = body.get("lease_id") or ""
    request_id = body.get("request_id") or ""
    if not isinstance(data, dict) or not isinstance(lease_id, str) or not isinstance(request_id, str):
        raise faults.not_vault(server, "a secret without data in it")
    frozen = _frozen(data, server)
    leased = bool(lease_id)
    static_role = mount.kv_version is None and not leased and "rotation_period" in data and "ttl" in data
    # A lease of no length could never be served; one that never ends has a length too.
    duration = _duration(body.get("lease_duration"), server) if leased else 0.0
    if leased and not duration:
        raise faults.not_vault(server, "a lease of 0 seconds")
    return Reading(
        mount=mount,
        data=frozen,
        started=answer.started,
        age=answer.age,
        request_id=request_id[:128],
        version=version,
        ttl=_duration(data["ttl"], server) if static_role else None,
        lease_id=lease_id if leased else "",
        lease_duration=duration,
        renewable=leased and body.get("renewable") is True,
    )


def failure(answer: Answer, server: str) -> VaultUnavailable:
    """What an answer says that is neither success nor a plain refusal; in our words, never the server's."""
    status = answer.status
    if status == 429:
        return VaultUnavailable(f"{server} limits our requests (429); lower the load, or raise the server's quota")
    if status in (412, 472, 473):
        return VaultUnavailable(
            f"{server} is a standby that cannot answer now ({status}); set VAULT_ADDR to the active node or a balancer"
        )
    if status >= 500:
        return VaultUnavailable(
            f"{server} failed at it ({status}); check the server's log, and what the engine relies on (its database, say)"
        )
    if status in (400, 405):
        return VaultUnavailable(
            f"{server} cannot do what was asked ({status}); check the path and the engine's settings"
        )
    return faults.not_vault(server, f"status {status}")


def _duration(value: object, server: str) -> float:
    """Seconds; anything but a finite number from 0 is none of Vault's."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(min(value, _LONGEST))
    raise faults.not_vault(server, "a duration that is none")


def _frozen(data: dict[str, Any], server: str) -> Any:
    # Level by level: to find it out by a RecursionError costs whoever comes by in that moment.
    level: list[Any] = [data]
    for _ in range(_DEEPEST):
        level = [
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not level:
            return freeze(data)
    raise faults.not_vault(server, "a secret nested deeper than any of Vault's")
