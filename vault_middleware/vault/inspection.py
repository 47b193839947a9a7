"""Questions that only a diagnosis asks: what is there, and what a token may do. Nothing here changes the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..config import SecretConfig
from . import answers, faults
from .answers import Token
from .auth import Login
from .paths import Mount, encode
from .transport import Answer, Transport

__all__ = ["Inspector", "Permission"]

#: What a server's own ``default`` policy permits, in the namespace of the token; a service's policy adds to it.
_DEFAULT: Final = frozenset(
    {
        "auth/token/lookup-self",
        "auth/token/renew-self",
        "auth/token/revoke-self",
        "cubbyhole/",
        "sys/capabilities-self",
        "sys/control-group/request",
        "sys/internal/ui/resultant-acl",
        "sys/leases/lookup",
        "sys/leases/renew",
        "sys/renew",
        "sys/tools/hash",
        "sys/tools/hash/",
        "sys/wrapping/lookup",
        "sys/wrapping/unwrap",
        "sys/wrapping/wrap",
    }
)

#: And what it permits of the token's own entity, whose id is in the path.
_OWN_ENTITY: Final = ("identity/entity/id/", "identity/entity/name/", "identity/oidc/provider/")


@dataclass(frozen=True, slots=True)
class Permission:
    """One rule that a token has: *path* in full, with the namespace; with *glob* for all that begins so."""

    path: str
    glob: bool
    capabilities: frozenset[str]

    def covers(self, full: str) -> bool:
        """Whether the rule is about *full*; a ``+`` in it stands for one segment."""
        if "+" not in self.path:
            return full.startswith(self.path) if self.glob else full == self.path
        wanted, there = self.path.split("/"), full.split("/")
        if len(there) < len(wanted) or (len(there) > len(wanted) and not self.glob):
            return False
        *first, last = zip(wanted, there, strict=False)
        return all(one in ("+", other) for one, other in first) and (
            last[0] in ("+", last[1]) or (self.glob and last[1].startswith(last[0]))
        )

    def __str__(self) -> str:
        return self.path + "*" if self.glob else self.path


class Inspector:
    """Asks one server, each question within *timeout* seconds; raises VaultUnavailable where it gives no usable answer."""

    def __init__(self, config: SecretConfig, *, timeout: float) -> None:
        self._config = config
        self._transport = Transport(config)
        self._login = Login(config, self._transport)
        self._timeout = timeout

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def health(self) -> Answer:
        """The server's health; the status says whether it is active (200) or a standby."""
        return self._transport.request("health", "GET", "/v1/sys/health", timeout=self._timeout)

    def namespace_exists(self) -> bool:
        """Whether ``VAULT_NAMESPACE`` is a namespace of the server, and not the first part of its mounts' paths."""
        namespace = self._config.namespace
        if not namespace:
            return False
        answer = self._transport.request(
            "namespace", "GET", f"/v1/{namespace}/sys/internal/ui/mounts", timeout=self._timeout
        )
        if answer.status in (200, 403, 404):
            return answer.status == 200
        raise answers.failure(answer, self._config.vault_addr)

    def auth_mount_exists(self, namespace: str) -> bool:
        """Whether the auth method is mounted there: a log-in without anything in it is answered by 400 only where it is."""
        path = f"{namespace}/auth/" if namespace else "auth/"
        answer = self._transport.request(
            "login", "POST", f"/v1/{path}{self._config.auth_mount}/login", timeout=self._timeout, body={}
        )
        return answer.status == 400

    def login_refusals(self) -> list[tuple[str, int, str]]:
        """A log-in that fails, told in full: each namespace where it was tried, the status, and the kind of refusal."""
        return self._login.refusals(self._timeout)

    def lookup(self, token: Token) -> Mapping[str, Any] | None:
        """What the server knows of *token*, less the token; None where it may not look at itself, or is not valid."""
        answer = self._ask("GET", token, "auth/token/lookup-self")
        data = answer.body.get("data")
        if answer.status != 200 or not isinstance(data, dict):
            return None
        return {name: value for name, value in data.items() if name not in ("id", "accessor")}

    def capabilities(self, token: Token, paths: Iterable[str]) -> dict[str, frozenset[str]] | None:
        """What *token* may do with each of *paths*, written as its policy would write them; None where it may not ask."""
        wanted = list(dict.fromkeys(paths))
        answer = self._ask("POST", token, "sys/capabilities-self", {"paths": wanted})
        if answer.status in (400, 403, 404):
            return None
        self._only_success(answer)
        data = answer.body.get("data")
        found = data if isinstance(data, dict) else answer.body
        return {
            path: frozenset(each for each in found.get(path) or () if isinstance(each, str)) - {"deny"}
            for path in wanted
        }

    def permissions(self, token: Token) -> list[Permission] | None:
        """Every rule that *token* has beyond the server's ``default`` policy; None where it may not ask."""
        answer = self._ask("GET", token, "sys/internal/ui/resultant-acl")
        data = answer.body.get("data")
        if answer.status != 200 or not isinstance(data, dict):
            return None
        if data.get("root") is True:
            return [Permission("", True, frozenset({"root"}))]
        at = f"{token.namespace}/" if token.namespace else ""
        entity = tuple(at + path for path in _OWN_ENTITY)
        found = []
        for key, glob in (("exact_paths", False), ("glob_paths", True)):
            rules = data.get(key)
            for path, rule in rules.items() if isinstance(rules, dict) else ():
                said = rule.get("capabilities") if isinstance(rule, dict) else None
                capabilities = frozenset(said if isinstance(said, list) else ()) - {"deny"}
                default = path.startswith(at) and path[len(at) :] in _DEFAULT
                if capabilities and not default and not path.startswith(entity):
                    found.append(Permission(path, glob, capabilities))
        return sorted(found, key=lambda each: each.path)

    def mount(self, full: str, token: Token) -> Mount | None:
        """The mount that *full* (with the namespace) lies in; None where there is none, or *token* may see nothing of it."""
        answer = self._transport.request(
            "mount",
            "GET",
            f"/v1/sys/internal/ui/mounts/{encode(full)}",
            timeout=self._timeout,
            token=token.value or None,
        )
        if answer.status in (400, 403, 404):
            return None
        self._only_success(answer)
        data = answer.body.get("data")
        where, kind = (data.get("path"), data.get("type")) if isinstance(data, dict) else (None, None)
        if not isinstance(data, dict) or not isinstance(where, str) or not isinstance(kind, str):
            raise faults.not_vault(self._config.vault_addr, "a mount without path and type")
        options = data.get("options")
        version = options.get("version") if isinstance(options, dict) else None
        return Mount(where, kind, (2 if version == "2" else 1) if kind in ("kv", "generic") else None)

    def _ask(self, method: str, token: Token, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        at = f"{token.namespace}/" if token.namespace else ""
        return self._transport.request(
            "inspect", method, f"/v1/{at}{path}", timeout=self._timeout, token=token.value or None, body=body
        )

    def _only_success(self, answer: Answer) -> None:
        if not 200 <= answer.status < 300:
            raise answers.failure(answer, self._config.vault_addr)
