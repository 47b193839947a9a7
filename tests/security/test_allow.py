"""Allow-lists of routes: what a route does not say that it reads, its request cannot read."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi
import flask
import httpx
import litestar
import pytest
import quart
from django import urls
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from werkzeug.test import Client

from tests.fakes import DYNAMIC, STATIC, FakeVault, audit_lines, manager_over
from tests.frameworks.asking import once, websocket_scope
from tests.frameworks.django_project import project
from vault_middleware import RequestSecrets, SecretsManager, VaultMiddleware, VaultWSGIMiddleware, current_secrets
from vault_middleware.accessor import activate, deactivate
from vault_middleware.allow import secrets_allowed
from vault_middleware.errors import AccessorClosed, ConfigurationError, SecretAccessDenied

OTHER = "app/other"


@pytest.fixture
def vault() -> FakeVault:
    return FakeVault()


@pytest.fixture
def manager(vault: FakeVault, tmp_path: Path) -> Iterator[SecretsManager]:
    with manager_over(vault, audit=tmp_path / "audit") as manager:
        yield manager


@pytest.fixture
def secrets(manager: SecretsManager) -> Iterator[RequestSecrets]:
    """The accessor of a request that is being handled."""
    with RequestSecrets(manager) as accessor:
        token = activate(accessor)
        yield accessor
        deactivate(token)


def tried(secrets: RequestSecrets) -> str:
    """What a handler that reads both gets."""
    got = secrets.get_secret(STATIC)["value"][:5]
    try:
        secrets.get_secret(OTHER)
    except SecretAccessDenied:
        return f"{got}, denied"
    return f"{got}, read"


async def atried(secrets: RequestSecrets) -> str:
    got = (await secrets.aget_secret(STATIC))["value"][:5]
    try:
        await secrets.aget_secret(OTHER)
    except SecretAccessDenied:
        return f"{got}, denied"
    return f"{got}, read"


# -- the rule


def test_what_the_route_did_not_declare_is_refused_by_every_getter_and_nothing_is_asked(
    secrets: RequestSecrets, vault: FakeVault
) -> None:
    @secrets_allowed(STATIC)
    def handler() -> None:
        secrets.get_secret(STATIC)
        for call in (
            lambda: secrets.get_secret(OTHER),
            lambda: secrets.get_secret(OTHER, version=2),
            lambda: secrets.get_secret(OTHER, fresh=True),
            lambda: secrets.get_dynamic_secret(DYNAMIC),
            lambda: current_secrets().get_secret(OTHER),
            lambda: asyncio.run(secrets.aget_secret(OTHER)),
            lambda: asyncio.run(secrets.aget_dynamic_secret(DYNAMIC)),
        ):
            with pytest.raises(SecretAccessDenied, match="secrets_allowed"):
                call()  # type: ignore[no-untyped-call]

    handler()
    assert vault.reads == [STATIC]


def test_a_refusal_is_counted_and_audited_as_denied(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    with manager_over(FakeVault(), audit=tmp_path / "audit") as manager:
        manager._metrics = type(manager._metrics).for_registry(registry)
        manager._engine = manager._build()

        @secrets_allowed(STATIC)
        def handler(secrets: RequestSecrets) -> None:
            with pytest.raises(SecretAccessDenied):
                secrets.get_dynamic_secret(DYNAMIC)

        with RequestSecrets(manager) as accessor:
            token = activate(accessor)
            handler(accessor)
            deactivate(token)
        (line,) = audit_lines(tmp_path / "audit", "secret_access")
        assert (line["secret_path"], line["kind"], line["outcome"], line["reason"]) == (
            DYNAMIC,
            "dynamic",
            "denied",
            "denied",
        )
        assert "request_id" in line
        assert registry.get_sample_value("vault_secret_errors_total", {"reason": "denied"}) == 1.0


def test_a_secret_that_the_request_has_read_before_is_refused_too(secrets: RequestSecrets) -> None:
    @secrets_allowed("db/*")
    def handler() -> None:
        assert secrets.get_dynamic_secret(DYNAMIC)["username"] == user
        for _ in range(2):
            with pytest.raises(SecretAccessDenied):
                secrets.get_secret(STATIC)

    user = secrets.get_dynamic_secret(DYNAMIC)["username"]
    for _ in range(3):
        secrets.get_secret(STATIC)
    handler()


def test_it_holds_to_the_end_of_the_request_and_no_longer(secrets: RequestSecrets, manager: SecretsManager) -> None:
    secrets_allowed(STATIC)(lambda: None)()
    assert tried(secrets) == "value, denied"
    with RequestSecrets(manager) as another:
        assert tried(another) == "value, read"
    secrets.close()
    with pytest.raises(AccessorClosed):
        secrets.get_secret(OTHER)


def test_of_several_lists_each_has_to_allow(secrets: RequestSecrets) -> None:
    @secrets_allowed("app/*")
    @secrets_allowed("app/key", "db/*")
    def handler() -> None:
        assert tried(secrets) == "value, denied"
        with pytest.raises(SecretAccessDenied):
            secrets.get_dynamic_secret(DYNAMIC)

    handler()
    handler()


def test_without_a_pattern_nothing_is_allowed(secrets: RequestSecrets) -> None:
    @secrets_allowed()
    def handler() -> None:
        with pytest.raises(SecretAccessDenied):
            secrets.get_secret(STATIC)

    handler()


def test_a_scope_within_is_narrowed_and_a_scope_around_ends_it(secrets: RequestSecrets) -> None:
    @secrets_allowed(STATIC)
    def handler() -> None:
        with secrets.scope() as inner:
            assert tried(inner) == tried(secrets) == tried(current_secrets()) == "value, denied"

    with secrets.scope() as around:
        handler()
        assert tried(around) == tried(secrets) == "value, denied"
    assert tried(secrets) == "value, read"
    handler()
    assert tried(secrets) == "value, denied"


def test_a_thread_without_the_context_is_narrowed_too(secrets: RequestSecrets) -> None:
    found: list[str] = []

    @secrets_allowed(STATIC)
    def handler() -> None:
        thread = threading.Thread(target=lambda: found.append(tried(secrets)))
        thread.start()
        thread.join()

    handler()
    assert found == ["value, denied"]


def test_outside_of_requests_it_does_nothing(manager: SecretsManager) -> None:
    assert secrets_allowed(STATIC)(lambda: manager.get_secret(OTHER)["value"])().startswith("value")


@pytest.mark.parametrize("pattern", ["", " ", 7, None])
def test_a_pattern_that_is_none_is_refused_where_it_is_written(pattern: Any) -> None:
    with pytest.raises(ConfigurationError, match="secrets_allowed"):
        secrets_allowed("app/*", pattern)


def test_a_class_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match="decorate the methods of View"):

        @secrets_allowed("app/*")
        class View:
            """One of a framework's."""


