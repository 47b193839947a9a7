"""The gate: what is counted, and that a value goes out only held and audited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_fakes import CREDS, KEY, Holder, World
from vault_middleware.cache import Entry
from vault_middleware.errors import (
    AuditError,
    InvalidSecretPath,
    LeaseLimitReached,
    SecretAccessDenied,
    SecretNotDynamic,
    SecretNotFound,
    SecretUnavailable,
    VaultMiddlewareError,
    VaultUnavailable,
)
from vault_middleware.vault.client import Forbidden

FULL = AuditError("the audit sink takes nothing; look at it")

Read = Callable[..., Entry]


@pytest.fixture
def world() -> World:
    return World(max_leases=1)


@pytest.fixture(params=["read", "aread"])
def read(request: pytest.FixtureRequest, world: World) -> Read:
    """Both forms, which must not differ."""
    gate = world.engine.gate

    def reading(key: Any = KEY, dynamic: bool = False, fresh: bool = False, by: Holder | None = None) -> Entry:
        who = by or Holder()
        if request.param == "read":
            return gate.read(key, dynamic, fresh, None, who)
        return asyncio.run(gate.aread(key, dynamic, fresh, None, who))

    return reading


def counts(world: World) -> tuple[float, float]:
    """Requests and hits so far."""
    world.metrics.flush()
    return world.metric("vault_secret_requests_total"), world.metric("vault_secret_cache_hits_total")


def test_a_miss_is_a_request_and_a_hit_is_one_and_a_hit(world: World, read: Read) -> None:
    read()
    assert counts(world) == (1, 0)
    read()
    assert counts(world) == (2, 1)
    assert [line["outcome"] for line in world.lines.lines] == ["miss", "hit"]


def test_every_read_says_who_when_what_and_how_long_it_is_good_for(world: World, read: Read) -> None:
    read()
    world.clock.now += 100
    read()
    line = world.lines.lines[-1]
    assert line["request_id"] == "r"
    assert (line["secret_path"], line["kind"], line["version"]) == (KEY, "static", 1)
    assert line["ttl_left"] == 200


def test_a_stale_value_is_a_hit_and_counted_as_stale(world: World, read: Read) -> None:
    read()
    world.clock.now += 400
    world.client.down = VaultUnavailable("down")
    read()
    assert counts(world) == (2, 1)
    assert world.metric("vault_secret_stale_served_total") == 1
    line = world.lines.lines[-1]
    assert line["outcome"] == "stale"
    assert line["ttl_left"] == 3900 - 400


def test_a_remembered_refusal_is_a_hit_and_an_error(world: World, read: Read) -> None:
    for _ in range(2):
        with pytest.raises(SecretNotFound):
            read("kv/none")
    assert counts(world) == (2, 1)
    assert world.metric("vault_secret_errors_total", reason="not_found") == 2
    assert [line["outcome"] for line in world.lines.lines] == ["error", "negative"]


def test_fresh_does_not_take_a_remembered_refusal_for_an_answer(world: World, read: Read) -> None:
    with pytest.raises(SecretNotFound):
        read("kv/none")
    world.client.data["kv/none"] = {"value": "there now"}
    assert read("kv/none", fresh=True).secret["value"] == "there now"
    assert read("kv/none").secret["value"] == "there now"


@pytest.mark.parametrize(
    ("error", "reason", "outcome", "key", "answer"),
    [
        (SecretNotFound, "not_found", "error", "kv/none", None),
        (SecretAccessDenied, "denied", "denied", KEY, Forbidden()),
        (InvalidSecretPath, "invalid_path", "denied", "kv/../x", None),
        (SecretNotDynamic, "not_dynamic", "error", KEY, None),
        (SecretUnavailable, "unavailable", "error", KEY, VaultUnavailable("down")),
        (LeaseLimitReached, "lease_limit", "error", "database/creds/other", None),
    ],
)
def test_each_error_is_audited_and_counted_under_its_reason(
    world: World,
    read: Read,
    error: type[VaultMiddlewareError],
    reason: str,
    outcome: str,
    key: str,
    answer: Exception | None,
) -> None:
    world.creds()
    if answer is not None:
        world.client.then("read", answer)
    before = counts(world)
    with pytest.raises(error) as caught:
        read(key, dynamic=error is SecretNotDynamic)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert counts(world) == (before[0] + 1, before[1])
    assert world.metric("vault_secret_errors_total", reason=reason) == 1
    line = world.lines.lines[-1]
    assert (line["outcome"], line["reason"], line["secret_path"]) == (outcome, reason, key)


def test_a_static_secret_is_none_where_a_dynamic_one_is_wanted_however_it_is_cached(world: World, read: Read) -> None:
    read()
    with pytest.raises(SecretNotDynamic, match="use get_secret"):
        read(dynamic=True)
    assert world.lines.lines[-1]["outcome"] == "error"


def test_a_leased_secret_is_a_secret_too_and_held(world: World, read: Read) -> None:
    holder = Holder()
    entry = read(CREDS, by=holder)
    assert entry.holds in holder.held
    assert bool(entry.holds)


def test_a_static_secret_is_held_by_nobody(world: World, read: Read) -> None:
    holder = Holder()
    assert read(by=holder).holds is None
    assert holder.held == []


@pytest.mark.parametrize("key", [KEY, CREDS])
@pytest.mark.parametrize("cached", [True, False])
def test_what_cannot_be_audited_is_not_handed_over(world: World, read: Read, key: str, cached: bool) -> None:
    if cached:
        read(key)
    world.lines.failure = FULL
    with pytest.raises(AuditError):
        read(key)
    assert world.metric("vault_secret_errors_total", reason="audit") == 1
    world.lines.failure = None
    read(key)
    assert world.lines.lines[-1]["outcome"] == "hit"


def test_an_error_that_cannot_be_audited_is_still_that_error(world: World, read: Read) -> None:
    world.lines.failure = FULL
    with pytest.raises(SecretNotFound):
        read("kv/none")
    assert world.metric("vault_secret_errors_total", reason="not_found") == 1
    assert world.metric("vault_secret_errors_total", reason="audit") == 1


def test_the_audit_line_is_written_before_the_value_is_handed_over(world: World, read: Read) -> None:
    handed: list[int] = []
    read()
    handed.append(len(world.lines.lines))
    read()
    handed.append(len(world.lines.lines))
    assert handed == [1, 2]


def test_a_read_marks_the_entry_as_read(world: World, read: Read) -> None:
    entry = read()
    world.clock.now += 7
    read()
    assert entry.last_read == world.now


def test_anything_may_be_asked_for_and_what_is_no_path_is_refused_as_such(world: World, read: Read) -> None:
    for nonsense in (None, 7, b"kv/x"):
        with pytest.raises(InvalidSecretPath):
            read(nonsense)


def test_a_lease_replaced_between_the_look_and_the_hold_is_not_handed_over(world: World, read: Read) -> None:
    old = read(CREDS)

    class Slow(Holder):
        def take(self, holds):  # type: ignore[no-untyped-def]
            if holds is old.holds:
                world.engine.leases.end(world.leased())
            super().take(holds)

    new = read(CREDS, dynamic=True, by=Slow())
    assert new.holds is not old.holds
    assert world.client.count("read") == 2
