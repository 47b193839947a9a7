"""Draining: a lease that was replaced serves those who hold it, and ends with the last of them; see docs/lifecycle.md."""

from __future__ import annotations

import pytest

from tests.engine_fakes import CREDS, Holder, World
from vault_middleware.errors import VaultUnavailable
from vault_middleware.events import LeaseRevocationFailed, LeaseRevoked
from vault_middleware.renewal.schedule import AFTER_OUTAGE
from vault_middleware.secret import DynamicSecret
from vault_middleware.vault.client import Forbidden

DOWN = VaultUnavailable("the server does not answer; look at it")


@pytest.fixture
def world() -> World:
    return World()


def replaced(world: World, *holders: Holder) -> DynamicSecret:
    """A lease that *holders* have, and that has been replaced."""
    old = world.creds()
    for holder in holders:
        world.creds(holder)
    world.engine.reject(old)
    world.run(0.1)
    assert world.creds() != old
    return old


def test_a_lease_that_nobody_holds_is_revoked_as_soon_as_it_is_replaced(world: World) -> None:
    old = replaced(world)
    assert not world.client.works(old)
    assert [event.lease_id for event in world.of(LeaseRevoked)] == [old.lease.lease_id]


def test_a_lease_that_is_held_is_revoked_when_the_last_holder_has_ended_and_not_before(world: World) -> None:
    first, second = Holder(), Holder()
    old = replaced(world, first, second)
    world.run(30)
    first.end()
    world.run(1)
    assert world.client.works(old)
    second.end()
    world.run(0)
    assert not world.client.works(old)


def test_a_lease_that_is_held_is_renewed_for_as_long_as_that(world: World) -> None:
    holder = Holder()
    old = replaced(world, holder)
    for _ in range(1000):
        world.run(1)
        assert world.client.works(old)
    holder.end()
    world.run(0)
    assert not world.client.works(old)


@pytest.mark.parametrize("why", ["max TTL", "token"])
def test_a_lease_that_was_replaced_by_the_renewer_is_renewed_while_held_too(world: World, why: str) -> None:
    holder = Holder()
    old = world.creds(holder)
    if why == "token":
        world.engine.session._take_over(world.client.log_in(1))
    else:
        world.client.lease_max_ttl = 200
    for _ in range(198):
        world.run(1)
        assert world.client.works(old)
    assert world.creds() != old


def test_a_held_lease_ends_at_its_max_ttl_without_a_row_of_calls(world: World) -> None:
    world.client.lease_max_ttl = 100
    holder = Holder()
    old = world.creds(holder)
    lease_id = old.lease.lease_id
    world.run(150)
    assert not world.client.works(old)
    assert sum(call.what == lease_id for call in world.client.calls) <= 4
    assert lease_id not in {leased.lease.lease_id for leased in world.engine.leases.live()}


def test_who_comes_after_the_replacement_holds_the_new_one(world: World) -> None:
    first, later = Holder(), Holder()
    old = replaced(world, first)
    new = world.creds(later)
    first.end()
    world.run(0)
    assert not world.client.works(old)
    world.run(500)
    assert world.client.works(new)


def test_a_lease_that_was_read_outside_any_request_is_left_to_its_deadline(world: World) -> None:
    old = world.creds(Holder(unbounded=True))
    world.engine.reject(old)
    world.run(0.1)
    assert world.creds() != old
    world.run_until(old.lease.deadline - 0.1)
    assert world.client.works(old)
    assert not world.of(LeaseRevoked)
    world.run(1)
    assert [leased.lease.lease_id for leased in world.engine.leases.live()] == [world.creds().lease.lease_id]
    assert not world.of(LeaseRevoked)


def test_it_ends_also_for_those_who_hold_it_where_the_server_says_that_it_is_gone(world: World) -> None:
    holder = Holder()
    old = replaced(world, holder)
    del world.client.leases[old.lease.lease_id]
    world.run(45)
    assert old.lease.lease_id not in {leased.lease.lease_id for leased in world.engine.leases.live()}
    holder.end()
    world.run(0)
    assert "revoke_lease" not in {call.name for call in world.client.calls}


def test_a_failed_renewal_of_a_held_lease_is_tried_again(world: World) -> None:
    holder = Holder()
    old = replaced(world, holder)
    world.client.then("renew_lease", DOWN, DOWN)
    world.run(100)
    assert world.client.works(old)


def test_a_revocation_that_fails_is_tried_again_in_proportion_and_never_after_the_end(world: World) -> None:
    world.client.then("revoke_lease", *[DOWN] * 1000)
    old = replaced(world)
    assert len(world.of(LeaseRevocationFailed)) == 1
    world.run(20)
    assert 2 <= world.client.count("revoke_lease") <= 5
    world.client._scripts.clear()
    world.run(30)
    assert [event.lease_id for event in world.of(LeaseRevoked)] == [old.lease.lease_id]


def test_a_revocation_that_never_succeeds_ends_with_the_lease(world: World) -> None:
    world.client.then("revoke_lease", *[DOWN] * 1000)
    old = replaced(world)
    world.run(200)
    assert max(world.client.times("revoke_lease")) <= old.lease.deadline
    assert world.client.count("revoke_lease") < 40
    assert len(world.engine.leases.live()) == 1


def test_while_the_server_is_known_to_be_down_nothing_is_revoked_and_when_it_is_back_it_is(world: World) -> None:
    holder = Holder()
    old = replaced(world, holder)
    world.client.down = DOWN
    world.engine.breaker.suspect()
    world.run(1)
    holder.end()
    world.run(10)
    assert world.client.count("revoke_lease") == 0
    world.client.down = None
    world.run(1.5 + AFTER_OUTAGE)
    assert not world.client.works(old)
    assert old.lease.lease_id not in world.client.leases


def test_where_the_policy_forbids_revocations_that_is_said_once_and_leases_are_left_to_their_ttl(world: World) -> None:
    world.client.then("revoke_lease", Forbidden())
    for _ in range(3):
        replaced(world)
    [said] = world.of(LeaseRevocationFailed)
    assert "sys/leases/revoke" in said.reason
    assert world.client.count("revoke_lease") == 1
    assert world.client.count("log_in") == 1
    assert len(world.engine.leases.live()) == 1


def test_a_reader_and_a_replacement_that_meet_never_leave_a_held_lease_revoked(world: World) -> None:
    """The replacement comes between a reader's look at the entry and its hold: it goes back for the new one."""

    class Slow(Holder):
        def take(self, holds):  # type: ignore[no-untyped-def]
            if world.client.count("read") == 1:
                world.engine.reject(world.engine.cache.entries[CREDS].secret)
                world.run(0)
            super().take(holds)

    world.creds()
    secret = world.creds(Slow())
    assert world.client.works(secret)
    world.run(100)
    assert world.client.works(secret)


def test_draining_leases_are_counted_as_such(world: World) -> None:
    holder = Holder()
    replaced(world, holder)
    world.run(1)
    assert world.metric("vault_leases_draining") == 1
    assert world.metric("vault_leases_active") == 1
    assert world.engine.health()["leases"]["draining"] == 1
    holder.end()
    world.run(1)
    assert world.metric("vault_leases_draining") == 0
