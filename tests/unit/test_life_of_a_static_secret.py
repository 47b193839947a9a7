"""The life of a static secret: fetched, kept fresh while it is read, stale in an outage, refused; see docs/lifecycle.md."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine_fakes import KEY, ROLE, World, at, middle
from vault_middleware.errors import SecretAccessDenied, SecretNotFound, SecretUnavailable, VaultUnavailable
from vault_middleware.renewal.schedule import AFTER_OUTAGE
from vault_middleware.vault.client import Forbidden

DOWN = VaultUnavailable("the server does not answer; look at it")


@pytest.fixture
def world() -> World:
    return World(cache_ttl=100, cache_stale_ttl=1000)


def test_the_first_read_fetches_and_the_second_does_not(world: World) -> None:
    assert world.value() == "one"
    assert world.value() == "one"
    assert world.client.count("read") == 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_it_is_read_again_between_half_and_four_fifths_of_its_ttl(share: float) -> None:
    world = World(cache_ttl=100, uniform=at(share))
    world.value()
    world.run(49.9 + 30 * share)
    assert world.client.count("read") == 1
    world.run(0.2)
    assert world.client.count("read") == 2


def test_a_secret_in_use_never_misses_and_nothing_older_than_its_ttl_is_served(world: World) -> None:
    world.value()
    changed = world.now
    for second in range(2000):
        if second % 70 == 0:
            changed = world.now
            world.client.data[KEY] = {"value": world.now}
        world.run(1)
        served = world.value()
        assert served in ("one", changed) or world.now - changed <= 100
    world.metrics.flush()
    assert world.metric("vault_secret_cache_hits_total") == 2000
    assert world.metric("vault_secret_requests_total") == 2001


def test_a_secret_that_nobody_reads_for_twelve_ttls_is_not_refreshed_any_more(world: World) -> None:
    world.value()
    world.run(1200)
    refreshed = world.client.count("read")
    assert refreshed >= 12
    world.run(5000)
    assert world.client.count("read") <= refreshed + 1
    assert world.value() == "one"  # and the next reader fetches it, whatever it has become
    assert world.client.times("read")[-1] == world.now
    world.run(100)
    assert world.client.times("read")[-1] > world.now - 100  # it is looked after again


def test_past_its_ttl_the_next_reader_fetches_while_the_server_answers(world: World) -> None:
    world.value()
    world.clock.now += 150  # the renewer was late
    world.client.data[KEY] = {"value": "two"}
    assert world.value() == "two"


def test_a_fetch_that_fails_serves_the_stale_value_counted_and_audited_as_such(world: World) -> None:
    world.value()
    world.clock.now += 150
    world.client.down = DOWN
    assert world.value() == "one"
    assert world.lines.lines[-1]["outcome"] == "stale"
    assert world.metric("vault_secret_stale_served_total") == 1


def test_while_the_server_is_known_to_be_down_the_stale_value_costs_no_call(world: World) -> None:
    world.value()
    world.client.down = DOWN
    world.run(200)
    assert world.engine.breaker.down
    calls = world.client.count("read")
    assert world.value() == "one"
    assert world.client.count("read") == calls


def test_past_its_stale_time_it_serves_no_more(world: World) -> None:
    world.value()
    world.client.down = DOWN
    world.run(1099)
    assert world.value() == "one"
    world.run(2)
    with pytest.raises(SecretUnavailable):
        world.value()


def test_one_path_that_fails_on_a_healthy_server_is_asked_for_once_a_second_and_stale_in_between(world: World) -> None:
    world.value()
    world.clock.now += 150
    world.client.then("read", *[VaultUnavailable("500")] * 100)
    for _ in range(50):
        world.clock.now += 0.1
        assert world.value() == "one"
    assert 5 <= world.client.count("read") - 1 <= 6


def test_after_an_outage_what_could_not_be_refreshed_is_refreshed_within_a_few_seconds_and_stale_till_then() -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return middle(low, high)

    world = World(cache_ttl=100, uniform=uniform)
    world.value()
    world.client.down = DOWN
    world.run(300)
    world.client.down, world.client.data[KEY] = None, {"value": "two"}
    drawn.clear()
    calls = world.client.count("read")
    while world.engine.breaker.down:
        world.run(0.1)
    back = world.now
    assert (0.0, AFTER_OUTAGE) in drawn  # spread, so that not everything comes at one instant
    assert world.value() == "one"  # no request waits for its turn
    assert world.lines.lines[-1]["outcome"] == "stale"
    assert world.client.count("read") == calls
    world.run(AFTER_OUTAGE)
    assert world.value() == "two"
    assert world.lines.lines[-1]["outcome"] == "hit"
    assert world.client.times("read")[calls] - back <= AFTER_OUTAGE


def test_refreshes_that_fail_are_tried_again_at_a_pace_in_proportion_to_the_ttl(world: World) -> None:
    world.value()
    world.client.then("read", *[VaultUnavailable("500")] * 1000)
    world.run(1000)
    assert world.client.count("read") < 40


@pytest.mark.parametrize(
    ("answer", "error", "remembered"),
    [
        (SecretNotFound(KEY, "there is none; check the path"), SecretNotFound, 60.0),
        (Forbidden(), SecretAccessDenied, 5.0),
    ],
)
def test_a_refusal_is_remembered_for_its_time_and_served_without_a_call(
    world: World, answer: Exception, error: type[Exception], remembered: float
) -> None:
    world.client.then("read", answer)
    if isinstance(answer, Forbidden):
        world.client.then("token_is_valid", True)
    with pytest.raises(error):
        world.value()
    world.clock.now += remembered - 0.1
    with pytest.raises(error):
        world.value()
    assert world.client.count("read") == 1
    world.clock.now += 0.2
    assert world.value() == "one"


@pytest.mark.parametrize("answer", [SecretNotFound(KEY, "there is none; check the path"), Forbidden()])
def test_what_the_server_refuses_on_refresh_is_served_no_longer_not_even_stale(world: World, answer: Exception) -> None:
    world.value()
    world.client.then("read", answer)
    world.run(66)
    world.client.down = DOWN
    with pytest.raises((SecretNotFound, SecretAccessDenied)):
        world.value()
    world.run(61)
    with pytest.raises(SecretUnavailable):
        world.value()


def test_fresh_fetches_now_and_replaces_what_is_cached(world: World) -> None:
    world.value()
    world.client.data[KEY] = {"value": "two"}
    assert world.value() == "one"
    assert world.read(fresh=True).secret["value"] == "two"
    assert world.value() == "two"


def test_a_rejected_value_is_fetched_again_by_the_next_reader_and_by_no_other(world: World) -> None:
    secret = world.read().secret
    world.client.data[KEY] = {"value": "two"}
    world.engine.reject(secret)
    assert world.value() == "two"
    world.engine.reject(secret)  # another request says so of the one that is gone
    assert world.value() == "two"
    assert world.client.count("read") == 2


def test_a_fetch_that_a_later_one_has_overtaken_replaces_nothing(world: World) -> None:
    early = world.now
    world.clock.now += 10
    world.value()
    reading: Any = world.client.read(
        KEY,
        world.engine.session.current.token,  # type: ignore[union-attr]
        version=None,
        timeout=1,
        correlation_id=None,
    )
    late = type(reading)(reading.mount, {"value": "old"}, early, 0.0, "")
    world.engine.statics.publish(KEY, KEY, late, world.engine.cache.entries[KEY])
    assert world.value() == "one"


def test_the_least_recently_read_makes_room() -> None:
    world = World(cache_max_entries=2)
    for name in ("kv/a", "kv/b", "kv/c"):
        world.client.data[name] = {"value": name}
    world.value("kv/a")
    world.clock.now += 1
    world.value("kv/b")
    world.clock.now += 1
    world.value("kv/a")
    world.value("kv/c")
    assert set(world.engine.cache.entries) == {"kv/a", "kv/c"}


# -- a static database role


def role(world: World, password: str, ttl: float) -> None:
    world.client.data[ROLE] = {"username": "app", "password": password, "rotation_period": 60, "ttl": ttl}
    world.client.role_ttl = ttl


def test_a_static_role_is_read_again_half_a_second_after_its_rotation() -> None:
    world = World(cache_ttl=300)
    role(world, "one", 20)
    world.read(ROLE)
    world.run(20.4)
    assert world.client.count("read") == 1
    role(world, "two", 60)
    world.run(0.2)
    assert world.read(ROLE).secret["password"] == "two"
    assert world.lines.lines[-1]["outcome"] == "hit"


def test_a_static_role_is_polled_until_its_rotation_shows() -> None:
    world = World(cache_ttl=300)
    role(world, "one", 20)
    world.read(ROLE)
    role(world, "one", 0)
    world.run(22)
    polls = world.client.count("read")
    assert 4 <= polls <= 8
    role(world, "two", 60)
    world.run(0.6)
    assert world.read(ROLE).secret["password"] == "two"
    world.run(55)
    assert world.client.count("read") == polls + 1  # and rests


def test_a_static_role_whose_rotation_does_not_come_is_polled_ever_more_rarely() -> None:
    world = World(cache_ttl=300)
    role(world, "one", 20)
    world.read(ROLE)
    role(world, "one", 0)
    world.run(20 + 600)
    assert world.client.count("read") < 50


def test_a_static_role_is_never_served_stale() -> None:
    world = World(cache_ttl=300)
    role(world, "one", 20)
    world.read(ROLE)
    world.client.down = DOWN
    world.run(31)
    with pytest.raises(SecretUnavailable):
        world.read(ROLE)


def test_on_rotate_is_called_after_the_new_value_is_published_and_only_for_a_new_value(world: World) -> None:
    told: list[tuple[str, str]] = []
    world.callbacks[KEY] = [lambda secret: told.append((secret["value"], world.value()))]
    world.value()
    world.run(300)
    assert told == []
    world.client.data[KEY] = {"value": "two"}
    world.run(100)
    assert told == [("two", "two")]


def test_that_a_static_roles_time_runs_is_no_rotation() -> None:
    world = World(cache_ttl=10)
    told: list[str] = []
    world.callbacks[ROLE] = [lambda secret: told.append(secret["password"])]
    role(world, "one", 60)
    world.read(ROLE)
    for ttl in (50, 40, 30):
        role(world, "one", ttl)
        world.run(10)
    assert world.client.count("read") > 3
    assert told == []
    role(world, "two", 60)
    world.run(10)
    assert told == ["two"]


def test_a_callback_that_fails_hurts_nobody_and_its_message_is_not_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_secret: object) -> None:
        raise ValueError("c4n4ry")

    told: list[object] = []
    world.callbacks[KEY] = [fails, told.append]
    world.value()
    world.client.data[KEY] = {"value": "two"}
    world.run(100)
    assert world.value() == "two"
    assert len(told) == 1
    assert "ValueError" in caplog.text
    assert "c4n4ry" not in caplog.text
