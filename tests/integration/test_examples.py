"""The example gateways as real processes: before a real upstream that checks the key, and a real database."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from vault_middleware.devstack import DevStack

from .support import Running, answers, eventually, serve

ROOT = Path(__file__).parents[2]
KEY = "canary-upstream-key"

UVICORN = ("uvicorn", "--port", "{port}", "--log-level", "warning", "examples.starlette_gateway:app")
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning", "examples.wsgi_gateway:app")
WAITRESS = ("waitress-serve", "--listen", "127.0.0.1:{port}", "examples.wsgi_gateway:app")

FASTAPI = (*UVICORN[:-1], "examples.fastapi_gateway:app")
FLASK = (*GUNICORN[:-1], "examples.flask_gateway:create_app()")
DJANGO_WSGI = (*WAITRESS[:-1], "examples.django_gateway:wsgi")
DJANGO_ASGI = (*UVICORN[:-1], "examples.django_gateway:asgi")
QUART = ("hypercorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning", "examples.quart_gateway:app")
LITESTAR = (*UVICORN[:-1], "examples.litestar_gateway:app")


def named(command: tuple[str, ...]) -> str:
    return f"{command[-1].removeprefix('examples.')} under {command[0]}"


gateways = pytest.mark.parametrize(
    "command",
    [UVICORN, GUNICORN, WAITRESS, FASTAPI, FLASK, DJANGO_WSGI, DJANGO_ASGI, QUART, LITESTAR],
    ids=named,
)


@dataclass
class Upstream:
    """A service behind the gateway: greets who shows the key, and refuses everyone else."""

    url: str = ""
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    known = Upstream()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.headers.get("X-API-Key")
            known.keys.append(key)
            known.paths.append(self.path)
            status, body = (200, b"welcome") if key == KEY else (401, b"who are you?")
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        known.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield known
        server.shutdown()
        thread.join(10)


def test_each_example_says_how_it_is_run_and_is_in_this_table() -> None:
    (table,) = [mark.args[1] for mark in [gateways.mark]]
    for example in (ROOT / "examples").glob("*_gateway.py"):
        assert any(f"examples.{example.stem}:" in command[-1] for command in table)
        assert "\nRun it:  " in example.read_text()


def get(running: Running, path: str) -> httpx.Response:
    return httpx.get(f"{running.url}{path}", trust_env=False, timeout=20)


@gateways
def test_a_gateway_forwards_with_the_key_and_asks_the_database_as_its_dynamic_user(
    command: tuple[str, ...], stack: DevStack, upstream: Upstream, tmp_path: Path
) -> None:
    stack.put_secret("api-gateway/api-key", {"value": KEY})
    with serve(command, stack, tmp_path, root=ROOT, UPSTREAM_URL=upstream.url) as running:
        eventually(lambda: answers(running, "/none"), "the gateway to answer")
        forwarded = get(running, "/api/orders/7")
        assert (forwarded.status_code, forwarded.text) == (200, "welcome"), running.log.read_text()
        assert upstream.keys == [KEY]
        assert upstream.paths == ["/orders/7"]

        user = get(running, "/who").json()["database_user"]
        assert user in stack.postgres.users()
        assert get(running, "/who").json()["database_user"] == user

        # A hostile path is the upstream's to judge: it never becomes a path in Vault.
        assert get(running, "/api/..%2f..%2fsys%2fhealth").status_code in (200, 404)
        accesses = running.lines("secret_access")
        assert {line["secret_path"] for line in accesses} == {"api-gateway/api-key", "database/creds/api-gateway"}
        assert [line["outcome"] for line in accesses if line["kind"] == "dynamic"] == ["miss", "hit"]

        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)
        assert running.lines("stop")
        eventually(lambda: user not in stack.postgres.users(), "the database user to go", 5)
        said = running.log.read_text() + running.audit.read_text()
        assert KEY not in said
        assert "Traceback" not in said


def test_an_async_handler_of_the_example_reads_without_a_thread(stack: DevStack, tmp_path: Path) -> None:
    with serve(UVICORN, stack, tmp_path, root=ROOT) as running:
        eventually(lambda: answers(running, "/none"), "the gateway to answer")
        assert get(running, "/tenant").json() == {"keys": ["key", "keys"]}


@pytest.mark.parametrize("command", [UVICORN, GUNICORN], ids=named)
def test_a_key_that_was_replaced_in_vault_reaches_the_upstream_by_itself(
    command: tuple[str, ...], stack: DevStack, upstream: Upstream, tmp_path: Path
) -> None:
    stack.put_secret("api-gateway/api-key", {"value": "canary-old-key"})
    with serve(command, stack, tmp_path, root=ROOT, UPSTREAM_URL=upstream.url, VAULT_CACHE_TTL="500ms") as running:
        eventually(lambda: answers(running, "/none"), "the gateway to answer")
        assert get(running, "/api/x").status_code == 401
        stack.put_secret("api-gateway/api-key", {"value": KEY})
        eventually(lambda: get(running, "/api/x").status_code == 200, "the new key")
