"""Facts about what happened, without a value or a token in them; telemetry listens, and changes none.

Log line, audit line and metric are made from the same fact, so they cannot drift apart. (They are not frozen dataclasses, as
those take three times as long to be made, which each import would pay.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

__all__ = [
    "Emit",
    "Event",
    "LeakFound",
    "LeaseRenewalFailed",
    "LeaseRenewed",
    "LeaseRevocationFailed",
    "LeaseRevoked",
    "LeaseRotated",
    "LeasesLeft",
    "LoggedIn",
    "LoginFailed",
    "ServerDown",
    "ServerUp",
    "Started",
    "Stopped",
    "TokenRenewalFailed",
    "TokenRenewed",
    "TokenRevocationFailed",
    "TokenRevoked",
]


@dataclass(slots=True)
class Event:
    """Something that happened. ``name`` is the ``event`` of the audit line."""

    name: ClassVar[str] = "event"


@dataclass(slots=True)
class Started(Event):
    """The manager runs."""

    name: ClassVar[str] = "start"
    pid: int


@dataclass(slots=True)
class Stopped(Event):
    """The manager was closed; *hook* is what closed it (``lifespan``, ``atexit``, …)."""

    name: ClassVar[str] = "stop"
    hook: str
    pid: int


@dataclass(slots=True)
class LoggedIn(Event):
    """A log-in gave a token that is good for *ttl* seconds."""

    name: ClassVar[str] = "login"
    method: str
    role: str
    auth_path: str
    ttl: float


@dataclass(slots=True)
class LoginFailed(Event):
    """A log-in failed; the next try comes after *retry_in* seconds, where one is planned."""

    name: ClassVar[str] = "login_failed"
    method: str
    role: str
    reason: str
    retry_in: float | None


@dataclass(slots=True)
class TokenRenewed(Event):
    """The token is good for *ttl* seconds more."""

    name: ClassVar[str] = "token_renewed"
    ttl: float


@dataclass(slots=True)
class TokenRenewalFailed(Event):
    """Renewing the token failed; it is good for *ttl_left* seconds still."""

    name: ClassVar[str] = "token_renewal_failed"
    reason: str
    ttl_left: float


@dataclass(slots=True)
class TokenRevoked(Event):
    """A token of ours was revoked, because we stopped or a newer one took over."""

    name: ClassVar[str] = "token_revoked"


@dataclass(slots=True)
class TokenRevocationFailed(Event):
    """A token of ours could not be revoked; it ends with its own time, in at most *ttl_left* seconds."""

    name: ClassVar[str] = "token_revocation_failed"
    reason: str
    ttl_left: float


@dataclass(slots=True)
class LeaseRenewed(Event):
    """A lease is good for *ttl* seconds more."""

    name: ClassVar[str] = "lease_renewed"
    secret_path: str
    lease_id: str = field(repr=False)
    ttl: float = 0.0


@dataclass(slots=True)
class LeaseRenewalFailed(Event):
    """Renewing or replacing a lease failed; what is served is good for *ttl_left* seconds still."""

    name: ClassVar[str] = "lease_renewal_failed"
    secret_path: str
    lease_id: str = field(repr=False)
    reason: str = ""
    ttl_left: float = 0.0
    retry_in: float | None = None


@dataclass(slots=True)
class LeaseRotated(Event):
    """A new lease took the place of an old one, which drains."""

    name: ClassVar[str] = "lease_rotated"
    secret_path: str
    lease_id: str = field(repr=False)
    old_lease_id: str = field(repr=False)
    reason: str = ""
    ttl: float = 0.0


@dataclass(slots=True)
class LeaseRevoked(Event):
    """A lease of ours was revoked after its last holder had ended."""

    name: ClassVar[str] = "lease_revoked"
    secret_path: str
    lease_id: str = field(repr=False)


@dataclass(slots=True)
class LeaseRevocationFailed(Event):
    """A lease could not be revoked; it ends with its own time, in at most *ttl_left* seconds."""

    name: ClassVar[str] = "lease_revocation_failed"
    secret_path: str
    lease_id: str = field(repr=False)
    reason: str = ""
    ttl_left: float = 0.0


@dataclass(slots=True)
class LeasesLeft(Event):
    """The stop did not come to *count* leases: they end in at most *ttl_left* seconds; 0: with the token, which is revoked."""

    name: ClassVar[str] = "leases_left"
    count: int
    reason: str
    ttl_left: float


@dataclass(slots=True)
class ServerDown(Event):
    """The server does not answer; from now on nobody waits to find out."""

    name: ClassVar[str] = "server_down"
    reason: str


@dataclass(slots=True)
class ServerUp(Event):
    """The server answers again, after *seconds*."""

    name: ClassVar[str] = "server_up"
    seconds: float


@dataclass(slots=True)
class LeakFound(Event):
    """The tripwire found a live value of *secret_path* in a ``header``, ``body`` or ``log`` record; what became of that."""

    name: ClassVar[str] = "leak_found"
    secret_path: str
    where: str
    action: str
    request_id: str


#: Takes a fact; the telemetry listeners behind it never raise.
Emit = Callable[[Event], None]
