"""Where things are in each deployment, and the policies that fit: the three rows of the addressing table."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["NAMESPACE", "ROLE", "STATIC_ROLE", "Deployment", "Layout", "rule"]

#: The service's namespace, its role at the auth method and at the database, and the static database role.
NAMESPACE = "lotabots"
ROLE = "api-gateway"
STATIC_ROLE = "api-gateway-static"

Deployment = Literal["namespace", "community", "root-auth"]

#: The service's policy as it was written.
_ORIGINAL = """\
path "lotabots/api-gateway/*" {
  capabilities = ["read"]
}
path "lotabots/shared/*" {
  capabilities = ["read"]
}
path "sys/renew/*" {
  capabilities = ["update"]
}
"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The addresses of one deployment, as a client without a namespace header spells them.

    ``namespace``: a namespace with auth method and policy of its own. ``community``: no namespaces, the name is the
    first part of every mount's path. ``root-auth``: a namespace, but auth method and policy in the root.
    """

    deployment: Deployment

    @property
    def has_namespace(self) -> bool:
        """Whether the server has the namespace."""
        return self.deployment != "community"

    def mount(self, name: str) -> str:
        """Where mount *name* is made."""
        return self.leases(f"sys/mounts/{name}") if self.has_namespace else f"sys/mounts/{NAMESPACE}/{name}"

    def leases(self, path: str) -> str:
        """The ``sys/…`` *path* of where the leases live."""
        return f"{NAMESPACE}/{path}" if self.has_namespace else path

    def lease_prefix(self, path: str) -> str:
        """How the leases of *path* begin."""
        return path if self.has_namespace else f"{NAMESPACE}/{path}"

    def auth(self, path: str) -> str:
        """The *path* of an auth method or a policy."""
        return f"{NAMESPACE}/{path}" if self.deployment == "namespace" else path

    def in_policy(self, path: str) -> str:
        """How the policy, relative to where it is written, spells the secret *path*."""
        return path if self.deployment == "namespace" else f"{NAMESPACE}/{path}"

    def policy(self, kind: Literal["working", "original"]) -> str:
        """``original``: the service's policy as written, whatever it permits here; ``working``: what it needs here."""
        if kind == "original":
            return _ORIGINAL
        secrets = ("api-gateway/*", "shared/*", f"database/creds/{ROLE}", f"database/static-creds/{STATIC_ROLE}")
        leases = ["sys/leases/renew", "sys/leases/revoke"]
        if self.deployment == "root-auth":
            leases += [self.in_policy(path) for path in leases]
        rules = [rule(self.in_policy(path), "read") for path in secrets]
        return "".join([*rules, *(rule(path, "update") for path in leases)])


def rule(path: str, *capabilities: str) -> str:
    """One rule of a policy."""
    quoted = ", ".join(f'"{each}"' for each in capabilities)
    return f'path "{path}" {{\n  capabilities = [{quoted}]\n}}\n'
