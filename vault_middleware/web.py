"""What the ASGI and the WSGI middleware share: the request's identity, and errors as responses."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from .errors import LeaseLimitReached, SecretUnavailable, VaultMiddlewareError
from .telemetry.lines import METHOD, TEXT, Identity, described, escaped

__all__ = ["asgi_identity", "error_response", "wsgi_identity"]

#: What a request id from outside may look like; anything else is replaced, because it travels in a header to Vault.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

#: The trace id of a W3C ``traceparent``: version, 32 hex digits, parent id, flags; all zeros is none.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

#: A new id begins with these 16 hex digits, which no two processes have in common.
_process = os.urandom(8).hex()

#: What a client is asked to wait before it tries again, in seconds.
RETRY_AFTER = 5


def request_id(header: str | None, traceparent: str | None, number: int) -> str:
    """The ``X-Request-ID``, else the trace id of ``traceparent``, else a new id: this process's, and *number* in it."""
    if header is not None and _REQUEST_ID.fullmatch(header):
        return header
    if traceparent is not None and (match := _TRACEPARENT.fullmatch(traceparent)):
        return match[1]
    return f"{_process}{number:016x}"


def asgi_identity(scope: Mapping[str, Any], number: int) -> Identity:
    """Who asks, of a request as its ASGI scope tells it; *number* makes an id for one that came without."""
    try:
        return (
            _asgi_asked,
            _asgi_request_id,
            scope["type"],
            scope["headers"],
            scope["client"],
            scope["method"],
            scope["path"],
            scope.get("route"),
            number,
        )
    except KeyError:  # over a unix socket there may be no client, and a websocket has no method
        told = map(scope.get, ("type", "headers", "client", "method", "path", "route"))
        return (_asgi_asked, _asgi_request_id, *told, number)


def _asgi_asked(identity: Identity) -> str:
    """Its id, the address that the server saw, the method or ``WEBSOCKET``, and the route if it is told, else the path."""
    _, _, kind, headers, client, method, place, route, _ = identity
    if kind == "websocket":
        method = "WEBSOCKET"
    where = "path"
    # Nearly always the id consists of letters, digits and dashes, all is short, and nothing has to be escaped.
    try:
        if route is not None and isinstance(path := route.path, str):
            where, place = "route", path
        for name, value in headers:
            if name == b"x-request-id":
                if len(value) > 128 or not value.replace(b"-", b"").isalnum():
                    break
                part = (
                    f',"request_id":"{value.decode()}","client":{escaped(client[0])}'
                    f',"method":{escaped(method)},"{where}":{escaped(place)}'
                )
                if len(part) <= TEXT and len(method) <= METHOD and "\\" not in part:
                    return part
                break
    except (AttributeError, TypeError):  # a route of another kind, or no client
        pass
    return described(_asgi_request_id(identity), client[0] if client else None, method, where, str(place or ""))


def _asgi_request_id(identity: Identity) -> str:
    """See :func:`request_id`."""
    headers = list(identity[3] or ())[::-1]  # the first of a name counts
    told = {name.lower(): value for name, value in headers} | dict(headers)  # some servers leave the names as they came
    header, traceparent = told.get(b"x-request-id"), told.get(b"traceparent")
    return request_id(
        None if header is None else header.decode("latin-1"),
        None if traceparent is None else traceparent.decode("latin-1"),
        identity[8],
    )


def wsgi_identity(environ: Mapping[str, Any], number: int) -> Identity:
    """Who asks, of a request as its WSGI environ tells it; *number* makes an id for one that came without."""
    get = environ.get
    return (
        _wsgi_asked,
        _wsgi_request_id,
        get("HTTP_X_REQUEST_ID"),
        get("HTTP_TRACEPARENT"),
        get("REMOTE_ADDR"),
        get("REQUEST_METHOD"),
        get("SCRIPT_NAME", ""),
        get("PATH_INFO", ""),
        number,
    )


def _wsgi_asked(identity: Identity) -> str:
    """Its id, the address that the server saw, the method, and the path below the server's root.

    WSGI has the path's bytes as Latin-1, whatever they are.
    """
    client, method, above, below = identity[4:8]
    path: str = above + below
    if not path.isascii():
        path = path.encode("latin-1", "replace").decode("utf-8", "replace")
    return described(_wsgi_request_id(identity), client, method, "path", path)


def _wsgi_request_id(identity: Identity) -> str:
    """See :func:`request_id`."""
    return request_id(identity[2], identity[3], identity[8])


def error_response(error: VaultMiddlewareError) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body for an error that a handler let through; nothing of a secret, a path or a server in it."""
    passing = isinstance(error, SecretUnavailable | LeaseLimitReached)
    status, text = (503, b"Service Unavailable\n") if passing else (500, b"Internal Server Error\n")
    headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(text)))]
    if passing:
        headers.append(("retry-after", str(RETRY_AFTER)))
    return status, headers, text


def _after_fork() -> None:
    """In a forked child: ids of its own."""
    global _process  # noqa: PLW0603
    _process = os.urandom(8).hex()


os.register_at_fork(after_in_child=_after_fork)
