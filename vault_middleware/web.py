"""What the ASGI and the WSGI middleware share: the request's identity, and errors as responses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

from .errors import LeaseLimitReached, SecretUnavailable, VaultMiddlewareError
from .telemetry.lines import Described

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


#: What a server tells of a request, in one step.
_ASGI_KEYS = ("type", "headers", "client", "method", "path")
_ASGI = itemgetter(*_ASGI_KEYS)


class ASGIIdentity:
    """A request as its ASGI scope tells it; of that it keeps what it has to say."""

    __slots__ = ("_ids", "_route", "_told")

    def __init__(self, scope: Mapping[str, Any]) -> None:
        try:
            self._told = _ASGI(scope)
        except KeyError:  # over a unix socket there may be no client, and a websocket has no method
            self._told = tuple(map(scope.get, _ASGI_KEYS))
        self._route = scope.get("route")
        self._ids: list[str] = []

    @property
    def request_id(self) -> str:
        """See :func:`request_id`; one and the same, whichever thread asks first."""
        if not self._ids:
            self._ids.append(_asgi_request_id(self._told[1] or ()))
        return self._ids[0]

    def described(self) -> Described:
        """Its id, the address that the server saw, the method or ``WEBSOCKET``, and the route if it is told, else the path."""
        kind, headers, client, method, path = self._told
        ids = self._ids
        if not ids:
            ids.append(_asgi_request_id(headers or ()))
        where = "path"
        if self._route is not None and isinstance(route := getattr(self._route, "path", None), str):
            where, path = "route", route
        if kind == "websocket":
            method = "WEBSOCKET"
        return ids[0], client[0] if client else None, method, where, path if type(path) is str else str(path or "")


class WSGIIdentity:
    """A request as its WSGI environ tells it; of that it keeps what it has to say."""

    __slots__ = ("_ids", "_told")

    def __init__(self, environ: Mapping[str, Any]) -> None:
        get = environ.get
        ids = get("HTTP_X_REQUEST_ID"), get("HTTP_TRACEPARENT")
        path = get("SCRIPT_NAME", ""), get("PATH_INFO", "")
        self._told = ids, get("REMOTE_ADDR"), get("REQUEST_METHOD"), path
        self._ids: list[str] = []

    @property
    def request_id(self) -> str:
        """See :func:`request_id`; one and the same, whichever thread asks first."""
        if not self._ids:
            self._ids.append(request_id(*self._told[0]))
        return self._ids[0]

    def described(self) -> Described:
        """Its id, the address that the server saw, the method, and the path below the server's root.

        WSGI has the path's bytes as Latin-1, whatever they are.
        """
        _, client, method, parts = self._told
        path = "".join(parts)
        if not path.isascii():
            path = path.encode("latin-1", "replace").decode("utf-8", "replace")
        return self.request_id, client, method, "path", path


def error_response(error: VaultMiddlewareError) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body for an error that a handler let through; nothing of a secret, a path or a server in it."""
    passing = isinstance(error, SecretUnavailable | LeaseLimitReached)
    status, text = (503, b"Service Unavailable\n") if passing else (500, b"Internal Server Error\n")
    headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(text)))]
    if passing:
        headers.append(("retry-after", str(RETRY_AFTER)))
    return status, headers, text


def _asgi_request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """See :func:`request_id`."""
    for name, value in headers:
        if name == b"x-request-id":
            if len(value) <= 128 and value.replace(b"-", b"").isalnum():  # hex digits or a UUID, as nearly always
                return value.decode("ascii")
            break
    told = {name.lower(): value.decode("latin-1") for name, value in headers}  # some servers leave names as they came
    return request_id(told.get(b"x-request-id"), told.get(b"traceparent"))
