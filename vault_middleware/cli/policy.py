"""The least policy for the paths of an app, written for its deployment; and what a token may do now, compared with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..config import SecretConfig
from ..errors import ConfigurationError, VaultMiddlewareError
from ..vault import policies
from ..vault.client import Token, VaultClient
from ..vault.inspection import Inspector, Permission
from ..vault.paths import Mount, validate
from .rules import Deployment, Place, Rule, as_hcl, rules_for, spellings
from .wanted import Wanted, wanted

__all__ = ["Policy"]

#: A name that no secret has: what a rule permits beside the path it was written for.
_PROBE: Final = "vault-middleware-policy-check"


@dataclass(frozen=True, slots=True)
class _Known:
    """What could be found out."""

    place: Place
    wanted: list[tuple[Wanted, Mount | None]]
    token: Token | None
    default_policy: bool
    notes: list[str]

    @property
    def rules(self) -> list[Rule]:
        return rules_for(self.wanted, self.place, default_policy=self.default_policy)


class Policy:
    """Writes the policy, or checks a token against it; nothing on the server is changed.

    Parameters
    ----------
    environ
        The app's environment.
    paths, audit_log
        The secret paths; see :func:`~vault_middleware.cli.wanted.wanted`. One may end in ``*``.
    deployment
        Instead of finding it out at the server.
    without_default
        The role's tokens lack the server's ``default`` policy; found out where a log-in works.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        *,
        paths: Sequence[str] = (),
        audit_log: str | None = None,
        deployment: Deployment | None = None,
        without_default: bool = False,
    ) -> None:
        self._config = SecretConfig.from_env(environ)
        self._wanted = wanted(paths, audit_log, self._config)
        if not self._wanted:
            raise ConfigurationError(
                "no secret path was given; vault-middleware policy PATH …, or --audit-log FILE, or set VAULT_PREFETCH"
            )
        for each in self._wanted:
            validate(each.path.removesuffix("*").removesuffix("/"), self._config.namespace)
        self._deployment = deployment
        self._without_default = without_default

    def write(self) -> int:
        """Print the policy; what could not be found out is said beside it."""
        client, inspector = self._open()
        try:
            known = self._find_out(client, inspector)
        finally:
            client.close()
            inspector.close()
        for note in known.notes:
            print(f"! {note}", file=sys.stderr)
        text = as_hcl(known.rules, known.place, role=self._config.vault_role, default_policy=known.default_policy)
        print(text, end="")
        return 0

    def check(self) -> int:
        """Compare what the app's token may do with what it needs; 0 where that is the same, else 1."""
        client, inspector = self._open()
        token = client.log_in(self._config.client_timeout)
        try:
            known = self._find_out(client, inspector, token)
            gaps, excess = self._compare(inspector, known, token)
        finally:
            if token.owned:
                client.revoke_token(token, self._config.client_timeout)
            client.close()
            inspector.close()
        for note in known.notes:
            print(f"! {note}")
        for line in gaps:
            print(f"✗ gap: {line}")
        for line in excess:
            print(f"✗ excess: {line}")
        if not gaps and not excess:
            print(f"✓ the token may do what {len(self._wanted)} paths need, and nothing else")
        return 1 if gaps or excess else 0

    # -- what there is

    def _open(self) -> tuple[VaultClient, Inspector]:
        return VaultClient(self._config), Inspector(self._config, timeout=self._config.client_timeout)

    def _find_out(self, client: VaultClient, inspector: Inspector, token: Token | None = None) -> _Known:
        """Ask the server for what was not given; a log-in of our own is ended again."""
        config, notes = self._config, []
        own: Token | None = None
        if token is None:
            try:
                token = own = client.log_in(config.client_timeout)
            except VaultMiddlewareError as error:
                notes.append(f"the log-in as the app failed, so mounts could not be looked at: {error}")
        try:
            place = self._place(inspector, token)
            found = [
                (each, None if token is None else inspector.mount(place.full(each.path.rstrip("*/")), token))
                for each in self._wanted
            ]
            looked_up = None if token is None else inspector.lookup(token)
        finally:
            if own is not None and own.owned:
                client.revoke_token(own, config.client_timeout)
        notes += [
            f"the KV version of {each.path!r} is not known, as its mount cannot be seen (yet): both rules are there; apply "
            "the policy, and run this again for the least one"
            for each, mount in found
            if len(spellings(each, mount, place)) > 1
        ]
        default = not self._without_default and (looked_up is None or _has_default(looked_up))
        return _Known(place, found, token, default, notes)

    def _place(self, inspector: Inspector, token: Token | None) -> Place:
        config = self._config
        if self._deployment is not None:
            inside = self._deployment == "namespace"
            return Place(config.namespace, config.namespace if inside else "", self._deployment != "community")
        exists = inspector.namespace_exists()
        if token is not None:
            return Place(config.namespace, token.namespace, exists)
        if config.auth_namespace is not None:
            return Place(config.namespace, config.auth_namespace, exists)
        inside = exists and inspector.auth_mount_exists(config.namespace)
        return Place(config.namespace, config.namespace if inside else "", exists)

    # -- the comparison

    def _compare(self, inspector: Inspector, known: _Known, token: Token) -> tuple[list[str], list[str]]:
        rules, place = known.rules, known.place
        probes = {
            rule.path: f"{rule.path.rpartition('/')[0]}/{_PROBE}" for rule in rules if not rule.path.endswith("*")
        }
        asked = {rule.path: _probe_of(rule.path) for rule in rules}
        may = inspector.capabilities(token, [*asked.values(), *probes.values()])
        if may is None:
            raise VaultMiddlewareError(
                "the token may not ask what it may do; permit it: "
                'path "sys/capabilities-self" { capabilities = ["update"] } (the default policy does)'
            )
        where = policies.where(place.token_at)
        gaps = []
        for each, mount in known.wanted:
            spelt = rules_for([(each, mount)], place, default_policy=True)
            reads = [rule for rule in spelt if rule.capability == "read"]
            if not any({"read", "root"} & may[asked[rule.path]] for rule in reads):
                lines = " (KV version 2) or ".join(map(_line, reads))
                gaps.append(f"read {each.path}: add this line to {where}: {lines}")
        gaps += [
            f"{rule.why}: add this line to {where}: {_line(rule)}"
            for rule in rules
            if not rule.why.startswith("read ") and not {rule.capability, "root"} & may[asked[rule.path]]
        ]
        permissions = inspector.permissions(token)
        if permissions is None:
            return gaps, _excess_by_probes(rules, may, probes)
        listed = [line for permission in permissions for line in _excess(permission, rules, place)]
        # The server does not list rules with a + in them.
        apart = {
            path: probe
            for path, probe in probes.items()
            if not any(permission.covers(_full(probe, place)) for permission in permissions)
        }
        return gaps, listed + [
            _beside(path) for path, probe in apart.items() if may[probe] and "root" not in may[probe]
        ]