# -- in every framework


def answer(app: Any, path: str) -> httpx.Response:
    """What an ASGI application answers to a GET."""

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_starlette_and_asgi_applications(manager: SecretsManager) -> None:
    @secrets_allowed(STATIC)
    def sync(request: Request) -> PlainTextResponse:
        return PlainTextResponse(tried(request.state.secrets))

    @secrets_allowed(STATIC)
    async def asynchronous(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await atried(request.state.secrets))

    @secrets_allowed(STATIC)
    def streamed(request: Request) -> StreamingResponse:
        def body() -> Iterator[str]:
            yield tried(request.state.secrets)

        return StreamingResponse(body())

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(await atried(scope["state"]["secrets"]))(scope, receive, send)

    def free(request: Request) -> PlainTextResponse:
        return PlainTextResponse(tried(request.state.secrets))

    class Application:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await plain(scope, receive, send)

    app = Starlette(
        routes=[
            Route("/sync", sync),
            Route("/async", asynchronous),
            Route("/streamed", streamed),
            Route("/free", free),
            Mount("/plain", secrets_allowed(STATIC)(plain)),
            Mount("/object", secrets_allowed(STATIC)(Application())),
        ]
    )
    guarded = VaultMiddleware(app, manager)
    for path in ("/sync", "/async", "/streamed", "/plain/", "/object/"):
        assert answer(guarded, path).text == "value, denied", path
    assert answer(guarded, "/free").text == "value, read"


def test_fastapi_still_sees_the_handlers_parameters(manager: SecretsManager) -> None:
    app = fastapi.FastAPI()

    @app.get("/sync/{number}")
    @secrets_allowed(STATIC)
    def sync(number: int) -> str:
        return f"{number} {tried(current_secrets())}"

    @app.get("/async/{number}")
    @secrets_allowed(STATIC)
    async def asynchronous(number: int) -> str:
        return f"{number} {await atried(current_secrets())}"

    guarded = VaultMiddleware(app, manager)
    assert answer(guarded, "/sync/7").json() == answer(guarded, "/async/7").json() == "7 value, denied"
    assert answer(guarded, "/sync/x").status_code == 422


