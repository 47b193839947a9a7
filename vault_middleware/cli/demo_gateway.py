"""The gateway that the demo runs under uvicorn; everything it knows of Vault comes from the environment."""

import os
import time

import psycopg
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vault_middleware import VaultMiddleware


def key(request: Request) -> Response:
    """Read a static secret, and say how long that took; the value itself stays here."""
    before = time.perf_counter_ns()
    secret = request.state.secrets.get_secret("api-gateway/api-key")
    took = time.perf_counter_ns() - before
    return JSONResponse({"keys": sorted(secret), "version": secret.version, "microseconds": took / 1000})


def who(request: Request) -> Response:
    """Log in to PostgreSQL with the dynamic user, and let the database say who that is."""
    credential = request.state.secrets.get_dynamic_secret("database/creds/api-gateway")
    with psycopg.connect(
        host=os.environ["DATABASE_HOST"],
        port=os.environ["DATABASE_PORT"],
        dbname="postgres",
        user=credential["username"],
        password=credential["password"],
    ) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    return JSONResponse({"database_user": row[0] if row else None})


def metrics(_request: Request) -> Response:
    """For Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


app = Starlette(routes=[Route("/key", key), Route("/who", who), Route("/metrics", metrics)])
app.add_middleware(VaultMiddleware)
