"""Whether the token may read each path, and whether there is something: which rule is missing, and what was mixed up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from ..config import SecretConfig
from ..errors import InvalidSecretPath, SecretError, VaultMiddlewareError
from ..vault import policies
from ..vault.client import Forbidden, Reading, Token, VaultClient
from ..vault.inspection import Inspector, Permission
from ..vault.paths import Mount, hint, validate
from .findings import Findings
from .rules import Place, spellings
from .wanted import Wanted

__all__ = ["Access", "check_access", "explain_read"]

_WHY: Final = "the app gets SecretAccessDenied for it"
_GONE: Final = "the app gets SecretNotFound for it"


@dataclass(frozen=True, slots=True)
class Access:
    """What the checks of one token share."""

    client: VaultClient
    inspector: Inspector
    config: SecretConfig
    place: Place
    token: Token
    findings: Findings


def check_access(access: Access, paths: Sequence[Wanted], looked_up: Mapping[str, Any]) -> list[tuple[Wanted, Mount]]:
    """The paths that may be read and are no KV secrets: what gives leases. KV secrets are read."""
    findings, place = access.findings, access.place
    permissions = access.inspector.permissions(access.token)
    capabilities = access.inspector.capabilities(
        access.token, [place.in_policy(form) for each in paths for form in _forms(each.path, place)]
    )
    # The server does not list rules with a + in them, so that it lists none is not enough.
    if permissions == [] and paths and not any((capabilities or {}).values()) and not _root(looked_up):
        named = [each for each in looked_up.get("policies") or () if each != "default"]
        of = f"its policies {', '.join(map(str, named))} permit nothing" if named else "it has none but the default"
        findings.fail(
            "policy",
            "policy-not-attached",
            f"no policy of its own counts for the token: {of}",
            why="it may read no secret at all",
            mend=f"vault-middleware policy > FILE; write it in {policies.where(place.token_at)}: vault policy write "
            f"{_namespaced(place.token_at)}{access.config.vault_role} FILE; and name it in the role's token_policies",
        )
    elif permissions is not None:
        findings.ok("policy", f"{len(permissions)} rules beyond the default's count for the token")
    found: list[tuple[Wanted, Mount]] = []
    for each in paths:
        mount = _check_one(access, each, capabilities, permissions)
        if mount is not None and mount.kv_version is None:
            found.append((each, mount))
    return found


def _check_one(
    access: Access,
    wanted: Wanted,
    capabilities: Mapping[str, frozenset[str]] | None,
    permissions: list[Permission] | None,
) -> Mount | None:
    """The mount, if the path can be read."""
    findings, place, path = access.findings, access.place, wanted.path
    # It may come from a log, and is printed.
    step = f"read {path if path.isprintable() else repr(path)}"
    try:
        validate(path, access.config.namespace)
    except InvalidSecretPath as error:
        found, _, mend = str(error).partition("; ")
        findings.fail(step, "path-invalid", found, why="it is never sent", mend=mend or "correct the path")
        return None
    globs = access.config.allowed_paths
    if globs and not any(fnmatchcase(path, glob) for glob in globs):
        findings.fail(
            step,
            "path-not-allowed",
            "VAULT_ALLOWED_PATHS does not have it",
            why="the app refuses it by itself, whatever the policy says",
            mend=f"add it: VAULT_ALLOWED_PATHS={','.join((*globs, path))}",
        )
        return None
    mount = access.inspector.mount(place.full(path), access.token)
    needed = [place.in_policy(each) for each in _needed(path, mount, place)]
    granted = None if capabilities is None else frozenset().union(*(capabilities.get(each, ()) for each in needed))
    if mount is not None and access.config.kv_version not in (None, mount.kv_version) and mount.kv_version is not None:
        findings.fail(
            step,
            "kv-version-mixed-up",
            f"VAULT_KV_VERSION is {access.config.kv_version}, and the mount {mount.path} is of KV version "
            f"{mount.kv_version}",
            why="the app asks at the wrong place, with or without data/",
            mend="unset VAULT_KV_VERSION: the version is found out by itself",
        )
        return None
    readable = granted is not None and bool(granted & {"read", "root", "sudo"})
    if mount is None and readable:
        _no_mount(access, path)
        return None
    if granted is not None and not readable:
        _not_permitted(access, path, mount, capabilities or {}, permissions)
        return None
    if mount is None:
        _not_permitted(access, path, None, {}, permissions)
        return None
    if mount.kv_version is not None:
        _read(access, path, mount)
    return mount


def _read(access: Access, path: str, mount: Mount) -> None:
    step = f"read {path}"
    try:
        reading = access.client.read(
            path, access.token, version=None, timeout=access.config.client_timeout, correlation_id=None
        )
    except VaultMiddlewareError as error:
        explain_read(access, path, mount, error)
    else:
        _found(access, step, reading, mount)


def _found(access: Access, step: str, reading: Reading, mount: Mount) -> None:
    version = "" if reading.version is None else f", version {reading.version}"
    access.findings.ok(step, f"there, in {mount.path} (KV version {mount.kv_version}){version}")


def explain_read(access: Access, path: str, mount: Mount, error: VaultMiddlewareError) -> None:
    """A read that was permitted, and failed."""
    findings, step = access.findings, f"read {path}"
    if isinstance(error, Forbidden):
        error = access.client.denied(path, mount)
        found, _, mend = str(error).partition("; ")
        findings.fail(step, "path-not-covered", found, why=_WHY, mend=mend)
        return
    found, _, mend = str(error).partition("; ")
    if isinstance(error, SecretError):
        if _has_data(access, path, mount):
            return
        findings.fail(
            step,
            "secret-missing",
            found,
            why=_GONE,
            mend=f"{mend}; vault kv put {_namespaced(access.place.leases_at)}{_kv_path(access.place, path)} key=value"
            if mount.kv_version
            else f"{mend}; vault list {_namespaced(access.place.leases_at)}{access.place.in_policy(mount.path)}roles",
        )
        return
    if mount.kv_version is None:
        findings.fail(
            step,
            "database-down",
            f"the server answers, but its engine {mount.path} ({mount.type}) does not get what it relies on: {found}",
            why="no new credentials can be made; those that are there serve to their end",
            mend="check that the database is up, that the server reaches it, and its credentials: vault read "
            f"{_namespaced(access.place.leases_at)}{mount.path.removeprefix(_slashed(access.place.leases_at))}config/NAME; "
            "and after a repair vault write -force …/reset/NAME, which connects anew",
        )
        return
    findings.fail(step, "read-failed", found, why="the app gets SecretUnavailable for it", mend=mend)


def _has_data(access: Access, path: str, mount: Mount | None) -> bool:
    """Whether *path* has the ``data/`` of KV version 2 in it, which is put in by itself; then that is the finding."""
    if mount is None or mount.kv_version != 2 or not access.place.full(path)[len(mount.path) :].startswith("data/"):
        return False
    access.findings.fail(
        f"read {path}",
        "kv-version-mixed-up",
        "the path has data/ in it, which the app adds by itself where a mount is of KV version 2",
        why=_GONE,
        mend=f"read {path.replace('/data/', '/', 1)!r}: a path is written as vault kv get takes it",
    )
    return True


def _no_mount(access: Access, path: str) -> None:
    """The token may read there, and the server knows no mount there."""
    place, step, first = access.place, f"read {path}", path.partition("/")[0]
    elsewhere = access.inspector.mount(path, access.token) if place.secrets_at else None
    if elsewhere is not None:
        _mixed_up(
            access,
            step,
            f"no mount {place.full(first)}/, but there is {elsewhere.path} without the namespace in front: a "
            "client with an X-Vault-Namespace header reads it there, where the server has no namespaces",
            "set VAULT_NAMESPACE= (empty), or mount the engine below it",
        )
        return
    access.findings.fail(
        step,
        "mount-missing",
        f"the policy permits it, but there is no secrets engine at {place.full(first)}/",
        why=_GONE,
        mend=f"check the path: vault secrets list {_namespaced(place.leases_at).strip()}; or mount it: vault secrets enable "
        f"{_namespaced(place.leases_at)}-path={_kv_path(place, first)} kv-v2",
    )


def _not_permitted(
    access: Access,
    path: str,
    mount: Mount | None,
    capabilities: Mapping[str, frozenset[str]],
    permissions: list[Permission] | None,
) -> None:
    """The policy lacks the rule; or has it in a spelling that does not count here."""
    place, step = access.place, f"read {path}"
    line = _missing(path, mount, place)

    def permitted(full: str) -> bool:
        return "read" in capabilities.get(place.in_policy(full), frozenset())

    plain, second, doubled, doubled_second, bare, bare_second = _forms(path, place)
    where = policies.where(place.token_at)
    if _has_data(access, path, mount):
        return
    if hint(path, place.secrets_at):
        _mixed_up(
            access,
            step,
            f"the path repeats the namespace {place.secrets_at!r}, which is put in front of it anyway",
            f"read {path[len(place.secrets_at) + 1 :]!r}",
        )
    elif place.token_at and (permitted(doubled) or permitted(doubled_second)):
        _mixed_up(
            access,
            step,
            f"the policy says {place.in_policy(doubled)!r}, but it is one of the namespace {place.token_at!r}, where paths "
            "are relative to it",
            f"replace it by: {line}",
        )
    elif place.secrets_at and not place.token_at and (permitted(bare) or permitted(bare_second)):
        _mixed_up(
            access,
            step,
            f"the policy says {bare!r} without the namespace, but it is one of the root, where {place.secrets_at!r} leads "
            "every path",
            f"replace it by: {line}",
        )
    elif (mount is None or mount.kv_version) and (permitted(plain) or permitted(second)):
        has, wants = (plain, second) if permitted(plain) else (second, plain)
        access.findings.fail(
            step,
            "kv-version-mixed-up",
            f"the policy permits {place.in_policy(has)!r}, but the mount is of KV version "
            f"{mount.kv_version if mount else '?'}, which is read at {place.in_policy(wants)!r}",
            why=_WHY,
            mend=f"add this line to {where}: {line}",
        )
    else:
        unknown = "" if mount is not None else ", or there is no such mount"
        first = plain.removeprefix(_slashed(place.secrets_at)).partition("/")[0]
        near = [repr(place.in_policy(str(each))) for each in permissions or () if f"/{first}/" in f"/{each.path}/"]
        access.findings.fail(
            step,
            "path-not-covered",
            f"no rule permits it{unknown}" + (f"; the nearest are {', '.join(near[:4])}" if near else ""),
            why=_WHY,
            mend=f"add this line to {where}: {line}",
        )


def _missing(path: str, mount: Mount | None, place: Place) -> str:
    """The rule that permits reading *path*; where the mount's KV version is not known, both."""
    full = [each for each, _ in spellings(Wanted(path), mount, place)]
    lines = [
        f'path {json.dumps(place.in_policy(each), ensure_ascii=False)} {{ capabilities = ["read"] }}' for each in full
    ]
    return lines[0] if len(lines) == 1 else f"{lines[1]} (KV version 1), or {lines[0]} (KV version 2)"


