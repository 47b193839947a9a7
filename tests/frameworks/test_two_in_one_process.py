"""Two middlewares in one process: beside each other, and one within the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from starlette.types import Receive, Scope, Send
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from tests.fakes import DYNAMIC, STATIC, FakeVault, manager_over
from vault_middleware import SecretsManager, VaultMiddleware, VaultWSGIMiddleware, current_secrets

from .asking import get

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


@pytest.fixture
def second() -> Iterator[SecretsManager]:
    """Whose static secret is its third value, so that the two can be told apart."""
    with manager_over(FakeVault()) as second:
        for _ in range(3):
            second.get_secret(STATIC, fresh=True)
        yield second


def _wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    secrets = environ["vault_middleware.secrets"]
    assert current_secrets() is secrets
    yield f"{secrets.get_secret(STATIC)['value']}".encode()


def test_beside_each_other_each_reads_by_its_own_manager(manager: SecretsManager, second: SecretsManager) -> None:
    one, two = VaultWSGIMiddleware(_wsgi, manager), VaultWSGIMiddleware(_wsgi, second)
    client = Client(DispatcherMiddleware(one, {"/two": two}))
    answers = [client.get(path, buffered=True).text for path in ("/", "/two", "/", "/two")]
    assert answers == ["value-1", "value-3", "value-1", "value-3"]


def test_a_wsgi_application_within_another_gives_the_outer_ones_accessor_back(
    manager: SecretsManager, second: SecretsManager
) -> None:
    def outer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        mine = environ["vault_middleware.secrets"]
        inner: Any = VaultWSGIMiddleware(_wsgi, second)(environ, start_response)
        try:
            yield from inner
        finally:
            inner.close()
        assert environ["vault_middleware.secrets"] is mine
        assert environ["vault_middleware.manager"] is manager
        assert current_secrets() is mine
        yield f" {mine.get_secret(STATIC)['value']}".encode()

    assert Client(VaultWSGIMiddleware(outer, manager)).get("/", buffered=True).text == "value-3 value-1"


def test_an_asgi_application_within_another_gives_the_outer_ones_accessor_back(
    manager: SecretsManager, second: SecretsManager
) -> None:
    said: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert current_secrets() is scope["state"]["secrets"]
        said.append((await scope["state"]["secrets"].aget_secret(STATIC))["value"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    inner = VaultMiddleware(app, second)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        mine = scope["state"]["secrets"]
        await inner(scope, receive, send)
        assert scope["state"]["secrets"] is mine
        assert scope["state"]["secrets_manager"] is manager
        assert current_secrets() is mine
        said.append((await mine.aget_secret(STATIC))["value"])

    assert get(VaultMiddleware(outer, manager)).status_code == 200
    assert said == ["value-3", "value-1"]


def test_the_end_of_one_leaves_the_other_at_work(manager: SecretsManager, second: SecretsManager) -> None:
    manager.start()
    before = second.get_dynamic_secret(DYNAMIC)
    manager.get_dynamic_secret(DYNAMIC)
    manager.close()
    assert second.started
    assert second.get_dynamic_secret(DYNAMIC) is before
