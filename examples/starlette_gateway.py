"""An API gateway in Starlette: forwards with the API key from Vault, and asks the database as a dynamic user.

Run it:  uvicorn examples.starlette_gateway:app
Settings of its own, besides those of vault-middleware: UPSTREAM_URL, DATABASE_HOST, DATABASE_PORT, DATABASE_NAME.
"""

import os

import psycopg
import requests
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vault_middleware import VaultMiddleware

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8081")
DATABASE_HOST = os.environ.get("DATABASE_HOST", "127.0.0.1")
DATABASE_PORT = os.environ.get("DATABASE_PORT", "5432")
DATABASE_NAME = os.environ.get("DATABASE_NAME", "postgres")


def forward(request: Request) -> Response:
    """Ask the upstream, with the key that the client never sees."""
    key = request.state.secrets.get_secret("api-gateway/api-key")["value"]
    answer = requests.get(
        f"{UPSTREAM_URL}/{request.path_params['path']}",
        params=dict(request.query_params),
        headers={"X-API-Key": key, "X-Request-ID": request.headers.get("X-Request-ID", "")},
        timeout=10,
    )
    return Response(answer.content, answer.status_code, media_type=answer.headers.get("Content-Type"))


def who(request: Request) -> Response:
    """The database's own word for who asks: a user that Vault has made for this process."""
    credential = request.state.secrets.get_dynamic_secret("database/creds/api-gateway")
    with psycopg.connect(
        user=credential["username"],
        password=credential["password"],
        host=DATABASE_HOST,
        port=DATABASE_PORT,
        dbname=DATABASE_NAME,
    ) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    return JSONResponse({"database_user": row[0] if row else None})


async def tenant(request: Request) -> Response:
    """In an async handler: a hit is immediate, a miss runs off the event loop."""
    secret = await request.state.secrets.aget_secret("shared/jwt")
    return JSONResponse({"keys": sorted(secret)})


app = Starlette(
    routes=[
        Route("/api/{path:path}", forward),
        Route("/who", who),
        Route("/tenant", tenant),
    ]
)
app.add_middleware(VaultMiddleware)  # everything from the environment