def _mixed_up(access: Access, step: str, found: str, mend: str) -> None:
    access.findings.fail(step, "namespace-mixed-up", found, why=_WHY, mend=mend)


def _forms(path: str, place: Place) -> tuple[str, str, str, str, str, str]:
    """Full paths that a policy may have for *path*: right or with ``data/``; with the namespace twice; and without it."""
    first, slash, rest = path.partition("/")
    second = f"{first}/data/{rest}" if slash else path
    plain, versioned, twice = place.full(path), place.full(second), f"{place.secrets_at}/" if place.secrets_at else ""
    return plain, versioned, twice + plain, twice + versioned, path, second


def _needed(path: str, mount: Mount | None, place: Place) -> list[str]:
    full = place.full(path)
    if mount is None:
        # Without a mount nobody knows which spelling it would be.
        return list(_forms(path, place)[:2])
    return [f"{mount.path}data/{full[len(mount.path) :]}" if mount.kv_version == 2 else full]


def _root(looked_up: Mapping[str, Any]) -> bool:
    return "root" in (looked_up.get("policies") or ())


def _kv_path(place: Place, path: str) -> str:
    return path if place.leases_at else place.full(path)


def _namespaced(namespace: str) -> str:
    return f"-namespace={namespace} " if namespace else ""


def _slashed(namespace: str) -> str:
    return f"{namespace}/" if namespace else ""
