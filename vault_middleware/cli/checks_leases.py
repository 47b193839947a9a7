"""Leases: one is made, renewed, looked at and revoked again, which shows what the app will live with."""

from __future__ import annotations

import time
from typing import Final

from ..errors import VaultMiddlewareError
from ..vault import policies
from ..vault.client import Forbidden, LeaseGone, Reading
from ..vault.paths import Mount
from .checks_access import Access, explain_read
from .findings import Findings
from .wanted import Wanted

__all__ = ["check_lease"]

#: A renewal comes at the latest after this part of a lease's time, and then this part is left for tries.
_LATEST: Final = 0.77

#: A renewal that adds less than this part of the lease's time adds nothing, as the server counts whole seconds.
_NOTHING: Final = 0.1

#: The part of the time in which one connection would be busy with renewals from which they are too many.
_BUSY: Final = 0.5


def check_lease(access: Access, wanted: Wanted, mount: Mount, *, processes: int) -> None:
    """Read *wanted*, and renew and revoke the lease that it gives. *processes* of the app would each have one."""
    path = wanted.path
    try:
        reading = access.client.read(
            path, access.token, version=None, timeout=access.config.client_timeout, correlation_id=None
        )
    except VaultMiddlewareError as error:
        explain_read(access, path, mount, error)
        return
    step = f"read {path}"
    if not reading.lease_id:
        how = "a static role, whose password is read again when it rotates" if reading.ttl is not None else "no lease"
        access.findings.ok(step, f"there, in {mount.path} ({mount.type}): {how}")
        return
    access.findings.ok(step, f"there, in {mount.path} ({mount.type}), with a lease of {reading.lease_duration:.0f} s")
    if access.config.auth_method == "proxy":
        access.findings.ok(f"renew {path}", "the proxy's business, which shares the lease with others")
        return
    try:
        took = _check_renewal(access, path, reading)
        _check_length(access, path, reading, took, processes)
    finally:
        _revoke(access, path, reading)


def _check_renewal(access: Access, path: str, reading: Reading) -> float:
    """How long the renewal took, in seconds; twice the duration is asked for, to see how far it can go."""
    findings, step, duration = access.findings, f"renew {path}", reading.lease_duration
    if not reading.renewable:
        findings.warn(
            step,
            "lease-not-renewable",
            "the lease cannot be renewed",
            why=f"the app replaces it every {0.75 * duration:.0f} s, with a new user each time",
            mend="nothing, if that is meant; else see the engine's role",
        )
        return 0.0
    before = time.monotonic()
    failure: VaultMiddlewareError
    try:
        grant = access.client.renew_lease(reading.lease_id, 2 * duration, access.token, access.config.client_timeout)
    except VaultMiddlewareError as error:
        failure = error
    else:
        took = time.monotonic() - before
        _check_maximum(findings, step, duration, grant.lease_duration, _write_role(access, path))
        return took
    if isinstance(failure, Forbidden):
        place = access.place
        line = policies.lease_line("renew", lease_at=place.leases_at, token_at=place.token_at)
        other = f", and the token is one of the {'namespace ' + place.token_at if place.token_at else 'root'}"
        findings.fail(
            step,
            "renewal-not-permitted",
            "the policy does not permit it"
            + (
                f": the lease lives in the namespace {place.leases_at!r}{other}"
                if place.leases_at != place.token_at
                else ""
            ),
            why="no lease is kept: each is replaced near its end, with a new user every time",
            mend=f"add this line to {policies.where(place.token_at)}: {line}",
        )
    elif isinstance(failure, LeaseGone):
        findings.warn(
            step,
            "lease-not-renewable",
            f"the server says: {failure.reason}",
            why=f"the app replaces it every {0.75 * duration:.0f} s, with a new user each time",
            mend="nothing, if that is meant; else see the engine's role",
        )
    else:
        found, _, mend = str(failure).partition("; ")
        findings.fail(step, "renewal-failed", found, why="leases end with their time", mend=mend)
    return 0.0


def _write_role(access: Access, path: str) -> str:
    """The command that changes the engine's role behind a path such as ``database/creds/NAME``."""
    namespace = access.place.leases_at
    at = path if namespace else access.place.full(path)
    return f"vault write {f'-namespace={namespace} ' if namespace else ''}{at.replace('/creds/', '/roles/', 1)}"


