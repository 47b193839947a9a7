"""VaultMiddleware: each request its accessor, and the manager's life with the application's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
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
from vault_middleware import RequestSecrets, SecretConfig, SecretsManager, VaultMiddleware, current_secrets
from vault_middleware.errors import AccessorClosed, ConfigurationError, SecretNotFound, SecretUnavailable


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


# -- the lifespan


class Server:
    """A server's side of the lifespan protocol, step by step; it notes what happens in which order."""

    def __init__(self, app: ASGIApp, **scope: Any) -> None:
        self.happened: list[str] = []
        self.scope: MutableMapping[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}, **scope}
        self.sent: list[Message] = []
        self._app = app
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._said: asyncio.Queue[Message | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def _send(self, message: Message) -> None:
        self.happened.append(message["type"])
        self.sent.append(message)
        self._said.put_nowait(message)

    async def _run(self) -> None:
        try:
            await self._app(self.scope, self._told.get, self._send)
        finally:
            self._said.put_nowait(None)

    async def startup(self) -> str | None:
        """What came in answer; None if the application ended without any."""
        self._told.put_nowait({"type": "lifespan.startup"})
        self._task = asyncio.create_task(self._run())
        said = await self._said.get()
        return None if said is None else str(said["type"])

    async def shutdown(self) -> str | None:
        self._told.put_nowait({"type": "lifespan.shutdown"})
        said = await self._said.get()
        return None if said is None else str(said["type"])

    @property
    def told_everything(self) -> bool:
        """Whether every message has been received."""
        return self._told.empty()

    async def end(self) -> None:
        assert self._task is not None
        await self._task


def lifespan_of(app: ASGIApp) -> tuple[str | None, str | None]:
    """Start and stop *app* in order."""

    async def main() -> tuple[str | None, str | None]:
        server = Server(app)
        outcome = await server.startup(), await server.shutdown()
        await server.end()
        return outcome

    return asyncio.run(main())


@pytest.fixture
def own(vault: FakeVault, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[ASGIApp], VaultMiddleware]]:
    """Middlewares that make a manager of their own, over the fake."""
    with manager_over(vault) as manager:
        monkeypatch.setattr("vault_middleware.asgi.SecretsManager", lambda _config=None: manager)
        yield VaultMiddleware


def test_the_manager_starts_before_the_application_and_stops_after_it(
    own: Callable[[ASGIApp], VaultMiddleware],
) -> None:
    seen: list[tuple[str, bool]] = []

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        seen.append(("startup", middleware.manager.started))
        yield
        seen.append(("shutdown", middleware.manager.started))

    middleware = own(Starlette(lifespan=lifespan))
    assert lifespan_of(middleware) == ("lifespan.startup.complete", "lifespan.shutdown.complete")
    assert seen == [("startup", True), ("shutdown", True)]
    assert not middleware.manager.started


def test_the_manager_is_closed_before_the_server_hears_that_the_shutdown_is_complete(
    own: Callable[[ASGIApp], VaultMiddleware], vault: FakeVault
) -> None:
    middleware = own(Starlette())
    states: list[tuple[str, bool]] = []

    async def main() -> None:
        server = Server(middleware)
        send = server._send

        async def noting(message: Message) -> None:
            states.append((message["type"], middleware.manager.started))
            await send(message)

        server._send = noting  # type: ignore[method-assign]
        await server.startup()
        await server.shutdown()
        await server.end()

    asyncio.run(main())
    assert states == [("lifespan.startup.complete", True), ("lifespan.shutdown.complete", False)]
    assert vault.tokens_revoked == 1


@pytest.mark.parametrize("state", [{}, {"state": {"kept": 1}}], ids=["present", "filled"])
def test_the_lifespan_state_has_the_manager_before_the_application_starts(
    own: Callable[[ASGIApp], VaultMiddleware], state: dict[str, Any]
) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        seen.append(dict(scope["state"]))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    middleware = own(app)

    async def main() -> None:
        server = Server(middleware, **state)
        if not state:
            del server.scope["state"]  # an older server
        await server.startup()
        await server.shutdown()
        await server.end()

    asyncio.run(main())
    assert seen == [{**state.get("state", {}), "secrets_manager": middleware.manager}]


def test_a_manager_that_was_passed_in_is_started_and_not_closed(manager: SecretsManager) -> None:
    assert lifespan_of(VaultMiddleware(Starlette(), manager)) == (
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    )
    assert manager.started


def test_a_manager_that_was_passed_in_started_stays_as_it_is(manager: SecretsManager, vault: FakeVault) -> None:
    manager.start()
    engine = manager._engine
    lifespan_of(VaultMiddleware(Starlette(), manager))
    assert manager.started
    assert manager._engine is engine
    assert vault.tokens_revoked == 0


def test_an_application_whose_start_fails_says_so_itself_and_the_manager_is_closed(
    own: Callable[[ASGIApp], VaultMiddleware],
) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        raise LookupError("the application's own")
        yield

    middleware = own(Starlette(lifespan=lifespan))

    async def main() -> None:
        server = Server(middleware)
        assert await server.startup() == "lifespan.startup.failed"
        assert "the application's own" in server.sent[0]["message"]
        assert not middleware.manager.started
        with pytest.raises(LookupError):
            await server.end()

    asyncio.run(main())


