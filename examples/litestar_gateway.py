"""An API gateway in Litestar, through the plain ASGI class around the application.

Run it:  uvicorn examples.litestar_gateway:app
Settings of its own, besides those of vault-middleware: UPSTREAM_URL, DATABASE_HOST, DATABASE_PORT, DATABASE_NAME.
"""

import os
from typing import Any

import httpx
import psycopg
from litestar import Litestar, Request, Response, get

from vault_middleware import VaultMiddleware, current_secrets

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8081")
DATABASE: dict[str, Any] = {
    "host": os.environ.get("DATABASE_HOST", "127.0.0.1"),
    "port": os.environ.get("DATABASE_PORT", "5432"),
    "dbname": os.environ.get("DATABASE_NAME", "postgres"),
}


@get("/api/{path:path}")
async def forward(path: str, request: Request[Any, Any, Any]) -> Response[bytes]:
    """Ask the upstream, with the key that the client never sees."""
    key = (await request.state.secrets.aget_secret("api-gateway/api-key"))["value"]
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"{UPSTREAM_URL}{path}", headers={"X-API-Key": key})
    return Response(
        answer.content, status_code=answer.status_code, media_type=answer.headers.get("Content-Type", "text/plain")
    )


@get("/who", sync_to_thread=True)
def who() -> dict[str, str | None]:
    """The database's own word for who asks: a user that Vault has made for this process."""
    credential = current_secrets().get_dynamic_secret("database/creds/api-gateway")
    with psycopg.connect(user=credential["username"], password=credential["password"], **DATABASE) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    return {"database_user": row[0] if row else None}


app = VaultMiddleware(Litestar([forward, who]))  # type: ignore[arg-type]
