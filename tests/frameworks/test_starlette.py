"""Starlette: typed access to the state, websockets, event streams, mounted applications."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from tests.fakes import DYNAMIC, STATIC, FakeVault, manager_over
from vault_middleware import RequestSecrets, SecretsManager, current_secrets
from vault_middleware.errors import AccessorClosed, ConfigurationError
from vault_middleware.integrations.starlette import VaultMiddleware, manager_of, secrets_of

from .asking import CLOSED, OPEN, get, once, websocket_scope


def test_a_handler_gets_the_secrets_and_the_manager_with_their_types(manager: SecretsManager) -> None:
    def handler(request: Request) -> Response:
        assert secrets_of(request) is request.state.secrets
        assert secrets_of(request) is current_secrets()
        assert manager_of(request) is request.state.secrets_manager
        return JSONResponse([secrets_of(request).get_secret(STATIC)["value"], manager_of(request) is manager])

    app = Starlette(routes=[Route("/", handler)], middleware=[Middleware(VaultMiddleware, manager=manager)])
    assert get(app).json() == ["value-1", True]


def test_without_the_middleware_the_error_says_what_to_add() -> None:
    said = []

    def handler(request: Request) -> Response:
        with pytest.raises(AccessorClosed, match="add_middleware") as raised:
            secrets_of(request)
        said.append(str(raised.value))
        with pytest.raises(ConfigurationError, match="add_middleware"):
            manager_of(request)
        return Response()

    assert get(Starlette(routes=[Route("/", handler)])).status_code == 200
    assert said


def test_a_websocket_has_one_accessor_and_each_message_may_have_a_view_of_its_own(
    manager: SecretsManager, vault: FakeVault
) -> None:
    seen: list[Any] = []

    async def endpoint(websocket: WebSocket) -> None:
        secrets = secrets_of(websocket)
        seen.append(secrets)
        await websocket.accept()
        for _ in range(2):
            await websocket.receive_text()
            with secrets.scope():
                seen.append((await current_secrets().aget_dynamic_secret(DYNAMIC))["username"])
            manager.reject(manager.get_dynamic_secret(DYNAMIC))
        await websocket.close()
        assert repr(secrets) == OPEN

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    text = {"type": "websocket.receive", "text": "x"}
    once(VaultMiddleware(app, manager), websocket_scope(), {"type": "websocket.connect"}, text, text)
    secrets, first, second = seen
    assert first != second
    assert repr(secrets) == CLOSED


def test_an_event_stream_ends_its_accessor_when_the_client_goes_away(manager: SecretsManager) -> None:
    seen: list[RequestSecrets] = []

    def handler(request: Request) -> Response:
        async def events() -> AsyncIterator[str]:
            seen.append(current_secrets())
            while True:  # until it is cancelled
                yield f"data: {(await seen[0].aget_dynamic_secret(DYNAMIC))['username']}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app = VaultMiddleware(Starlette(routes=[Route("/", handler)]), manager)
    sent = 0

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def going_away(message: Any) -> None:
            nonlocal sent
            sent += 1
            if sent > 3:
                raise OSError("the client has gone")
            await send(message)

        await app(scope, receive, going_away)

    assert get(call).status_code in (200, 500)
    assert sent > 3
    assert repr(seen[0]) == CLOSED
    assert manager.health()["leases"], "its lease is the manager's still"


def _value(request: Request) -> Response:
    return PlainTextResponse(f"{request.state.secrets.get_secret(STATIC)['value']}")


def test_a_mounted_application_shares_the_accessor_of_the_request(manager: SecretsManager, vault: FakeVault) -> None:
    app = Starlette(routes=[Mount("/inner", Starlette(routes=[Route("/", _value)])), Route("/", _value)])
    app.add_middleware(VaultMiddleware, manager=manager)
    assert get(app, "/").text == get(app, "/inner/").text == "value-1"


def test_a_mounted_application_with_a_middleware_of_its_own_reads_by_its_own_manager(manager: SecretsManager) -> None:
    other = FakeVault()
    seen: list[str] = []

    class Watching:
        """Between the two: looks before and after the inner one."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            outer = scope["state"]["secrets"]
            try:
                await self.app(scope, receive, send)
            finally:
                assert scope["state"]["secrets"] is outer
                assert scope["state"]["secrets_manager"] is manager
                assert current_secrets() is outer
                seen.append(outer.get_secret(STATIC)["value"])

    def failing(_request: Request) -> Response:
        raise RuntimeError("the handler fails")

    with manager_over(other) as second:
        for _ in range(3):  # the two count for themselves
            second.get_secret(STATIC, fresh=True)
        inner = Starlette(routes=[Route("/", _value), Route("/fail", failing)])
        inner.add_middleware(VaultMiddleware, manager=second)
        app = Starlette(routes=[Mount("/inner", inner), Route("/", _value)])
        app.add_middleware(Watching)
        app.add_middleware(VaultMiddleware, manager=manager)
        assert get(app, "/inner/").text == "value-3"
        assert get(app, "/").text == "value-1"
        assert get(app, "/inner/fail").status_code == 500
    assert seen == ["value-1"] * 3
