"""An API gateway in Django, in one file: forwards with the API key from Vault, and asks the database as a dynamic user.

Run it:  gunicorn examples.django_gateway:wsgi   or   uvicorn examples.django_gateway:asgi
Settings of its own, besides those of vault-middleware: UPSTREAM_URL, DATABASE_HOST, DATABASE_PORT, DATABASE_NAME.
"""

import os
from typing import Any

import httpx
import psycopg
import requests
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        SECRET_KEY=os.urandom(32).hex(),
        INSTALLED_APPS=["vault_middleware.integrations.django.VaultConfig"],
        MIDDLEWARE=["vault_middleware.integrations.django.VaultMiddleware"],
        VAULT_MIDDLEWARE={"HANDLE_ERRORS": True},  # everything else from the environment
    )

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8081")
DATABASE: dict[str, Any] = {
    "host": os.environ.get("DATABASE_HOST", "127.0.0.1"),
    "port": os.environ.get("DATABASE_PORT", "5432"),
    "dbname": os.environ.get("DATABASE_NAME", "postgres"),
}


def forward(request: HttpRequest, rest: str) -> HttpResponse:
    """Ask the upstream, with the key that the client never sees."""
    key = request.state.secrets.get_secret("api-gateway/api-key")["value"]
    answer = requests.get(f"{UPSTREAM_URL}/{rest}", headers={"X-API-Key": key}, timeout=10)
    return HttpResponse(answer.content, status=answer.status_code, content_type=answer.headers.get("Content-Type"))


async def aforward(request: HttpRequest, rest: str) -> HttpResponse:
    """The same in an async view: a hit is immediate, a miss runs off the event loop."""
    key = (await request.state.secrets.aget_secret("api-gateway/api-key"))["value"]
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"{UPSTREAM_URL}/{rest}", headers={"X-API-Key": key})
    return HttpResponse(answer.content, status=answer.status_code, content_type=answer.headers.get("Content-Type"))


def who(request: HttpRequest) -> JsonResponse:
    """The database's own word for who asks: a user that Vault has made for this process."""
    credential = request.state.secrets.get_dynamic_secret("database/creds/api-gateway")
    with psycopg.connect(user=credential["username"], password=credential["password"], **DATABASE) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    return JsonResponse({"database_user": row[0] if row else None})


urlpatterns = [path("api/<path:rest>", forward), path("async/<path:rest>", aforward), path("who", who)]

wsgi = get_wsgi_application()
asgi = get_asgi_application()
