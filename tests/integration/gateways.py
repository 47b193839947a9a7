"""The gateways that real servers run in these tests: the same three answers in ASGI and WSGI."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import psycopg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from vault_middleware import RequestSecrets, VaultMiddleware, VaultWSGIMiddleware
from vault_middleware.exits import ExitHooks

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

if os.environ.get("TEST_WITHOUT_HOOKS"):  # what the hooks are worth is seen without them
    ExitHooks.install = lambda self: None  # type: ignore[method-assign]
    ExitHooks.take_sigterm = lambda self: None  # type: ignore[method-assign]


def _user(secrets: RequestSecrets) -> str:
    """Who PostgreSQL says we are, with both halves of the credential from one read."""
    secrets.get_secret("api-gateway/api-key")
    credential = secrets.get_dynamic_secret("database/creds/api-gateway")
    with psycopg.connect(
        host=os.environ["DATABASE_HOST"],
        port=os.environ["DATABASE_PORT"],
        dbname="postgres",
        user=credential["username"],
        password=credential["password"],
    ) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    return str(row and row[0])


def _who(request: Request) -> Response:
    return PlainTextResponse(_user(request.state.secrets))


def _pid(_request: Request) -> Response:
    return PlainTextResponse(str(os.getpid()))


_starlette = Starlette(routes=[Route("/who", _who), Route("/pid", _pid)])
asgi = VaultMiddleware(_starlette)


def _application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = str(os.getpid()) if environ["PATH_INFO"] == "/pid" else _user(environ["vault_middleware.secrets"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]


wsgi = VaultWSGIMiddleware(_application)
