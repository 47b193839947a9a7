"""Stop and fork: what is revoked, what is left, and what a child takes over; see docs/lifecycle.md."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import CollectorRegistry

from tests.engine_fakes import CREDS, KEY, Holder, World, at
from vault_middleware.cache import SecretCache
from vault_middleware.config import SecretConfig
from vault_middleware.errors import SecretUnavailable, VaultUnavailable
from vault_middleware.events import LeaseRevocationFailed, LeaseRevoked, LeasesLeft, TokenRevocationFailed, TokenRevoked
from vault_middleware.manager import SecretsManager
from vault_middleware.secret import Secret
from vault_middleware.vault.client import Forbidden

DOWN = VaultUnavailable("the server does not answer; look at it")


@pytest.fixture
def world() -> World:
    return World()


def test_a_stop_revokes_every_lease_and_then_the_token_and_nothing_is_left(world: World) -> None:
    holder = Holder()
    world.creds(holder)
    world.creds(path="database/creds/b")
    old = world.creds(path="database/creds/c")
    world.creds(Holder(unbounded=True), path="database/creds/c")
    world.engine.reject(old)
    world.run(1)
    world.engine.stop(5)
    assert world.client.leases == {}
    assert world.client.valid == {}
    names = [call.name for call in world.client.calls]
    assert names[-5:] == [*["revoke_lease"] * 4, "revoke_token"]
    assert len(world.of(LeaseRevoked)) == 4
    assert len(world.of(TokenRevoked)) == 1
    assert world.client.closed


def test_the_longest_lived_lease_is_revoked_first(world: World) -> None:
    world.creds(path="database/creds/short")
    world.client.lease_ttl = 600
    world.creds(path="database/creds/long")
    world.engine.stop(5)
    assert [call.what for call in world.client.calls if call.name == "revoke_lease"] == [
        "database/creds/long/2",
        "database/creds/short/1",
    ]


def test_after_a_stop_nothing_is_scheduled_or_fetched_and_no_value_is_kept(world: World) -> None:
    world.creds()
    world.value()
    world.engine.stop(5)
    calls = len(world.client.calls)
    world.run(5000)
    for path in (KEY, CREDS):
        with pytest.raises(SecretUnavailable, match="closed"):
            world.read(path)
    with pytest.raises(VaultUnavailable, match="closed"):
        world.engine.session.get(1)
    assert not world.engine.workers.submit("kv", 0.0, lambda: None)
    assert len(world.client.calls) == calls
    assert world.engine.cache.entries == {}
    assert world.engine.session.current is None
    assert not world.engine.fetcher._last


def test_a_stop_while_the_server_is_down_makes_no_call(world: World) -> None:
    world.creds()
    world.client.down = DOWN
    world.engine.breaker.suspect()
    world.run(0)
    calls = len(world.client.calls)
    world.engine.stop(5)
    assert len(world.client.calls) == calls


def test_a_stop_ends_within_its_time_and_keeps_some_of_it_for_the_token(world: World) -> None:
    for number in range(20):
        world.creds(path=f"mount{number}/creds/x")
    world.client.latency = 0.9
    before = world.now
    world.engine.stop(5)
    assert world.now - before <= 5 + 0.9
    assert 2 <= world.client.count("revoke_lease") <= 5
    assert world.client.count("revoke_token") == 1  # which takes along what was not reached
    assert world.client.leases == {}


def test_a_mount_whose_revocations_hang_does_not_cost_the_others_theirs(world: World) -> None:
    for number in range(5):
        world.creds(path=f"stuck/creds/{number}")
    world.creds(path="database/creds/a")
    real = world.client.revoke_lease

    def revoke(lease_id: str, *rest: object) -> None:
        if lease_id.startswith("stuck"):
            world.clock.now += 1.0
            raise VaultUnavailable("no answer in time")
        real(lease_id, *rest)  # type: ignore[arg-type]

    world.client.revoke_lease = revoke  # type: ignore[method-assign,assignment]
    before = world.now
    world.engine.stop(5)
    assert [event.secret_path for event in world.of(LeaseRevoked)] == ["database/creds/a"]
    assert world.now - before <= 1.0


def test_what_a_stop_did_not_come_to_is_told_in_one_line(world: World) -> None:
    for number in range(3):
        world.creds(path=f"mount{number}/creds/x")
    world.client.latency = 2.0
    world.engine.stop(5)
    [told] = world.of(LeasesLeft)
    assert (told.count, told.reason, told.ttl_left) == (1, "our token takes them along", 0.0)


@pytest.mark.parametrize(
    ("outage", "reason"),
    [(True, "Vault does not answer"), (False, "the time for the stop was over; raise VAULT_SHUTDOWN")],
)
def test_leases_and_a_token_that_outlive_a_stop_are_told_with_the_reason_and_their_time(
    world: World, outage: bool, reason: str
) -> None:
    world.creds()
    if outage:
        world.client.down = DOWN
        world.engine.breaker.suspect()
        world.run(2)
        assert world.engine.breaker.down
    world.engine.stop(5 if outage else 0)
    [lease], [token] = world.of(LeasesLeft), world.of(TokenRevocationFailed)
    assert lease.count == 1
    assert lease.reason.startswith(reason)
    assert token.reason.startswith(reason)
    assert 50 < lease.ttl_left <= 60
    assert 3500 < token.ttl_left <= 3600
    assert world.client.count("revoke_lease") == world.client.count("revoke_token") == 0


def test_leases_that_their_token_does_not_take_along_are_told_with_their_time(world: World) -> None:
    world.client.leases_outlive_tokens = True
    world.client.then("revoke_lease", Forbidden())
    world.creds()
    world.engine.stop(5)
    assert world.of(LeasesLeft) == []  # it was told by itself: the policy does not permit it
    assert [event.secret_path for event in world.of(LeaseRevocationFailed)] == [CREDS]


def test_a_token_that_could_not_be_revoked_is_told(world: World) -> None:
    world.creds()
    world.client.then("revoke_token", VaultUnavailable("add this line to the policy"))
    world.engine.stop(5)
    [told] = world.of(TokenRevocationFailed)
    assert told.reason == "add this line to the policy"
    assert 3500 < told.ttl_left <= 3600


def test_a_look_up_after_a_refused_revocation_takes_no_more_than_the_stops_time(world: World) -> None:
    limits: list[float] = []

    def look_up(token: object, timeout: float) -> bool:
        limits.append(timeout)
        raise VaultUnavailable("no answer in time")

    world.creds()
    world.client.then("revoke_lease", Forbidden())
    world.client.token_is_valid = look_up  # type: ignore[method-assign]
    world.engine.stop(0.5)
    assert limits
    assert max(limits) <= 0.5


def test_a_second_stop_does_nothing(world: World) -> None:
    world.creds()
    world.engine.stop(5)
    calls = len(world.client.calls)
    world.engine.stop(5)
    assert len(world.client.calls) == calls


def test_a_lease_that_arrives_after_the_stop_is_given_back_and_served_to_no_one(world: World) -> None:
    told: list[Secret] = []
    world.callbacks[CREDS] = [told.append]
    world.creds()
    world.engine.leases.end(world.leased())
    world.fetches = []
    with pytest.raises(SecretUnavailable):
        world.read(CREDS, timeout=0)
    [job] = world.fetches
    real = world.client.read

    def read(*args: object, **options: object) -> object:
        reading = real(*args, **options)  # type: ignore[arg-type]
        world.engine.stop(0.0)  # no time even for the token
        return reading

    world.client.read = read  # type: ignore[method-assign,assignment]
    job()
    assert [call.what for call in world.client.calls if call.name == "revoke_lease"] == ["database/creds/app/2"]
    assert told == []
    assert world.engine.cache.entries == {}
    assert world.engine.leases.live() == []


def test_of_a_lease_that_arrives_while_we_stop_nobody_is_told(world: World) -> None:
    told: list[Secret] = []
    world.callbacks[CREDS] = [told.append]
    bad = world.creds()
    real = world.client.read

    def read(*args: object, **options: object) -> object:
        world.engine.closing.set()
        return real(*args, **options)  # type: ignore[arg-type]

    world.client.read = read  # type: ignore[method-assign,assignment]
    world.engine.reject(bad)
    world.run(0)
    assert world.client.count("read") == 2
    assert told == []
    assert list(world.client.leases) == []


def test_a_static_secret_that_arrives_after_the_stop_is_not_kept(world: World) -> None:
    world.fetches = []
    with pytest.raises(SecretUnavailable):
        world.read(timeout=0)
    [job] = world.fetches
    world.client.then("read", world.engine.closing.set)
    job()
    assert world.engine.cache.entries == {}


def test_a_token_that_arrives_after_the_stop_is_revoked(world: World) -> None:
    world.client.then("log_in", lambda: world.engine.stop(5))
    with pytest.raises(SecretUnavailable):
        world.value()
    assert world.client.count("log_in") == world.client.count("revoke_token") == 1
    assert world.client.count("read") == 0
    assert world.client.valid == {}


def test_what_the_renewer_has_under_way_at_a_stop_is_abandoned_and_publishes_nothing(world: World) -> None:
    world.creds()
    world.renewals = []
    world.run(30)
    [job] = world.renewals
    world.engine.stop(5)
    calls = len(world.client.calls)
    job()
    assert len(world.client.calls) == calls
    assert world.engine.cache.entries == {}
    assert world.engine.renewer.run_due(world.now + 10_000) is None


# -- fork


def child_of(parent: World, share: float = 0.5) -> World:
    """What a fork makes of *parent*."""
    child = World(uniform=at(share))
    child.clock.now = parent.now
    child.engine.cache.inherit(parent.engine.cache)
    child.engine.statics.adopt()
    return child


def test_a_child_keeps_the_static_secrets_and_none_of_the_leases(world: World) -> None:
    world.value()
    world.creds()
    child = child_of(world)
    assert child.value() == "one"
    assert child.client.calls == []
    assert set(child.engine.cache.entries) == {KEY}
    assert child.engine.leases.live() == []
    assert child.engine.session.current is None


def test_a_child_gets_its_own_token_and_lease_and_leaves_its_parents_alone(world: World) -> None:
    held = world.creds(Holder())
    child = child_of(world)
    child.client = world.client
    engine = child.engine
    for caller in (engine.session, engine.session._login, engine.fetcher, engine.keeper):
        caller._client = world.client  # type: ignore[assignment]
    world.client.clock = child.clock
    own = child.creds()
    assert own != held
    child.engine.stop(5)
    assert world.client.works(held)
    assert not world.client.works(own)
    assert list(world.client.valid) == ["token-1"]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_children_of_one_server_spread_their_first_fetches_over_two_seconds(world: World, share: float) -> None:
    world.value()
    child = child_of(world, share)
    start = child.now
    child.run(3)
    assert child.client.times("read")[0] - start == pytest.approx(2.0 * share)
    assert child.client.count("read") == 1


def test_a_request_of_a_child_does_not_wait_for_the_spread(world: World) -> None:
    child = child_of(world)
    assert child.value() == "one"
    assert child.client.times("read") == [child.now]


def test_what_was_about_to_end_is_fetched_before_it_does(world: World) -> None:
    world.value()
    world.clock.now += 299
    child = child_of(world, 1.0)
    child.run(0.99)
    assert child.client.count("read") == 0
    child.run(0.02)
    assert child.client.count("read") == 1


def test_the_hook_builds_a_new_engine_for_the_child_and_does_not_touch_the_parents() -> None:
    manager = SecretsManager(
        SecretConfig(vault_addr="http://127.0.0.1:1", audit_log="off", startup="lazy"), registry=CollectorRegistry()
    )
    parent, lock = manager._engine, manager._lock
    world = World()
    world.value()
    parent.cache.inherit(world.engine.cache)
    manager._after_fork()
    child = manager._engine
    assert child is not parent
    assert manager._lock is not lock
    assert set(child.cache.entries) == {KEY}
    for name in ("client", "cache", "renewer", "workers", "session", "leases", "breaker", "closing"):
        assert getattr(child, name) is not getattr(parent, name)
    assert not parent.closing.is_set()
    assert not manager.started


def test_the_child_of_a_closed_manager_stays_closed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    manager = SecretsManager(
        SecretConfig(vault_addr="http://127.0.0.1:1", audit_log="off", startup="lazy"), registry=CollectorRegistry()
    )
    manager.start()
    manager.close()
    engine = manager._engine
    manager._after_fork()
    assert manager._engine is engine
    with pytest.raises(SecretUnavailable):
        manager.get_secret(KEY)


def test_an_inherited_cache_knows_how_full_it_is(world: World) -> None:
    world.value()
    cache = SecretCache(max_entries=1)
    cache.inherit(world.engine.cache)
    cache.put("kv/other", next(iter(world.engine.cache.entries.values())))
    assert set(cache.entries) == {"kv/other"}
