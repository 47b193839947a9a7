"""Litestar and Quart: the plain ASGI class around the application, and ``request.state.secrets`` as everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from litestar import Litestar, Request
from litestar import get as litestar_get
from litestar.response import Stream
from quart import Quart, request

from tests.fakes import DYNAMIC, STATIC, FakeVault
from vault_middleware import SecretsManager, VaultMiddleware, current_secrets

from .asking import CLOSED, OPEN, get

seen: list[Any] = []


def litestar(manager: SecretsManager) -> VaultMiddleware:
    @litestar_get("/async")
    async def asynchronous(request: Request[Any, Any, Any]) -> str:
        return str((await request.state.secrets.aget_secret(STATIC))["value"])

    @litestar_get("/sync", sync_to_thread=True)
    def sync(request: Request[Any, Any, Any]) -> str:
        return str(request.state.secrets.get_secret(STATIC)["value"])

    @litestar_get("/beneath")
    async def beneath() -> str:
        return str((await current_secrets().aget_secret(STATIC))["value"])

    @litestar_get("/stream")
    async def stream() -> Stream:
        return Stream(_body())

    app = Litestar([asynchronous, sync, beneath, stream], logging_config=None)  # else it takes the root logger
    return VaultMiddleware(app, manager)  # type: ignore[arg-type]


def quart(manager: SecretsManager) -> Quart:
    app = Quart(__name__)
    app.asgi_app = VaultMiddleware(app.asgi_app, manager)  # type: ignore[method-assign, assignment, arg-type]

    @app.get("/async")
    async def asynchronous() -> str:
        secrets = request.scope["state"]["secrets"]
        return str((await secrets.aget_secret(STATIC))["value"])

    @app.get("/sync")
    def sync() -> str:  # Quart runs it in a thread
        return str(current_secrets().get_secret(STATIC)["value"])

    @app.get("/beneath")
    async def beneath() -> str:
        return str((await current_secrets().aget_secret(STATIC))["value"])

    @app.get("/stream")
    async def stream() -> AsyncIterator[str]:
        return _body()

    return app


async def _body() -> AsyncIterator[str]:
    seen.append(current_secrets())
    for _ in range(2):
        seen.append(repr(seen[0]))
        yield (await current_secrets().aget_dynamic_secret(DYNAMIC))["username"]


frameworks = pytest.mark.parametrize("make", [litestar, quart])


@frameworks
@pytest.mark.parametrize("path", ["/async", "/sync", "/beneath"])
def test_a_handler_of_each_kind_reads_its_secrets(make: Any, path: str, manager: SecretsManager) -> None:
    answer = get(make(manager), path)
    assert (answer.status_code, answer.text) == (200, "value-1")


@frameworks
def test_a_streamed_body_reads_to_its_end_and_then_the_accessor_is_closed(make: Any, manager: SecretsManager) -> None:
    seen.clear()
    assert get(make(manager), "/stream").text == "user-1user-1"
    assert seen[1:] == [OPEN, OPEN]
    assert repr(seen[0]) == CLOSED


@frameworks
def test_the_manager_starts_before_the_application_and_stops_after_it(
    make: Any, manager: SecretsManager, vault: FakeVault
) -> None:
    sent: list[str] = []

    async def main() -> None:
        told: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        started = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message["type"])
            started.set()

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        app = asyncio.ensure_future(make(manager)(scope, told.get, send))
        await told.put({"type": "lifespan.startup"})
        await started.wait()
        assert manager.started
        assert scope["state"]["secrets_manager"] is manager  # type: ignore[index]
        await told.put({"type": "lifespan.shutdown"})
        await app

    asyncio.run(main())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
