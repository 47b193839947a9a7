"""What the ASGI and the WSGI middleware share: the request's identity, and errors as responses."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from .errors import LeaseLimitReached, SecretUnavailable, VaultMiddlewareError

__all__ = ["ASGIIdentity", "WSGIIdentity", "error_response"]

#: What a request id from outside may look like; anything else is replaced, because it travels in a header to Vault.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

#: The trace id of a W3C ``traceparent``: version, 32 hex digits, parent id, flags; all zeros is none.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

#: What a client is asked to wait before it tries again, in seconds.
RETRY_AFTER = 5


def request_id(header: str | None, traceparent: str | None) -> str:
    """The ``X-Request-ID``, else the trace id of ``traceparent``, else a new id."""
    if header is not None and _REQUEST_ID.fullmatch(header):
        return header
    if traceparent is not None and (match := _TRACEPARENT.fullmatch(traceparent)):
        return match[1]
    return os.urandom(16).hex()


class ASGIIdentity:
    """A request as its ASGI scope tells it; read only when a secret is."""

    __slots__ = ("_ids", "_scope")

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._scope = scope
        self._ids: list[str] = []

    def settle(self) -> None:
        """Keep what the properties need, and let go of the request itself."""
        get = self._scope.get
        self._scope = {
            "type": get("type"),
            "headers": get("headers", ()),
            "client": get("client"),
            "method": get("method"),
            "route": get("route"),
            "path": get("path", ""),
        }

    @property
    def request_id(self) -> str:
        """See :func:`request_id`; one and the same, whichever thread asks first."""
        if not self._ids:
            found = trace = None
            for name, value in self._scope.get("headers", ()):
                if len(name) == 12 and name.lower() == b"x-request-id":  # the length tells nearly all others quickly
                    found = value.decode("latin-1")  # which makes text of any bytes
                elif len(name) == 11 and name.lower() == b"traceparent":
                    trace = value.decode("latin-1")
            self._ids.append(request_id(found, trace))
        return self._ids[0]

    @property
    def client(self) -> str | None:
        """The address that the server saw."""
        client = self._scope.get("client")
        return client[0] if client else None

    @property
    def method(self) -> str | None:
        """The HTTP method, or ``WEBSOCKET``."""
        return "WEBSOCKET" if self._scope["type"] == "websocket" else self._scope.get("method")

    @property
    def place(self) -> tuple[str, str]:
        """The route where the framework tells it, else the path."""
        route = self._scope.get("route")
        if route is not None and isinstance(path := getattr(route, "path", None), str):
            return "route", path
        return "path", str(self._scope.get("path", ""))


class WSGIIdentity:
    """A request as its WSGI environ tells it; read only when a secret is."""

    __slots__ = ("_environ", "_ids")

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._environ = environ
        self._ids: list[str] = []

    def settle(self) -> None:
        """Keep what the properties need, and let go of the request itself."""
        get = self._environ.get
        self._environ = {
            "HTTP_X_REQUEST_ID": get("HTTP_X_REQUEST_ID"),
            "HTTP_TRACEPARENT": get("HTTP_TRACEPARENT"),
            "REMOTE_ADDR": get("REMOTE_ADDR"),
            "REQUEST_METHOD": get("REQUEST_METHOD"),
            "SCRIPT_NAME": get("SCRIPT_NAME", ""),
            "PATH_INFO": get("PATH_INFO", ""),
        }

    @property
    def request_id(self) -> str:
        """See :func:`request_id`; one and the same, whichever thread asks first."""
        if not self._ids:
            found, trace = self._environ.get("HTTP_X_REQUEST_ID"), self._environ.get("HTTP_TRACEPARENT")
            self._ids.append(request_id(found, trace))
        return self._ids[0]

    @property
    def client(self) -> str | None:
        """The address that the server saw."""
        return self._environ.get("REMOTE_ADDR")

    @property
    def method(self) -> str | None:
        """The HTTP method."""
        return self._environ.get("REQUEST_METHOD")

    @property
    def place(self) -> tuple[str, str]:
        """The path below the server's root; WSGI has its bytes as Latin-1, whatever they are."""
        path: str = self._environ.get("SCRIPT_NAME", "") + self._environ.get("PATH_INFO", "")
        return "path", path.encode("latin-1", "replace").decode("utf-8", "replace")


def error_response(error: VaultMiddlewareError) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body for an error that a handler let through; nothing of a secret, a path or a server in it."""
    passing = isinstance(error, SecretUnavailable | LeaseLimitReached)
    status, text = (503, b"Service Unavailable\n") if passing else (500, b"Internal Server Error\n")
    headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(text)))]
    if passing:
        headers.append(("retry-after", str(RETRY_AFTER)))
    return status, headers, text