def _excess(permission: Permission, rules: Sequence[Rule], place: Place) -> list[str]:
    """What *permission* gives beyond *rules*."""
    if "root" in permission.capabilities:
        return ["it is a root token, which may do everything; log in by a role with a policy"]
    shown = place.in_policy(str(permission))
    needed = [rule for rule in rules if rule.full == str(permission) or permission.covers(rule.full)]
    if not needed:
        return [f"{shown!r} ({', '.join(sorted(permission.capabilities))}) is not needed: remove the rule"]
    lines = []
    more = permission.capabilities - {rule.capability for rule in needed}
    if more:
        lines.append(f"{shown!r} permits {', '.join(sorted(more))} too: leave that out")
    if str(permission) not in {rule.full for rule in needed}:
        inside = ", ".join(repr(rule.path) for rule in needed)
        lines.append(f"{shown!r} is wider than what is read: replace it by {inside}")
    return lines


def _excess_by_probes(rules: Sequence[Rule], may: Mapping[str, frozenset[str]], probes: Mapping[str, str]) -> list[str]:
    """The same, for a token that may not list its rules: from what it may do at the paths and beside them."""
    lines = []
    for rule in rules:
        more = may[_probe_of(rule.path)] - {rule.capability}
        if more:
            lines.append(f"{rule.path!r} permits {', '.join(sorted(more))} too: leave that out")
        if rule.path in probes and may[probes[rule.path]]:
            lines.append(_beside(rule.path))
    return lines


def _beside(path: str) -> str:
    return (
        f"some rule with a wildcard permits what is beside {path!r} too, so it is wider than what is read: replace it"
    )


def _full(path: str, place: Place) -> str:
    return f"{place.token_at}/{path}" if place.token_at else path


def _line(rule: Rule) -> str:
    return f'path "{rule.path}" {{ capabilities = ["{rule.capability}"] }}'


def _probe_of(path: str) -> str:
    """A path to ask about for a rule: itself, or one that its wildcard covers."""
    return path[:-1] + _PROBE if path.endswith("*") else path


def _has_default(looked_up: Mapping[str, object]) -> bool:
    named = looked_up.get("policies")
    return isinstance(named, list) and bool({"default", "root"} & set(map(str, named)))
