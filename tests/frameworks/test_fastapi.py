"""FastAPI: the dependency in sync and async endpoints, websockets, background tasks and overrides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket

from tests.fakes import DYNAMIC, STATIC, FakeVault
from vault_middleware import SecretsManager, current_secrets
from vault_middleware.integrations.fastapi import ManagerDep, SecretsDep, VaultMiddleware, request_secrets

from .asking import CLOSED, OPEN, get, once, websocket_scope

seen: list[Any] = []


def audited(secrets: SecretsDep) -> Iterator[str]:
    """A dependency of the application's own, which reads a secret and is torn down after the response."""
    yield secrets.get_secret(STATIC)["value"]
    seen.append(repr(secrets))


@pytest.fixture
def app(manager: SecretsManager) -> FastAPI:
    seen.clear()
    app = FastAPI()
    app.add_middleware(VaultMiddleware, manager=manager, handle_errors=True)

    @app.get("/sync")
    def sync(secrets: SecretsDep) -> str:
        assert secrets is current_secrets()
        return str(secrets.get_secret(STATIC)["value"])

    @app.get("/async")
    async def asynchronous(secrets: SecretsDep) -> str:
        return str((await secrets.aget_secret(STATIC))["value"])

    @app.get("/manager")
    async def of_the_manager(found: ManagerDep) -> bool:
        return found is manager

    @app.get("/beneath")
    def beneath(value: str = Depends(audited)) -> str:
        return value

    @app.get("/task")
    def task(secrets: SecretsDep, tasks: BackgroundTasks) -> str:
        seen.append(secrets)
        tasks.add_task(lambda: seen.append(secrets.get_dynamic_secret(DYNAMIC)["username"]))
        return "done"

    @app.get("/missing")
    def missing(secrets: SecretsDep) -> str:
        return str(secrets.get_secret("nowhere/at-all"))

    @app.websocket("/ws")
    async def websocket(websocket: WebSocket, secrets: SecretsDep) -> None:
        await websocket.accept()
        await websocket.send_text((await secrets.aget_secret(STATIC))["value"])
        await websocket.close()
        seen.append(secrets)

    return app


@pytest.mark.parametrize("path", ["/sync", "/async", "/beneath"])
def test_an_endpoint_declares_the_secrets_and_reads_them(app: FastAPI, path: str) -> None:
    assert get(app, path).json() == "value-1"


def test_the_manager_is_a_dependency_too(app: FastAPI) -> None:
    assert get(app, "/manager").json() is True


def test_a_dependency_that_is_torn_down_after_the_endpoint_still_may_read(app: FastAPI) -> None:
    get(app, "/beneath")
    assert seen == [OPEN]


def test_a_background_task_may_read_and_after_it_the_accessor_is_closed(app: FastAPI) -> None:
    assert get(app, "/task").json() == "done"
    secrets, user = seen
    assert user == "user-1"
    assert repr(secrets) == CLOSED


def test_a_websocket_declares_the_secrets_too(app: FastAPI) -> None:
    sent = once(app, websocket_scope("/ws"), {"type": "websocket.connect"})
    assert [message.get("text") for message in sent if message["type"] == "websocket.send"] == ["value-1"]
    assert repr(seen[0]) == CLOSED


def test_in_a_test_the_secrets_are_overridden_as_any_dependency(app: FastAPI, vault: FakeVault) -> None:
    class Stub:
        def get_secret(self, path: str) -> dict[str, str]:
            return {"value": f"made up for {path}"}

    app.dependency_overrides[request_secrets] = Stub
    assert get(app, "/beneath").json() == f"made up for {STATIC}"
    assert vault.reads == []


def test_an_error_that_an_endpoint_lets_through_is_answered_without_a_word_about_the_secret(app: FastAPI) -> None:
    answer = get(app, "/missing")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error\n")


def test_the_documentation_of_the_interface_does_not_know_the_dependency(app: FastAPI) -> None:
    schema = get(app, "/openapi.json").json()
    assert "parameters" not in schema["paths"]["/sync"]["get"]
