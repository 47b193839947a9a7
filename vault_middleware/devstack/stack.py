"""The whole environment of the service on one machine: OpenBao, PostgreSQL and a TokenReview, set up and connected."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from .kubernetes import API_AUDIENCE, Kubernetes
from .layout import NAMESPACE, ROLE, STATIC_ROLE, Deployment, Layout, rule
from .openbao import OpenBao, Refused
from .postgres import Postgres
from .process import DevStackError, wait_until

__all__ = ["DevStack"]

_STATIC_USER = "api_gateway_static"

_CREATION = (
    "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'",
    'GRANT pg_read_all_data TO "{{name}}"',
)
# Ends the role's sessions, hands over what it owns, and does not fail for a role that is gone already.
_REVOCATION = """\
DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{{name}}') THEN
    PERFORM pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE usename = '{{name}}';
    REASSIGN OWNED BY "{{name}}" TO CURRENT_USER;
    DROP OWNED BY "{{name}}";
    DROP ROLE "{{name}}";
  END IF;
END $$"""


class DevStack:
    """The three servers, set up as the service expects them; a context manager.

    Under the service's namespace: ``api-gateway`` (KV v2) with ``api-key``, ``shared`` (KV v1) with ``jwt``, and
    ``database`` with the dynamic role ``api-gateway`` and the static role ``api-gateway-static``, rotated every 5 s.
    The Kubernetes auth role ``api-gateway`` is bound to the service account of that name in ``lotabots``.

    Parameters
    ----------
    deployment : {"namespace", "community", "root-auth"}
        See `Layout`.
    lease_ttl, lease_max_ttl : float
        Of the dynamic database role, in whole seconds.
    token_ttl, token_max_ttl : float
        Of the tokens that a log-in gives, in whole seconds.
    policy : {"working", "original"}
        ``original``: the service's policy as it was written; ``working``: what it needs in this deployment.
    tls : {"off", "server", "mutual"}
        See `OpenBao`.
    bao : OpenBao, optional
        The server to use instead of one with *tls*: a `Cluster`, say. The stack starts and stops it.
    """

    def __init__(
        self,
        *,
        deployment: Deployment = "namespace",
        lease_ttl: float = 60,
        lease_max_ttl: float = 300,
        token_ttl: float = 600,
        token_max_ttl: float = 3600,
        policy: Literal["working", "original"] = "working",
        tls: Literal["off", "server", "mutual"] = "off",
        bao: OpenBao | None = None,
    ) -> None:
        self.layout = Layout(deployment)
        self.bao = OpenBao(tls=tls) if bao is None else bao
        self.postgres = Postgres()
        self.kubernetes = Kubernetes()
        self._lease_ttls = lease_ttl, lease_max_ttl
        self._token_ttls = token_ttl, token_max_ttl
        self._kind = policy
        self._policy = ""
        self._versions: dict[str, int] = {}
        self._canaries: set[str] = set()
        self._started = False

    def start(self) -> Self:
        """Start and set up everything; about a second. What was started is stopped again if something fails."""
        if self._started:
            return self
        with contextlib.ExitStack() as undo, concurrent.futures.ThreadPoolExecutor(1) as aside:
            undo.callback(self.stop)
            database = aside.submit(self._start_database)
            self.kubernetes.start()
            self.bao.start()
            self._set_up_secrets()
            self._set_up_login()
            database.result()
            self._set_up_database()
            undo.pop_all()
        self._started = True
        return self

    def stop(self) -> None:
        """Stop the servers and remove all they had."""
        for server in (self.bao, self.postgres, self.kubernetes):
            server.close()
        self._started = False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the service: what a pod has by other means, and with *tls* the certificates."""
        found = {"VAULT_ADDR": self.bao.address, "VAULT_KUBERNETES_TOKEN_PATH": str(self.token_path)}
        if self.bao.tls != "off":
            found["VAULT_CACERT"] = str(self.bao.ca_path)
        if self.bao.tls == "mutual":
            found["VAULT_CLIENT_CERT"] = str(self.bao.client_certificate)
            found["VAULT_CLIENT_KEY"] = str(self.bao.client_key)
        return found

    @property
    def token_path(self) -> Path:
        """The file with the service-account token."""
        return self.bao.folder / "service-account-token"

    def write_service_account_token(
        self,
        name: str = ROLE,
        namespace: str = NAMESPACE,
        *,
        ttl: float = 3600.0,
        audience: str = API_AUDIENCE,
        uid: str | None = None,
    ) -> str:
        """Replace the token in `token_path`, in one step as the kubelet does; see `Kubernetes.service_account_token`."""
        token = self.kubernetes.service_account_token(name, namespace, ttl=ttl, audience=audience, uid=uid)
        fresh = self.token_path.with_suffix(".new")
        fresh.write_text(token, encoding="ascii")
        os.replace(fresh, self.token_path)
        return token

    def log_in(self) -> str:
        """Log in with the service-account token, as the service does; the client token."""
        body = {"role": ROLE, "jwt": self.token_path.read_text(encoding="ascii")}
        answer = self.bao.request("POST", self.layout.auth("auth/kubernetes/login"), body, token="")
        return str(answer["auth"]["client_token"])

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, token: str | None = None
    ) -> dict[str, Any]:
        """One call to a *path* below the namespace (``shared/jwt``), with the root token where none is given."""
        return self.bao.request(method, f"{NAMESPACE}/{path}", body, token=token)

    def put_secret(self, path: str, data: Mapping[str, Any]) -> None:
        """Write a static secret at *path* below the namespace, a new version with KV v2."""
        self._canaries.update(_strings(data))
        if self._version(path) == 2:
            self.request("POST", path.replace("/", "/data/", 1), {"data": dict(data)})
        else:
            self.request("POST", path, dict(data))

    def delete_secret(self, path: str) -> None:
        """Remove a static secret with all its versions."""
        self.request("DELETE", path.replace("/", "/metadata/", 1) if self._version(path) == 2 else path)

    def secret_values(self) -> set[str]:
        """Every string that `put_secret` has written, of 8 characters or more: what turns up in a log by no chance."""
        return {value for value in self._canaries if len(value) >= 8}

    def mount_kv(self, name: str, *, version: Literal[1, 2] = 2, leased: bool = False) -> None:
        """Mount another KV engine; *leased* (version 1): a secret with a ``ttl`` in it is read with a lease."""
        options = {"version": str(version)} | ({"leased_passthrough": "true"} if leased else {})
        self.bao.request("POST", self.layout.mount(name), {"type": "kv", "options": options})
        self._versions[name] = version
        # A new mount of version 2 answers 400 while it prepares its storage; the next write waits for it.
        if version == 2:
            self._wait_for_mount(name)

    def add_database_role(self, name: str, *, ttl: float, max_ttl: float, permit: bool = True) -> None:
        """Make the dynamic role *name*, of whole seconds, and unless told not to let the service read it."""
        statements = {"creation_statements": _CREATION, "revocation_statements": [_REVOCATION]}
        ttls = {"default_ttl": f"{round(ttl)}s", "max_ttl": f"{round(max_ttl)}s"}
        self.request("POST", f"database/roles/{name}", {"db_name": "postgres", **statements, **ttls})
        if permit:
            self.permit(f"database/creds/{name}", "read")

    def leases(self) -> list[str]:
        """The ids of all live leases of the database mount."""
        prefix = self.layout.lease_prefix("database/creds/")
        found = []
        for role in self._list_leases(prefix):
            found += [f"{prefix}{role}{each}" for each in self._list_leases(prefix + role)]
        return sorted(found)

    def revoke_lease(self, lease_id: str) -> None:
        """Revoke one lease, and wait until it is gone."""
        self.bao.request("POST", self.layout.leases("sys/leases/revoke"), {"lease_id": lease_id, "sync": True})

    def revoke_all_leases(self) -> None:
        """Revoke all leases of the database mount."""
        prefix = self.layout.lease_prefix("database/creds")
        self.bao.request("POST", self.layout.leases(f"sys/leases/revoke-prefix/{prefix}"), {"sync": True})

    def policy_text(self, kind: Literal["working", "original"] = "working") -> str:
        """The policy of that kind for this deployment."""
        return self.layout.policy(kind)

    def write_policy(self, text: str | None = None) -> None:
        """Replace the service's policy; without *text* by the one that the stack was made with."""
        self._policy = self.layout.policy(self._kind) if text is None else text
        self.bao.request("POST", self.layout.auth(f"sys/policies/acl/{ROLE}"), {"policy": self._policy})

    def permit(self, path: str, *capabilities: str) -> None:
        """Add a rule for *path* below the namespace to the service's policy."""
        self.write_policy(self._policy + rule(self.layout.in_policy(path), *capabilities))

    def heal(self) -> None:
        """Bring everything up that was paused, stopped, killed or sealed, with the stack's own policy and token."""
        if not self._started:
            return
        self.kubernetes.available = True
        for server in (self.postgres, self.bao):
            if server.running:
                server.resume()
            else:
                server.start()
        if self.bao.health() == http.client.SERVICE_UNAVAILABLE:
            self.bao.unseal()
        self.write_policy()
        self.write_service_account_token()

    def _start_database(self) -> None:
        self.postgres.start()
        self.postgres.execute(f"CREATE ROLE {_STATIC_USER} WITH LOGIN")

    def _set_up_secrets(self) -> None:
        if self.layout.has_namespace:
            self.bao.request("POST", f"sys/namespaces/{NAMESPACE}")
        self.mount_kv("api-gateway", version=2)
        self.mount_kv("shared", version=1)
        self.bao.request("POST", self.layout.mount("database"), {"type": "database"})
        self.put_secret("api-gateway/api-key", {"value": _canary("api-key")})
        nested = {"active": _canary("kid"), "retired": [_canary("kid"), _canary("kid")]}
        self.put_secret("shared/jwt", {"key": _canary("jwt"), "keys": nested})

    def _set_up_login(self) -> None:
        self.write_service_account_token()
        self.write_policy()
        auth = self.layout.auth
        self.bao.request("POST", auth("sys/auth/kubernetes"), {"type": "kubernetes"})
        host = {
            "kubernetes_host": self.kubernetes.address,
            "kubernetes_ca_cert": self.kubernetes.ca_certificate,
            "disable_local_ca_jwt": True,
            "token_reviewer_jwt": self.kubernetes.service_account_token("openbao", "openbao", ttl=86400.0),
        }
        self.bao.request("POST", auth("auth/kubernetes/config"), host)
        role = {
            "bound_service_account_names": [ROLE],
            "bound_service_account_namespaces": [NAMESPACE],
            "audience": API_AUDIENCE,
            "token_policies": [ROLE],
            "token_ttl": f"{round(self._token_ttls[0])}s",
            "token_max_ttl": f"{round(self._token_ttls[1])}s",
        }
        self.bao.request("POST", auth(f"auth/kubernetes/role/{ROLE}"), role)

    def _set_up_database(self) -> None:
        server = self.postgres
        connection = {
            "plugin_name": "postgresql-database-plugin",
            "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{server.host}:{server.port}/postgres"
            "?sslmode=disable",
            "username": server.superuser,
            "password": server.superuser_password,
            "allowed_roles": "*",
        }
        self.request("POST", "database/config/postgres", connection)
        ttl, max_ttl = self._lease_ttls
        self.add_database_role(ROLE, ttl=ttl, max_ttl=max_ttl, permit=False)
        static = {"db_name": "postgres", "username": _STATIC_USER, "rotation_period": "5s"}
        self.request("POST", f"database/static-roles/{STATIC_ROLE}", static)

    def _version(self, path: str) -> int:
        mount = path.partition("/")[0]
        if mount not in self._versions:
            raise DevStackError(f"{path}: no KV engine is mounted at {mount}; mount_kv makes one")
        return self._versions[mount]

    def _wait_for_mount(self, name: str) -> None:
        def ready() -> bool:
            try:
                self.request("GET", f"{name}/config")
            except Refused as error:
                if error.status != http.client.BAD_REQUEST:
                    raise
                return False
            return True

        if not wait_until(ready, 10.0):
            raise DevStackError(f"the mount {name} did not get ready")

    def _list_leases(self, prefix: str) -> list[str]:
        try:
            answer = self.bao.request("LIST", self.layout.leases(f"sys/leases/lookup/{prefix}"))
        except Refused as error:
            if error.status != http.client.NOT_FOUND:
                raise
            return []
        return [str(key) for key in answer["data"]["keys"]]


def _canary(kind: str) -> str:
    return f"canary-{kind}-{secrets.token_hex(12)}"


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)
