"""An API gateway in plain WSGI: forwards with the API key from Vault, and asks the database as a dynamic user.

Run it:  gunicorn examples.wsgi_gateway:app   or   waitress-serve examples.wsgi_gateway:app
Settings of its own, besides those of vault-middleware: UPSTREAM_URL, DATABASE_HOST, DATABASE_PORT, DATABASE_NAME.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import psycopg
import requests

from vault_middleware import VaultWSGIMiddleware

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8081")
DATABASE_HOST = os.environ.get("DATABASE_HOST", "127.0.0.1")
DATABASE_PORT = os.environ.get("DATABASE_PORT", "5432")
DATABASE_NAME = os.environ.get("DATABASE_NAME", "postgres")


def gateway(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """``/api/…`` is forwarded, ``/who`` answers who we are at the database."""
    secrets = environ["vault_middleware.secrets"]
    path: str = environ["PATH_INFO"]
    if path.startswith("/api/"):
        key = secrets.get_secret("api-gateway/api-key")["value"]
        answer = requests.get(f"{UPSTREAM_URL}/{path[5:]}", headers={"X-API-Key": key}, timeout=10)
        kind = answer.headers.get("Content-Type", "application/octet-stream")
        start_response(f"{answer.status_code} {answer.reason}", [("Content-Type", kind)])
        return [answer.content]
    if path == "/who":
        credential = secrets.get_dynamic_secret("database/creds/api-gateway")
        with psycopg.connect(
            user=credential["username"],
            password=credential["password"],
            host=DATABASE_HOST,
            port=DATABASE_PORT,
            dbname=DATABASE_NAME,
        ) as connection:
            row = connection.execute("SELECT current_user").fetchone()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"database_user": row[0] if row else None}).encode()]
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"try /api/... or /who\n"]


app = VaultWSGIMiddleware(gateway)  # everything from the environment
