"""VaultMiddleware: the manager's life with the application's, and what becomes of a wrong configuration."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.fakes import STATIC, FakeVault, manager_over
from vault_middleware import SecretConfig, SecretsManager, VaultMiddleware
from vault_middleware.errors import ConfigurationError


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
    asyncio.run(middleware(http(), never, discard))
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
