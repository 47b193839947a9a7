"""VaultMiddleware: each request its accessor, and errors as responses where that is wanted."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.fakes import DYNAMIC, STATIC, FakeVault, audit_lines, manager_over
from vault_middleware import RequestSecrets, SecretsManager, VaultMiddleware, current_secrets
from vault_middleware.errors import AccessorClosed, SecretNotFound, SecretUnavailable


@pytest.fixture
def vault() -> FakeVault:
    return FakeVault()


@pytest.fixture
def manager(vault: FakeVault) -> Iterator[SecretsManager]:
    with manager_over(vault) as manager:
        yield manager


def http(**more: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []} | more


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def discard(_message: Message) -> None:
    """Nothing."""


def call(app: ASGIApp, scope: Scope, receive: Receive = never) -> list[Message]:
    """What *app* sends in answer to *scope*."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        await app(scope, receive, send)

    asyncio.run(main())
    return sent


def get(app: ASGIApp, path: str = "/") -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(main())


# -- one request


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("state", [{}, {"state": {"kept": 1}}, {"state": None}], ids=["missing", "present", "None"])
def test_a_request_finds_its_accessor_in_the_state(manager: SecretsManager, kind: str, state: dict[str, Any]) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["secrets"])
        assert scope["state"].get("kept") == (1 if state.get("state") else None)
        assert current_secrets() is seen[0]
        assert seen[0].get_secret(STATIC)["value"] == "value-1"

    call(VaultMiddleware(app, manager), {"type": kind, "headers": [], "path": "/", **state})
    assert isinstance(seen[0], RequestSecrets)
    with pytest.raises(AccessorClosed):
        seen[0].get_secret(STATIC)


def test_two_requests_have_two_accessors(manager: SecretsManager) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["secrets"])

    middleware = VaultMiddleware(app, manager)
    call(middleware, http())
    call(middleware, http())
    assert seen[0] is not seen[1]


def test_a_scope_of_an_unknown_type_passes_through_untouched(manager: SecretsManager) -> None:
    scope = {"type": "telepathy"}
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope, receive, send))

    call(VaultMiddleware(app, manager), scope)
    assert seen[0] is scope
    assert seen[1] is never
    assert scope == {"type": "telepathy"}
    assert not manager.started


def test_the_accessor_is_open_until_the_last_chunk_and_the_background_task(manager: SecretsManager) -> None:
    states: list[str] = []
    accessor: list[RequestSecrets] = []

    async def endpoint(request: Request) -> Response:
        secrets = request.state.secrets
        accessor.append(secrets)

        async def body() -> AsyncIterator[str]:
            for _ in range(3):
                states.append(f"chunk {(await secrets.aget_secret(STATIC))['value']}")
                yield "x"

        def afterwards() -> None:
            states.append(f"task {current_secrets().get_secret(STATIC)['value']}")

        return StreamingResponse(body(), background=BackgroundTask(afterwards))

    app = Starlette(routes=[Route("/", endpoint)])
    assert get(VaultMiddleware(app, manager)).text == "xxx"
    assert states == ["chunk value-1"] * 3 + ["task value-1"]
    assert repr(accessor[0]) == "<RequestSecrets closed>"


def test_the_accessor_is_closed_and_its_lease_given_back_when_the_handler_raises(manager: SecretsManager) -> None:
    seen: list[RequestSecrets] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["secrets"])
        seen[0].get_dynamic_secret(DYNAMIC)
        assert manager._engine.cache.entries[DYNAMIC].holds
        raise LookupError("the handler's own")

    with pytest.raises(LookupError, match="the handler's own"):
        call(VaultMiddleware(app, manager), http())
    assert repr(seen[0]) == "<RequestSecrets closed>"
    assert not manager._engine.cache.entries[DYNAMIC].holds


def test_the_accessor_is_closed_when_the_client_goes_away(manager: SecretsManager) -> None:
    """The server cancels what waits, or says so to who listens: both end the request."""
    seen: list[RequestSecrets] = []
    held = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["secrets"])
        await seen[-1].aget_dynamic_secret(DYNAMIC)
        held.set()
        assert (await receive())["type"] == "http.disconnect"

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    call(VaultMiddleware(endless, manager), http(), gone)
    held.clear()

    async def cancelled() -> None:
        task = asyncio.create_task(VaultMiddleware(endless, manager)(http(), never, discard))
        await held.wait()
        assert manager._engine.cache.entries[DYNAMIC].holds
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert [repr(each) for each in seen] == ["<RequestSecrets closed>"] * 2
    assert not manager._engine.cache.entries[DYNAMIC].holds