def test_flask_and_wsgi_applications(manager: SecretsManager) -> None:
    app = flask.Flask("app")

    @app.get("/sync")
    @secrets_allowed(STATIC)
    def sync() -> str:
        return tried(current_secrets())

    @app.get("/streamed")
    @secrets_allowed(STATIC)
    def streamed() -> flask.Response:
        secrets = current_secrets()
        return flask.Response(tried(secrets) for _ in range(1))

    @secrets_allowed(STATIC)
    def generator(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield tried(environ["vault_middleware.secrets"]).encode()

    @secrets_allowed(STATIC)
    def plain(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [tried(environ["vault_middleware.secrets"]).encode()]

    for application, path in ((app, "/sync"), (app, "/streamed"), (generator, "/"), (plain, "/")):
        with Client(VaultWSGIMiddleware(application, manager)).get(path) as response:
            assert response.get_data(as_text=True) == "value, denied"


@secrets_allowed(STATIC)
def django_sync(request: HttpRequest) -> HttpResponse:
    return HttpResponse(tried(request.state.secrets))


@secrets_allowed(STATIC)
async def django_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await atried(request.state.secrets))


def django_free(request: HttpRequest) -> HttpResponse:
    return HttpResponse(tried(request.state.secrets))


#: The test's project has this file for its ROOT_URLCONF.
urlpatterns = [urls.path("sync", django_sync), urls.path("async", django_async), urls.path("free", django_free)]


@pytest.fixture
def django_project(manager: SecretsManager) -> Iterator[None]:
    with project(ROOT_URLCONF=__name__, VAULT_MIDDLEWARE={"MANAGER": manager}):
        yield


@pytest.mark.usefixtures("django_project")
def test_django_views_behind_the_middleware_under_wsgi_and_asgi() -> None:
    assert inspect.iscoroutinefunction(django_async)
    for view, expected in (("/sync", "value, denied"), ("/async", "value, denied"), ("/free", "value, read")):
        with Client(WSGIHandler()).get(view) as response:
            assert response.get_data(as_text=True) == expected, view
        assert answer(ASGIHandler(), view).text == expected, view


def test_litestar_handlers_sync_and_async(manager: SecretsManager) -> None:
    @litestar.get("/sync", sync_to_thread=True)
    @secrets_allowed(STATIC)
    def sync(request: litestar.Request[Any, Any, Any]) -> str:
        return tried(request.state.secrets)

    @litestar.get("/async")
    @secrets_allowed(STATIC)
    async def asynchronous(request: litestar.Request[Any, Any, Any]) -> str:
        return await atried(request.state.secrets)

    app = VaultMiddleware(litestar.Litestar([sync, asynchronous], logging_config=None), manager)  # type: ignore[arg-type]
    for view in ("/sync", "/async"):
        assert answer(app, view).text == "value, denied", view


def test_quart_views_sync_and_async(manager: SecretsManager) -> None:
    app = quart.Quart("app")
    app.asgi_app = VaultMiddleware(app.asgi_app, manager)  # type: ignore[method-assign, assignment, arg-type]

    @app.get("/sync")
    @secrets_allowed(STATIC)
    def sync() -> str:
        return tried(current_secrets())

    @app.get("/async")
    @secrets_allowed(STATIC)
    async def asynchronous() -> str:
        return await atried(current_secrets())

    for view in ("/sync", "/async"):
        assert answer(app, view).text == "value, denied", view


def test_a_websocket_is_narrowed_for_all_its_messages_and_the_next_one_is_not(manager: SecretsManager) -> None:
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        for _ in range(2):
            await websocket.receive_text()
            await websocket.send_text(await atried(websocket.state.secrets))
        with websocket.state.secrets.scope() as inner:
            await websocket.send_text(await atried(inner))
        await websocket.close()

    routes = [WebSocketRoute("/", secrets_allowed(STATIC)(talk)), WebSocketRoute("/free", talk)]
    app = VaultMiddleware(Starlette(routes=routes), manager)
    for place, expected in (("/", "value, denied"), ("/free", "value, read")):
        asking = [{"type": "websocket.connect"}, *[{"type": "websocket.receive", "text": "?"}] * 2]
        sent = once(app, websocket_scope(place), *asking)
        assert [message["text"] for message in sent if message["type"] == "websocket.send"] == [expected] * 3


@pytest.mark.parametrize(
    "bring",
    [
        lambda secrets: {"vault_middleware.secrets": secrets},
        lambda secrets: {"type": "http", "state": {"secrets": secrets}},
        lambda secrets: Request({"type": "http", "state": {"secrets": secrets}}),
    ],
)
def test_where_the_context_is_lost_the_request_brings_its_accessor(
    manager: SecretsManager, bring: Callable[[RequestSecrets], Any]
) -> None:
    with RequestSecrets(manager) as accessor:
        assert secrets_allowed(STATIC)(lambda _request: tried(accessor))(bring(accessor)) == "value, denied"
