"""On the event loop: a hit never leaves it, a miss never blocks it, and a sync miss is warned of, once."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from tests.fakes import DYNAMIC, STATIC, FakeVault
from tests.scripted import Exchange, Reply, ScriptedServer, answer
from vault_middleware import RequestSecrets, SecretConfig, SecretsManager

#: What the server waits before it answers a read, in seconds, and how many ask at once.
LATENCY, COROUTINES = 0.3, 64


def later(reply: Reply) -> Reply:
    """*reply*, after the latency; no synchronisation, but the very thing that is measured."""

    def wait(exchange: Exchange) -> None:
        exchange.released.wait(LATENCY)
        reply(exchange)

    return wait


class Pulse:
    """A callback that comes again at once, as often as the loop gets to it; the longest pause between two."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.beats = 0
        self._last = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._beat)

    def _beat(self) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self.beats += 1
        self._handle = self._loop.call_later(0.001, self._beat)

    def stop(self) -> None:
        self._beat()
        self._handle.cancel()


def test_the_loop_goes_on_while_64_coroutines_miss_one_key_on_a_slow_server(
    record_property: Callable[[str, object], None],
) -> None:
    with ScriptedServer() as server:
        server.on("/v1/auth/token/lookup-self", answer({"data": {"ttl": 0, "renewable": False, "type": "service"}}))
        server.on("/v1/sys/internal/ui/mounts/secret/key", answer({"data": {"path": "secret/", "type": "kv"}}))
        server.on("/v1/secret/key", later(answer({"request_id": "r", "data": {"value": "v"}, "lease_duration": 60})))
        config = SecretConfig(
            vault_addr=server.url, namespace="", auth_method="token", token="t", kv_version=1, audit_log="off"
        )
        with SecretsManager(config, registry=CollectorRegistry()) as manager:

            async def one() -> str:
                with RequestSecrets(manager) as secrets:
                    return str((await secrets.aget_secret("secret/key"))["value"])

            async def main() -> Pulse:
                pulse = Pulse()
                assert await asyncio.gather(*(one() for _ in range(COROUTINES))) == ["v"] * COROUTINES
                pulse.stop()
                return pulse

            began = time.monotonic()
            pulse = asyncio.run(main())
            took = time.monotonic() - began
        asked = [request for request in server.requests if request.path == "/v1/secret/key"]
    record_property("longest_pause_ms", round(pulse.longest * 1000, 1))
    assert took >= LATENCY
    assert len(asked) == 1
    # Blocked, it would pause for the whole latency at least; what it does pause is the machine's.
    assert pulse.longest < LATENCY
    assert pulse.beats > 5


def test_an_async_hit_neither_waits_nor_uses_another_thread(manager: SecretsManager, vault: FakeVault) -> None:
    manager.get_secret(STATIC)

    async def main() -> None:
        with RequestSecrets(manager) as secrets:
            threads = threading.active_count()
            getting = secrets.aget_secret(STATIC)
            with pytest.raises(StopIteration) as ended:  # at the first step: it has never waited for anything
                getting.send(None)
            assert ended.value.value["value"] == "value-1"
            assert threading.active_count() == threads

    asyncio.run(main())
    assert vault.reads == [STATIC]


def test_a_sync_miss_on_the_loop_works_and_is_warned_of_once_with_the_alternative(
    manager: SecretsManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with RequestSecrets(manager) as secrets:
            assert secrets.get_dynamic_secret(DYNAMIC)["username"] == "user-1"
            assert secrets.get_secret(STATIC)["value"] == "value-2"

    with caplog.at_level(logging.WARNING, "vault_middleware"):
        asyncio.run(main())
    (said,) = [record.getMessage() for record in caplog.records]
    assert "get_dynamic_secret was called on the event loop" in said
    assert f"{__file__}:" in said
    assert "await secrets.aget_dynamic_secret" in said


def test_a_sync_hit_on_the_loop_is_nothing_to_warn_of(
    manager: SecretsManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.get_secret(STATIC)

    async def main() -> None:
        with RequestSecrets(manager) as secrets:
            secrets.get_secret(STATIC)

    with caplog.at_level(logging.WARNING, "vault_middleware"):
        asyncio.run(main())
    assert not caplog.records


def test_neither_a_thread_nor_an_async_miss_is_warned_of(
    manager: SecretsManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with RequestSecrets(manager) as secrets:
            await asyncio.to_thread(secrets.get_secret, STATIC)
            await secrets.aget_dynamic_secret(DYNAMIC)

    with caplog.at_level(logging.WARNING, "vault_middleware"):
        asyncio.run(main())
    assert not caplog.records
