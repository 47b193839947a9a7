"""An API gateway in FastAPI: forwards with the API key from Vault, and asks the database as a dynamic user.

Run it:  uvicorn examples.fastapi_gateway:app
Settings of its own, besides those of vault-middleware: UPSTREAM_URL, DATABASE_HOST, DATABASE_PORT, DATABASE_NAME.
"""

import os
from typing import Annotated, Any

import httpx
import psycopg
from fastapi import FastAPI, Header, Request, Response

from vault_middleware.integrations.fastapi import SecretsDep, VaultMiddleware

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8081")
DATABASE: dict[str, Any] = {
    "host": os.environ.get("DATABASE_HOST", "127.0.0.1"),
    "port": os.environ.get("DATABASE_PORT", "5432"),
    "dbname": os.environ.get("DATABASE_NAME", "postgres"),
}

app = FastAPI()
app.add_middleware(VaultMiddleware)  # everything from the environment


@app.get("/api/{path:path}")
async def forward(
    path: str, request: Request, secrets: SecretsDep, x_request_id: Annotated[str, Header()] = ""
) -> Response:
    """Ask the upstream, with the key that the client never sees; a miss runs off the event loop."""
    key = (await secrets.aget_secret("api-gateway/api-key"))["value"]
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(
            f"{UPSTREAM_URL}/{path}",
            params=dict(request.query_params),
            headers={"X-API-Key": key, "X-Request-ID": x_request_id},
        )
    return Response(answer.content, answer.status_code, media_type=answer.headers.get("Content-Type"))


@app.get("/who")
def who(secrets: SecretsDep) -> dict[str, str | None]:
    """The database's own word for who asks: a user that Vault has made for this process. Runs in a worker thread."""
    credential = secrets.get_dynamic_secret("database/creds/api-gateway")
    with psycopg.connect(user=credential["username"], password=credential["password"], **DATABASE) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    return {"database_user": row[0] if row else None}
