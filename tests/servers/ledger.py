"""What the server's own audit log says of tokens and leases: which were given out, and which were given back."""

from __future__ import annotations

from dataclasses import dataclass, field

from vault_middleware.devstack import DevStack

__all__ = ["Ledger", "ledger"]


@dataclass
class Ledger:
    """Tokens by their accessors, as the log has them: hashed, and the same wherever they occur.

    Attributes
    ----------
    tokens
        Those that log-ins have given.
    revoked
        Those whose owners have revoked them, and their leases with them.
    leases
        The ids of the leases that were given, with the token of each.
    requests
        How many calls have arrived, those of the stack's own administration aside.
    """

    tokens: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    leases: dict[str, str] = field(default_factory=dict)
    requests: int = 0

    @property
    def kept(self) -> set[str]:
        """The tokens that nobody has revoked: they and their leases end with their own time."""
        return self.tokens - self.revoked


def ledger(stack: DevStack, since: int = 0) -> Ledger:
    """What has come of the calls of *stack* from its audit log's entry *since* on."""
    found = Ledger()
    for entry in stack.bao.audit_log()[since:]:
        if "root" in entry["auth"].get("policies", []):
            continue
        found.requests += entry["type"] == "request"
        if entry["type"] != "response" or entry.get("error"):
            continue
        path, accessor = entry["request"]["path"], entry["auth"].get("accessor", "")
        if path.endswith("auth/kubernetes/login"):
            found.tokens.add(entry["response"]["auth"]["accessor"])
        elif path.endswith("auth/token/revoke-self"):
            found.revoked.add(accessor)
        elif secret := entry.get("response", {}).get("secret"):
            found.leases[secret["lease_id"]] = accessor
    return found
