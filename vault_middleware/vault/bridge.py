"""hvac over our transport: hvac knows the endpoints, the transport knows deadlines, TLS and what an answer may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvac.adapters import Adapter

from .transport import Answer, Transport

__all__ = ["Bridge"]


class Bridge(Adapter):  # type: ignore[misc]
    """The adapter under hvac's API classes, for one call: everything is passed in, nothing is read from the environment.

    hvac's own adapters drop the headers, follow redirects to other hosts with the token, bound each ``recv`` instead of
    the whole call, and raise errors that carry the server's body.

    Parameters
    ----------
    namespace
        Leads the path; empty for the root. No ``X-Vault-Namespace`` header is sent, which Vault Community would ignore.
    timeout
        For the whole call, in seconds.
    """

    def __init__(
        self,
        transport: Transport,
        operation: str,
        *,
        timeout: float,
        token: str | None = None,
        namespace: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # Adapter.__init__ is not called: it would make a session of its own.
        self._transport = transport
        self._operation = operation
        self._timeout = timeout
        self._token = token
        self._root = f"/v1/{namespace}/" if namespace else "/v1/"
        self._headers = headers

    def get_login_token(self, response: Answer) -> None:
        """Nothing: whoever logs in takes the token from the answer."""

    def request(
        self, method: str, url: str, headers: Any = None, raise_exception: bool = True, **kwargs: Any
    ) -> Answer:
        """Send it; the answer comes back whatever its status."""
        return self._transport.request(
            self._operation,
            method.upper(),
            self._root + url.removeprefix("/v1/"),
            timeout=self._timeout,
            token=self._token,
            body=kwargs.get("json"),
            params=kwargs.get("params"),
            headers=self._headers,
        )