def test_an_application_whose_stop_fails_says_so_itself_and_the_manager_is_closed(
    own: Callable[[ASGIApp], VaultMiddleware],
) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        raise LookupError

    middleware = own(Starlette(lifespan=lifespan))

    async def main() -> None:
        server = Server(middleware)
        await server.startup()
        assert await server.shutdown() == "lifespan.shutdown.failed"
        assert not middleware.manager.started
        with pytest.raises(LookupError):
            await server.end()

    asyncio.run(main())


async def _raises(scope: Scope, _receive: Receive, _send: Send) -> None:
    assert scope["type"] == "http", "only http is known here"


async def _ignores(scope: Scope, _receive: Receive, _send: Send) -> None:
    if scope["type"] == "http":
        raise AssertionError


async def _leaves_early(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def _says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


async def _leaves_late(scope: Scope, receive: Receive, send: Send) -> None:
    await _leaves_early(scope, receive, send)
    await receive()


@pytest.mark.parametrize("app", [_raises, _ignores, _says_nothing, _leaves_early, _leaves_late])
def test_an_application_without_a_whole_lifespan_has_its_manager_started_and_stopped_all_the_same(
    own: Callable[[ASGIApp], VaultMiddleware], app: ASGIApp, vault: FakeVault
) -> None:
    middleware = own(app)

    async def main() -> None:
        server = Server(middleware)
        assert await server.startup() == "lifespan.startup.complete"
        assert middleware.manager.started
        assert middleware.manager.get_secret(STATIC)["value"]
        assert await server.shutdown() == "lifespan.shutdown.complete"
        assert not middleware.manager.started
        await server.end()
        assert server.told_everything

    asyncio.run(main())
    assert vault.tokens_revoked == 1


def test_an_application_that_fails_or_is_cancelled_in_the_midst_of_its_life_closes_the_manager(
    own: Callable[[ASGIApp], VaultMiddleware],
) -> None:
    fail = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await fail.wait()
        raise LookupError

    middleware = own(app)

    async def main() -> None:
        server = Server(middleware)
        await server.startup()
        fail.set()
        with pytest.raises(LookupError):
            await server.end()
        assert not middleware.manager.started

        fail.clear()
        again = Server(middleware)
        await again.startup()
        assert middleware.manager.started
        assert again._task is not None
        again._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await again.end()
        assert not middleware.manager.started

    asyncio.run(main())


def test_where_a_server_goes_on_after_a_start_that_raised_the_secrets_do_too(
    own: Callable[[ASGIApp], VaultMiddleware],
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            raise LookupError
        assert scope["state"]["secrets"].get_secret(STATIC)["value"]

    middleware = own(app)

    async def main() -> None:
        server = Server(middleware)
        assert await server.startup() is None
        with pytest.raises(LookupError):
            await server.end()
        await middleware(http(), never, discard)

    asyncio.run(main())


def test_without_a_lifespan_the_manager_starts_at_the_first_use(own: Callable[[ASGIApp], VaultMiddleware]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert not middleware.manager.started
        await scope["state"]["secrets"].aget_secret(STATIC)

    middleware = own(app)
    call(middleware, http())
    assert middleware.manager.started


def test_a_start_that_cannot_reach_vault_fails_the_lifespan_with_the_error(
    vault: FakeVault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vault.down = True
    with manager_over(vault, startup_timeout=0.05) as manager:
        monkeypatch.setattr("vault_middleware.asgi.SecretsManager", lambda _config=None: manager)

        async def main() -> None:
            server = Server(VaultMiddleware(_raises))
            assert await server.startup() == "lifespan.startup.failed"
            assert "VaultUnavailable" in server.sent[0]["message"]
            await server.end()

        asyncio.run(main())
        assert not manager.started
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)


# -- a wrong configuration


def test_a_wrong_variable_fails_when_the_middleware_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_CLIENT_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="VAULT_CLIENT_TIMEOUT"):
        VaultMiddleware(_raises)


def test_a_wrong_variable_fails_the_lifespan_where_starlette_builds_the_middleware_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VAULT_CLIENT_TIMEOUT", "soon")
    monkeypatch.setenv("VAULT_MAX_RETRIES", "many")
    app = Starlette()
    app.add_middleware(VaultMiddleware)

    async def main() -> Message:
        server = Server(app)
        assert await server.startup() == "lifespan.startup.failed"
        await server.end()
        return server.sent[0]

    message = asyncio.run(main())["message"]
    assert message.startswith("ConfigurationError: ")
    assert "VAULT_CLIENT_TIMEOUT" in message
    assert "VAULT_MAX_RETRIES" in message


def test_a_wrong_variable_is_an_error_at_each_request_where_a_server_serves_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VAULT_CLIENT_TIMEOUT", "soon")
    app = Starlette()
    app.add_middleware(VaultMiddleware)

    async def main() -> None:
        server = Server(app)
        await server.startup()
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="VAULT_CLIENT_TIMEOUT"):
                await app(http(), never, discard)

    asyncio.run(main())


def test_the_settings_may_be_passed_in(vault: FakeVault) -> None:
    config = SecretConfig(vault_addr="http://127.0.0.1:1", vault_role="other")
    assert VaultMiddleware(_raises, config=config).manager.config is config


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