def test_a_request_that_is_cancelled_while_it_waits_for_a_secret_holds_nothing(
    manager: SecretsManager, vault: FakeVault
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["state"]["secrets"].aget_dynamic_secret(DYNAMIC)

    async def main() -> None:
        vault.open.clear()
        task = asyncio.create_task(VaultMiddleware(app, manager)(http(), never, discard))
        assert await asyncio.to_thread(vault.waiting.acquire, timeout=20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        vault.open.set()
        # The fetch went on for whoever else would have waited.
        assert (await manager.aget_dynamic_secret(DYNAMIC))["username"] == "user-1"
        assert vault.reads == [DYNAMIC]

    asyncio.run(main())
    assert not manager._engine.cache.entries[DYNAMIC].holds


def test_after_the_request_there_is_no_current_accessor(manager: SecretsManager) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert current_secrets() is scope["state"]["secrets"]

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError

    async def main() -> None:
        await VaultMiddleware(app, manager)(http(), never, discard)
        with pytest.raises(AccessorClosed):
            current_secrets()
        with pytest.raises(LookupError):
            await VaultMiddleware(failing, manager)(http(), never, discard)
        with pytest.raises(AccessorClosed):
            current_secrets()

    asyncio.run(main())


def test_a_middleware_within_another_gives_back_the_outer_ones_accessor(manager: SecretsManager) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing."""

    inner = VaultMiddleware(app, manager)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        before = current_secrets()
        await inner(dict(scope), receive, send)
        assert current_secrets() is before

    call(VaultMiddleware(outer, manager), http())


def test_the_audit_line_names_the_request_and_its_id_travels_to_vault(vault: FakeVault, tmp_path: Path) -> None:
    def endpoint(request: Request) -> Response:
        request.state.secrets.get_secret(STATIC)
        return PlainTextResponse("")

    with manager_over(vault, audit=tmp_path / "audit") as manager:
        app = VaultMiddleware(Starlette(routes=[Route("/items/{id}", endpoint)]), manager)
        headers = [(b"x-request-id", b"r-7")]
        call(app, http(path="/items/7", raw_path=b"/items/7", client=("10.0.0.7", 1), headers=headers))
        (line,) = audit_lines(tmp_path / "audit", "secret_access")
    assert (line["request_id"], line["client"], line["method"]) == ("r-7", "10.0.0.7", "GET")
    assert line.get("route", line.get("path")) in ("/items/{id}", "/items/7")
    assert vault.correlation_ids == ["r-7"]


# -- errors as responses


@pytest.mark.parametrize(
    ("error", "status"),
    [(SecretUnavailable("canary/path", "canary"), 503), (SecretNotFound("canary/path", "canary"), 500)],
)
def test_an_error_that_a_handler_lets_through_becomes_a_response_where_that_is_wanted(
    manager: SecretsManager, error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def endpoint(_request: Request) -> Response:
        raise error

    app = Starlette(routes=[Route("/", endpoint)])
    app.add_middleware(VaultMiddleware, manager=manager, handle_errors=True)
    response = get(app)
    assert response.status_code == status
    assert ("Retry-After" in response.headers) is (status == 503)
    assert "canary" not in f"{response.headers}{response.text}"
    assert "a request failed: canary" in caplog.text


def test_unless_it_is_wanted_an_error_passes_through_as_it_is(manager: SecretsManager) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise SecretNotFound("a/b", "not there")

    with pytest.raises(SecretNotFound, match="not there"):
        call(VaultMiddleware(app, manager), http())


def test_an_error_after_the_response_has_begun_makes_no_second_one(manager: SecretsManager) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise SecretUnavailable("a/b", "not now")

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(SecretUnavailable):
        asyncio.run(VaultMiddleware(app, manager, handle_errors=True)(http(), never, send))
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_an_error_of_somebody_else_is_never_answered(manager: SecretsManager) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("somebody else's")

    with pytest.raises(LookupError):
        call(VaultMiddleware(app, manager, handle_errors=True), http())


def test_an_error_of_a_websocket_is_never_answered_as_http(manager: SecretsManager) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise SecretUnavailable("a/b", "not now")

    with pytest.raises(SecretUnavailable):
        call(VaultMiddleware(app, manager, handle_errors=True), {"type": "websocket", "headers": []})


@pytest.mark.parametrize("mode", ["strict", "buffered"])
def test_a_request_that_has_ended_leaves_nothing_for_the_garbage_collector(mode: str, tmp_path: Path) -> None:
    """What it leaves is freed at once: cycles would cost each request a share of a collection."""

    class Scope(dict[str, Any]):
        """A scope whose end can be seen."""

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        scope["state"]["secrets"].get_secret(STATIC)
        scope["state"]["secrets"].get_secret(STATIC)

    with manager_over(FakeVault(), audit=tmp_path / "audit.jsonl", audit_mode=mode) as manager:
        manager.get_secret(STATIC)
        middleware = VaultMiddleware(app, manager=manager)
        gc.disable()
        try:
            scope = Scope(type="http", method="GET", path="/", headers=[], client=None)
            gone = weakref.ref(scope)
            asyncio.run(middleware(scope, None, None))  # type: ignore[arg-type]
            del scope
            assert gone() is None
        finally:
            gc.enable()
