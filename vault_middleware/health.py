"""Small ASGI and WSGI applications for a cluster's probes: ``/live``, ``/ready``, and all else as JSON.

Mount one below the application (``Mount("/health", health_asgi(manager))``), or serve it on a port of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .manager import SecretsManager

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["health_asgi", "health_wsgi"]

Manager = SecretsManager | Callable[[], SecretsManager]


def _answer(manager: Manager, path: str) -> tuple[int, bytes]:
    """Status and body for the last segment of *path*.

    Liveness never depends on Vault: to restart a pod mends no server. Readiness does until the first warm-up, and never
    after: in an outage the cache serves, and a pod that is taken out would serve nothing.
    """
    found = manager if isinstance(manager, SecretsManager) else manager()
    what = path.rstrip("/").rsplit("/", 1)[-1]
    if what == "live":
        return 200, b'{"live": true}\n'
    if not found.started and not found.health()["closed"]:
        found.start(wait=False)  # or a server without lifespan would wait for a request that waits for readiness
    if what == "ready":
        return (200, b'{"ready": true}\n') if found.ready else (503, b'{"ready": false}\n')
    return 200, json.dumps(found.health()).encode() + b"\n"


def health_asgi(manager: Manager) -> ASGIApp:
    """The endpoints as an ASGI application.

    Parameters
    ----------
    manager
        The manager, or a function that gives it (``lambda: middleware.manager``).
    """

    async def endpoint(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, body = _answer(manager, scope["path"])
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return endpoint


def health_wsgi(manager: Manager) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """The endpoints as a WSGI application; *manager* as for :func:`health_asgi`."""

    def endpoint(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, body = _answer(manager, environ.get("PATH_INFO", "/"))
        phrase = "200 OK" if status == 200 else "503 Service Unavailable"
        start_response(phrase, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return endpoint
