"""The least policy: which rules a service needs in each deployment, and why each is there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from ..vault.paths import Mount
from .wanted import Wanted

__all__ = ["DEPLOYMENTS", "Deployment", "Place", "Rule", "as_hcl", "leased", "rules_for", "spellings"]

Deployment = Literal["namespace", "community", "root-auth"]

DEPLOYMENTS: Final[tuple[Deployment, ...]] = ("namespace", "community", "root-auth")

#: Second segments of paths that are no keys of a KV engine.
_NOT_KV: Final = frozenset({"creds", "static-cred", "static-creds", "sts"})
_STATIC_ROLES: Final = frozenset({"static-cred", "static-creds"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where the secrets and their leases are, and where the policy is written, which is relative to that.

    ``secrets_at`` is ``VAULT_NAMESPACE``, ``token_at`` the namespace of the log-in (empty: the root).
    """

    secrets_at: str
    token_at: str
    is_namespace: bool

    @property
    def deployment(self) -> Deployment:
        """Its name."""
        if not self.is_namespace:
            return "community"
        return "namespace" if self.token_at == self.secrets_at else "root-auth"

    @property
    def leases_at(self) -> str:
        """The namespace of the leases."""
        return self.secrets_at if self.is_namespace else ""

    def full(self, path: str) -> str:
        """The secret *path* as it is asked for."""
        return _joined(self.secrets_at, path)

    def in_policy(self, full: str) -> str:
        """*full* as the policy spells it."""
        return full.removeprefix(f"{self.token_at}/") if self.token_at else full


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy, with what it is for. ``full`` is its path with the namespace."""

    path: str
    full: str
    capability: Literal["read", "update"]
    why: str


def rules_for(wanted: Iterable[tuple[Wanted, Mount | None]], place: Place, *, default_policy: bool) -> list[Rule]:
    """The rules that are needed, and no other; for a path whose mount is not known, those of both KV versions.

    *default_policy*: the token has the server's ``default`` policy too, whose rules are not repeated.
    """
    rules: list[Rule] = []
    any_leased = False
    for each, mount in wanted:
        rules += [Rule(place.in_policy(full), full, "read", why) for full, why in spellings(each, mount, place)]
        any_leased = any_leased or leased(each, mount)
    calls: list[tuple[str, Literal["read", "update"], str]] = []
    if any_leased:
        at = place.leases_at
        if not (default_policy and at == place.token_at):
            calls.append((_joined(at, "sys/leases/renew"), "update", "leases are renewed before they end"))
        calls.append(
            (
                _joined(at, "sys/leases/revoke"),
                "update",
                "a replaced lease is revoked after its last request, and all of them at a stop",
            )
        )
    if not default_policy:
        own = _joined(place.token_at, "auth/token/")
        calls += [
            (f"{own}lookup-self", "read", "a refused read: is it the policy, or is the token dead?"),
            (f"{own}renew-self", "update", "the token is renewed, and its leases live on"),
            (f"{own}revoke-self", "update", "a stop leaves no token behind"),
        ]
    rules += [Rule(place.in_policy(full), full, capability, why) for full, capability, why in calls]
    return list({rule.path: rule for rule in rules}.values())


def spellings(wanted: Wanted, mount: Mount | None, place: Place) -> list[tuple[str, str]]:
    """The full paths to permit for a read of *wanted*, each with why it is spelt so."""
    full = place.full(wanted.path)
    if mount is not None and full.startswith(mount.path):
        if mount.kv_version == 2:
            return [(f"{mount.path}data/{full[len(mount.path) :]}", f"read {wanted.path} (KV version 2: data/)")]
        return [(full, f"read {wanted.path} ({f'KV version {mount.kv_version}' if mount.kv_version else mount.type})")]
    first, slash, rest = wanted.path.partition("/")
    other = rest.split("/", 1)[0] in _NOT_KV
    if other or wanted.dynamic or wanted.versioned is False:
        return [(full, f"read {wanted.path}")]
    second = place.full(f"{first}/data/{rest}") if slash else full
    if wanted.versioned:
        return [(second, f"read {wanted.path} (KV version 2: data/)")]
    unknown = f"read {wanted.path}, if its mount is KV version"
    return [(second, f"{unknown} 2; remove it otherwise"), (full, f"{unknown} 1; remove it otherwise")]


def leased(wanted: Wanted, mount: Mount | None) -> bool:
    """Whether a read of *wanted* gives a lease, as far as can be told without reading it."""
    if wanted.dynamic is not None:
        return wanted.dynamic
    second = wanted.path.partition("/")[2].split("/", 1)[0]
    if mount is None:
        return second in _NOT_KV and second not in _STATIC_ROLES
    return mount.kv_version is None and second not in _STATIC_ROLES


_HEAD: Final[dict[str, str]] = {
    "namespace": """\
# {ns!r} is a namespace with an auth method of its own. Write this policy inside it:
#   vault policy write -namespace={ns} {role} FILE
# A namespace's policies are relative to it, so no path here begins with "{ns}/". The service's original policy had
# "{ns}/…" in front, which permits nothing here; with the auth method in the root it would.""",
    "root-auth": """\
# {ns!r} is a namespace, but the log-in is in the root. Write this policy in the root:
#   vault policy write {role} FILE
# So every path begins with "{ns}/", those of the leases too, as they live in the namespace.""",
    "community": """\
# {ns!r} is no namespace here, but the first part of the mounts' paths. Write this policy:
#   vault policy write {role} FILE
# The leases' own paths are those of the whole server, so they have no "{ns}/" in front.""",
}

_DIFFERENCES: Final = """\
# It differs from the service's original policy also in this: instead of "…/api-gateway/*" and "…/shared/*" it names what
# is read and no more; database credentials, which the original forgot, are in it where they are read; and the original's
# "sys/renew/*" is the old name of the renewal, which OpenBao has no more and this package does not call:
# {renewal}"""


def as_hcl(rules: Iterable[Rule], place: Place, *, role: str, default_policy: bool) -> str:
    """The policy's text, with comments."""
    namespace = place.secrets_at
    if namespace:
        head = _HEAD[place.deployment].format(ns=namespace, role=role)
    else:
        head = f"# VAULT_NAMESPACE is empty: everything is in the root. Write this policy:\n#   vault policy write {role} FILE"
    rules = list(rules)
    if any(rule.path.endswith("sys/leases/renew") for rule in rules):
        renewal = "its name is sys/leases/renew, see below."
    elif any(rule.path.endswith("sys/leases/revoke") for rule in rules):
        renewal = "its name is sys/leases/renew, which the server's default policy has."
    else:
        renewal = "nothing here has a lease to renew."
    lines = [head, *_DIFFERENCES.format(renewal=renewal).splitlines()]
    if default_policy:
        lines.append("# The token's own calls (look-up, renewal, revocation) are in the server's default policy.")
    else:
        lines.append("# Without the server's default policy, the token's own calls are permitted here.")
    for rule in rules:
        path = json.dumps(rule.path, ensure_ascii=False)
        lines += ["", f"# {rule.why}", f'path {path} {{\n  capabilities = ["{rule.capability}"]\n}}']
    return "\n".join(lines) + "\n"


def _joined(namespace: str, path: str) -> str:
    return f"{namespace}/{path}" if namespace else path
