"""On the event loop: a hit never leaves it, a miss never blocks it, and a sync miss is warned of, once."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.fakes import DYNAMIC, STATIC, FakeVault
from tests.scripted import Exchange, Reply, ScriptedServer, answer
from vault_middleware import RequestSecrets, SecretConfig, SecretsManager

#: What the server waits before it answers a read, in seconds, how many ask at once, and how often that is tried: what a
#: busy machine adds to one pause it does not add to all of them, while a loop that is blocked is blocked each time.
LATENCY, COROUTINES, ROUNDS = 0.3, 64, 4


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


@dataclass(frozen=True)
class Round:
    """What one round of coroutines that miss one key together has shown; in seconds."""

    took: float
    longest_pause: float
    beats: int


async def miss_together(manager: SecretsManager, path: str, read: Callable[[RequestSecrets, str], Any]) -> Round:
    """The coroutines all *read* *path*, each in a request of its own, beside a pulse of the loop."""

    async def one() -> str:
        with RequestSecrets(manager) as secrets:
            return str((await read(secrets, path))["value"])

    began = time.monotonic()
    pulse = Pulse()
    assert await asyncio.gather(*(one() for _ in range(COROUTINES))) == ["v"] * COROUTINES
    pulse.stop()
    return Round(time.monotonic() - began, pulse.longest, pulse.beats)


def rounds(read: Callable[[RequestSecrets, str], Any]) -> tuple[list[Round], list[int]]:
    """Several rounds on a slow server, each with a key that is missed; and how often the server was asked for each."""
    paths = [f"secret/key-{number}" for number in range(ROUNDS)]
    with ScriptedServer() as server:
        # Asked on a machine so busy that a read takes longer than the breaker's patience.
        server.on("/v1/sys/health", answer({"initialized": True, "sealed": False}))
        server.on("/v1/auth/token/lookup-self", answer({"data": {"ttl": 0, "renewable": False, "type": "service"}}))
        for path in paths:
            server.on(f"/v1/sys/internal/ui/mounts/{path}", answer({"data": {"path": "secret/", "type": "kv"}}))
            server.on(f"/v1/{path}", later(answer({"request_id": "r", "data": {"value": "v"}, "lease_duration": 60})))
        config = SecretConfig(
            vault_addr=server.url, namespace="", auth_method="token", token="t", kv_version=1, audit_log="off"
        )
        with SecretsManager(config, registry=CollectorRegistry()) as manager:
            done = [asyncio.run(miss_together(manager, path, read)) for path in paths]
        return done, [len(server.to(f"/v1/{path}")) for path in paths]


def test_the_loop_goes_on_while_64_coroutines_miss_one_key_on_a_slow_server(
    record_property: Callable[[str, object], None],
) -> None:
    done, asked = rounds(lambda secrets, path: secrets.aget_secret(path))
    best = min(one.longest_pause for one in done)
    record_property("longest_pause_ms", round(best * 1000, 1))
    assert all(one.took >= LATENCY for one in done)
    assert asked == [1] * ROUNDS
    assert best < LATENCY / 3, [one.longest_pause for one in done]
    assert max(one.beats for one in done) > 20


def test_a_loop_that_is_blocked_for_the_latency_would_be_seen() -> None:
    async def blocking(secrets: RequestSecrets, path: str) -> Any:
        return secrets.get_secret(path)

    done, _asked = rounds(blocking)
    assert min(one.longest_pause for one in done) > LATENCY * 0.8


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
