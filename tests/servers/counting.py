"""A WSGI application that reads five times a request: what its metrics must add up to is known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vault_middleware import VaultWSGIMiddleware

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

#: How often a request reads.
READS = 5


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Three reads of a static secret, two of a lease."""
    secrets = environ["vault_middleware.secrets"]
    if environ["PATH_INFO"] == "/read":
        for _ in range(3):
            secrets.get_secret("api-gateway/api-key")
        for _ in range(2):
            secrets.get_dynamic_secret("database/creds/api-gateway")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


app = VaultWSGIMiddleware(application)
