"""An API gateway in Quart, through the plain ASGI class.

Run it:  hypercorn examples.quart_gateway:app   or   uvicorn examples.quart_gateway:app
Settings of its own, besides those of vault-middleware: UPSTREAM_URL, DATABASE_HOST, DATABASE_PORT, DATABASE_NAME.
"""

import os
from typing import Any

import httpx
import psycopg
from quart import Quart, Response, request

from vault_middleware import VaultMiddleware, current_secrets

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8081")
DATABASE: dict[str, Any] = {
    "host": os.environ.get("DATABASE_HOST", "127.0.0.1"),
    "port": os.environ.get("DATABASE_PORT", "5432"),
    "dbname": os.environ.get("DATABASE_NAME", "postgres"),
}

app = Quart(__name__)
app.asgi_app = VaultMiddleware(app.asgi_app)  # type: ignore[method-assign, assignment, arg-type]


@app.get("/api/<path:path>")
async def forward(path: str) -> Response:
    """Ask the upstream, with the key that the client never sees."""
    key = (await current_secrets().aget_secret("api-gateway/api-key"))["value"]
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"{UPSTREAM_URL}/{path}", params=request.args.to_dict(), headers={"X-API-Key": key})
    return Response(answer.content, answer.status_code, content_type=answer.headers.get("Content-Type"))


@app.get("/who")
async def who() -> dict[str, str | None]:
    """The database's own word for who asks: a user that Vault has made for this process."""
    credential = await current_secrets().aget_dynamic_secret("database/creds/api-gateway")
    async with await psycopg.AsyncConnection.connect(
        user=credential["username"], password=credential["password"], **DATABASE
    ) as connection:
        row = await (await connection.execute("SELECT current_user")).fetchone()
    return {"database_user": row[0] if row else None}
