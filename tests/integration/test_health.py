"""The probes' endpoints: liveness never asks Vault, readiness waits for the first warm-up and for nothing after it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from vault_middleware import SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.health import health_asgi, health_wsgi

from .support import DYNAMIC, STATIC, eventually, running, settings

Ask = Callable[[Any, str], tuple[int, dict[str, Any]]]


def over_asgi(manager: Any, path: str) -> tuple[int, dict[str, Any]]:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("nothing is to be received")

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        await health_asgi(manager)({"type": "http", "path": path}, receive, send)

    asyncio.run(ask())
    return sent[0]["status"], json.loads(sent[1]["body"])


def over_wsgi(manager: Any, path: str) -> tuple[int, dict[str, Any]]:
    started: list[str] = []

    def start_response(status: str, _headers: object, _error: object = None) -> Any:
        started.append(status)

    body = b"".join(health_wsgi(manager)({"PATH_INFO": path}, start_response))
    return int(started[0].split()[0]), json.loads(body)


@pytest.fixture(params=[over_asgi, over_wsgi], ids=["ASGI", "WSGI"])
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


def test_a_pod_is_live_whatever_vault_does_and_ready_only_when_warm(stack: DevStack, ask: Ask) -> None:
    stack.bao.pause()
    manager = SecretsManager(settings(stack, VAULT_PREFETCH=STATIC), registry=CollectorRegistry())
    try:
        assert ask(manager, "/health/live") == (200, {"live": True})
        assert ask(manager, "/health/ready") == (503, {"ready": False})
        assert manager.started, "the probe starts what waits for it"
        stack.bao.resume()
        eventually(lambda: ask(manager, "/health/ready")[0] == 200, "readiness")
        assert STATIC in manager._engine.cache.entries
        stack.bao.pause()
        assert ask(manager, "/health/ready") == (200, {"ready": True})
        assert ask(manager, "/health/live")[0] == 200
    finally:
        stack.bao.resume()
        manager.close()


def test_everything_else_is_the_health_an_operator_wants(stack: DevStack, ask: Ask) -> None:
    with running(stack) as manager:
        manager.get_secret(STATIC)
        manager.get_dynamic_secret(DYNAMIC)
        status, health = ask(lambda: manager, "/health")
        assert status == 200
        assert health["server"] == {"up": True, "last_error": None}
        assert health["token"]["valid"] is True
        assert 0 < health["token"]["ttl"] <= 60
        assert health["leases"]["active"] == 1
        assert 0 < health["leases"]["soonest_expiry"] <= 10
        assert health["cache"] == {"entries": 2}
        assert health["renewer"] == {"alive": True}
        stack.bao.pause()
        manager._engine.breaker.suspect()
        eventually(lambda: not ask(manager, "/health")[1]["server"]["up"], "the outage to be noticed")
        assert "did not answer in time" in ask(manager, "/health")[1]["server"]["last_error"]
        stack.bao.resume()
    assert ask(manager, "/health")[1]["closed"] is True
    assert ask(manager, "/ready")[0] == 503


def test_a_wsgi_server_prefetches_in_the_background_at_its_first_use(stack: DevStack) -> None:
    with_prefetch = settings(stack, VAULT_PREFETCH=f"{STATIC},{DYNAMIC}")
    manager = SecretsManager(with_prefetch, registry=CollectorRegistry())
    try:
        manager.get_secret("shared/jwt")  # what a request asks for does not wait for the rest
        eventually(lambda: manager.ready, "the warm-up")
        assert {STATIC, DYNAMIC} <= set(manager._engine.cache.entries)
    finally:
        manager.close()