def _check_maximum(findings: Findings, step: str, duration: float, granted: float, write: str) -> None:
    if granted <= duration * (1 + _NOTHING):
        findings.warn(
            step,
            "ttl-at-max-ttl",
            f"twice its {duration:.0f} s was asked for, and {granted:.0f} s granted: its TTL is its max TTL already, so a "
            "renewal adds nothing",
            why="no lease is ever kept: every process gets a new user once a TTL, and its connections are to be made anew",
            mend=f"raise max_ttl of the engine's role to several times its default_ttl: {write} max_ttl={10 * duration:.0f}s "
            "(and see the mount's max_lease_ttl)",
        )
    elif granted < 1.9 * duration:
        findings.ok(step, f"permitted; its max TTL is {granted:.0f} s, at which it is replaced")
    else:
        findings.ok(step, f"permitted, and twice its {duration:.0f} s was granted")


def _check_length(access: Access, path: str, reading: Reading, took: float, processes: int) -> None:
    """Whether the lease is long enough for renewals to be tried again, and for the server to keep up with them."""
    config, duration, step = access.config, reading.lease_duration, f"lease of {path}"
    left = (1 - _LATEST) * duration - config.lease_min_validity
    busy = processes * took / (_LATEST * duration)
    mend = (
        f"raise default_ttl of the engine's role: {_write_role(access, path)} default_ttl="
        f"{(config.client_timeout + config.lease_min_validity) / (1 - _LATEST) + 1:.0f}s or more"
    )
    if busy > _BUSY:
        access.findings.fail(
            step,
            "ttl-too-short",
            f"{processes} processes would renew {processes / (_LATEST * duration):.0f} times a second, and one renewal took "
            f"{took * 1000:.0f} ms",
            why="the server spends its time on renewals, and leases are lost",
            mend=f"raise default_ttl to {processes * took / (0.1 * _LATEST):.0f}s or more, or share leases: a Vault or "
            "OpenBao Proxy with VAULT_AUTH_METHOD=proxy",
        )
    elif left < max(0.5, 2 * took):
        access.findings.fail(
            step,
            "ttl-too-short",
            f"of its {duration:.0f} s, {max(0.0, left):.1f} s are left when a renewal may come: no second try fits",
            why="one slow answer, and requests wait or get credentials that end under their hands",
            mend=mend,
        )
    elif left < config.client_timeout:
        access.findings.warn(
            step,
            "ttl-short",
            f"of its {duration:.0f} s, {left:.1f} s are left when a renewal may come, and one call may take "
            f"{config.client_timeout:g} s (VAULT_CLIENT_TIMEOUT)",
            why="if that call hangs, the lease ends before a second try",
            mend=mend + "; or lower VAULT_CLIENT_TIMEOUT",
        )
    elif access.token.owned and 0 < access.token.lease_duration < duration:
        access.findings.warn(
            step,
            "token-shorter-than-lease",
            f"it has {duration:.0f} s, and the token that made it {access.token.lease_duration:.0f} s",
            why="a lease ends with its token, so it is never as long as it says",
            mend=f"set token_ttl of the role to {duration:.0f}s or more",
        )
    else:
        access.findings.ok(step, f"{duration:.0f} s are enough for {processes} process{'es' if processes > 1 else ''}")


def _revoke(access: Access, path: str, reading: Reading) -> None:
    step, place = f"revoke {path}", access.place
    failure: VaultMiddlewareError
    try:
        access.client.revoke_lease(reading.lease_id, access.token, access.config.client_timeout)
    except VaultMiddlewareError as error:
        failure = error
    else:
        access.findings.ok(step, "permitted, and done: nothing of this check is left")
        return
    if isinstance(failure, Forbidden):
        line = policies.lease_line("revoke", lease_at=place.leases_at, token_at=place.token_at)
        access.findings.warn(
            step,
            "revocation-not-permitted",
            "the policy does not permit it",
            why="a replaced lease, and its user, stay until their time is over or our token is revoked",
            mend=f"add this line to {policies.where(place.token_at)}: {line}",
        )
    else:
        found, _, mend = str(failure).partition("; ")
        access.findings.warn(step, "revocation-failed", found, why="the lease stays to its end", mend=mend)
