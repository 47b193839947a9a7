"""The life of a lease, from its issue to its end or its replacement; see docs/lifecycle.md, and test_drain for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import floor

import pytest

from tests.engine_fakes import CREDS, Holder, World, at, middle
from vault_middleware.errors import LeaseLimitReached, SecretUnavailable, VaultUnavailable
from vault_middleware.events import LeaseRenewalFailed, LeaseRenewed, LeaseRevoked, LeaseRotated
from vault_middleware.renewal.schedule import AFTER_OUTAGE
from vault_middleware.secret import DynamicSecret, Secret
from vault_middleware.vault.client import Forbidden, Grant, LeaseGone

DOWN = VaultUnavailable("the server does not answer; look at it")
AILS = VaultUnavailable("its database does not answer; look at it")


@pytest.fixture
def world() -> World:
    return World()


def served(world: World, seconds: int) -> set[str]:
    """The lease ids that a request a second gets; each must work at that moment."""
    ids = set()
    for _ in range(seconds):
        world.run(1)
        secret = world.creds()
        assert world.client.works(secret)
        assert world.now < secret.lease.deadline
        ids.add(secret.lease.lease_id)
    return ids


# -- renewed


@pytest.mark.parametrize(("share", "first", "later"), [(0.0, 3.0, 40.2), (1.0, 46.2, 46.2)])
def test_the_first_renewal_is_drawn_widely_and_each_later_one_at_two_thirds_and_more(
    share: float, first: float, later: float
) -> None:
    world = World(uniform=at(share))
    start = world.now
    world.creds()
    world.run(200)
    renewals = world.client.times("renew_lease")
    assert renewals[0] - start == pytest.approx(first)
    assert renewals[1] - renewals[0] == pytest.approx(later)


def test_a_renewal_asks_for_the_duration_first_granted_and_moves_the_deadline(world: World) -> None:
    asked: list[float] = []
    whole = world.client.renew_lease

    def renew(lease_id: str, increment: float, *rest: object) -> Grant:
        asked.append(increment)
        return whole(lease_id, increment - 0.9, *rest)  # type: ignore[arg-type]

    world.client.renew_lease = renew  # type: ignore[method-assign,assignment]
    world.client.lease_ttl = 600
    before = world.creds().lease.deadline
    world.run(3000)
    assert set(asked) == {600}
    assert world.creds().lease.deadline > before
    assert not world.of(LeaseRotated)  # less than a second is no sign of the max TTL


def test_a_lease_in_use_is_served_for_ever_with_one_call_a_period(world: World) -> None:
    world.creds()
    assert len(served(world, 1000)) == 1
    assert world.client.count("renew_lease") == len(world.of(LeaseRenewed)) <= 1000 / 40 + 1
    world.metrics.flush()
    assert world.metric("vault_secret_cache_hits_total") == 1000


def test_a_renewal_is_a_new_object_with_the_same_values(world: World) -> None:
    before = world.creds()
    world.run(50)
    after = world.creds()
    assert after == before
    assert after is not before
    assert after.lease.deadline > before.lease.deadline


# -- replaced


def test_a_grant_cut_short_is_the_sign_to_replace_it(world: World) -> None:
    world.client.lease_max_ttl = 100
    first = world.creds().lease.lease_id
    ids = served(world, 95)
    assert len(ids) == 2
    [rotation] = world.of(LeaseRotated)
    assert (rotation.old_lease_id, rotation.reason) == (first, "its max TTL is near")
    assert world.client.leases.keys() == ids - {first}  # and the old one was revoked


@pytest.mark.parametrize(("duration", "granted", "rotated"), [(60, 59.5, 0), (60, 58.5, 1), (5, 4.6, 0), (5, 4.4, 1)])
def test_a_grant_is_short_if_it_misses_a_second_or_a_tenth(duration: float, granted: float, rotated: int) -> None:
    world = World()
    world.client.lease_ttl = duration
    world.creds()
    world.client.then("renew_lease", lambda: Grant(granted, True, world.now))
    world.run(duration * 0.5)
    assert len(world.of(LeaseRotated)) == rotated


def deadlines_at_replacement(world: World) -> list[float]:
    """A lease of 4 s; what its deadline is at the moment when another is fetched."""
    deadlines: list[float] = []

    def look() -> None:
        deadlines.append(world.leased().deadline)

    world.client.lease_ttl = 4
    world.creds()
    world.client.then("read", look)
    return deadlines


def test_a_lease_renewed_for_whole_seconds_is_handed_out_until_its_replacement_has_come() -> None:
    """Near its max TTL as much is left after a renewal as before it, and the server says a fraction less."""
    world = World(uniform=lambda _low, high: high)
    deadlines = deadlines_at_replacement(world)
    until = world.leased().deadline
    world.client.then("renew_lease", lambda: Grant(floor(world.leased().expires - world.now), True, world.now))
    world.run(3)
    assert len(world.of(LeaseRotated)) == 1
    assert deadlines == [until]


def test_a_token_renewed_for_whole_seconds_lets_its_leases_be_handed_out_until_others_have_come() -> None:
    """As with a lease; what is told of the token cuts short its leases."""
    world = World(uniform=lambda _low, high: high)
    world.client.token_ttl = 6
    deadlines = deadlines_at_replacement(world)
    token = world.leased().generation.token
    world.client.then("renew_token", replace(token, lease_duration=1, deadline=token.deadline - 0.6))
    world.run(5)
    assert world.client.count("log_in") == 2
    assert deadlines == [token.deadline]


def test_a_renewal_that_says_not_renewable_any_more_replaces_it(world: World) -> None:
    world.creds()
    world.client.then("renew_lease", lambda: Grant(60, False, world.now))
    world.run(30)
    assert len(world.of(LeaseRotated)) == 1


@pytest.mark.parametrize(("share", "due"), [(0.0, 42.0), (1.0, 48.0)])
def test_a_lease_that_cannot_be_renewed_is_replaced_at_seven_to_eight_tenths(share: float, due: float) -> None:
    world = World(uniform=at(share))
    world.client.lease_renewable = False
    start = world.now
    world.creds()
    world.run(due + 1)
    assert world.client.count("renew_lease") == 0
    assert world.client.times("read")[1] - start == pytest.approx(due)
    assert world.of(LeaseRotated)[0].reason == "it cannot be renewed"


@pytest.mark.parametrize("reason", ["lease not found", "lease is not renewable"])
def test_what_the_server_says_is_gone_is_replaced_at_once(world: World, reason: str) -> None:
    first = world.creds().lease.lease_id
    world.client.then("renew_lease", LeaseGone(reason))
    world.run(25)
    assert world.creds().lease.lease_id != first
    assert world.client.times("renew_lease")[0] == world.client.times("read")[1]
    assert world.metric("vault_lease_renewal_errors_total") == 1


def test_a_policy_that_forbids_renewals_leaves_the_token_alone_and_replaces_the_lease(world: World) -> None:
    world.creds()
    world.client.then("renew_lease", Forbidden())
    world.run(25)
    assert len(world.of(LeaseRotated)) == 1
    assert world.client.count("log_in") == 1
    assert "sys/leases/renew" in world.of(LeaseRenewalFailed)[0].reason


def test_the_new_lease_is_published_before_on_rotate_is_called_and_the_old_one_is_revoked_after(world: World) -> None:
    world.client.lease_renewable = False
    seen: list[tuple[bool, int]] = []

    def rotated(secret: Secret) -> None:
        assert isinstance(secret, DynamicSecret)
        seen.append((world.creds().lease.lease_id == secret.lease.lease_id, world.client.count("revoke_lease")))

    world.callbacks[CREDS] = [rotated]
    world.creds()
    assert seen == []
    world.run(46)
    assert seen == [(True, 0)]
    assert world.client.count("revoke_lease") == 1


@pytest.mark.parametrize("how", ["fresh", "rejected"])
def test_the_old_lease_is_not_revoked_before_on_rotate_was_called_whoever_replaces_it(world: World, how: str) -> None:
    draining: list[bool] = []
    old = world.creds()
    replaced = world.leased()
    world.callbacks[CREDS] = [lambda secret: draining.append(replaced.holds.draining)]
    if how == "fresh":
        world.read(CREDS, fresh=True)
    else:
        world.engine.reject(old)
        world.creds()
    assert draining == [False]
    assert replaced.holds.draining


def test_on_rotate_is_called_also_where_the_old_lease_was_over_before_the_new_one_came(world: World) -> None:
    told: list[Secret] = []
    world.callbacks[CREDS] = [told.append]
    world.creds()
    world.client.down = DOWN
    world.run(100)  # the lease dies in the outage
    world.client.down = None
    world.run(3)
    assert told == []
    assert told == [world.creds()] or told[0] == world.creds()
    assert len(told) == 1


def test_a_rejected_lease_is_replaced_once_for_all_who_say_so(world: World) -> None:
    bad = world.creds()
    for _ in range(3):
        world.engine.reject(bad)
    good = world.creds()
    assert good.lease.lease_id != bad.lease.lease_id
    world.engine.reject(bad)
    world.run(1)
    assert world.creds() == good
    assert world.client.count("read") == 2
    assert bad.lease.lease_id not in world.client.leases


def test_a_rejected_lease_is_replaced_in_the_background_too(world: World) -> None:
    bad = world.creds()
    world.engine.reject(bad)
    world.run(0.1)
    assert world.client.count("read") == 2
    assert world.of(LeaseRotated)[0].reason == "it did not work"


# -- failures


def test_a_failed_renewal_costs_no_reader_anything_and_is_tried_again_in_proportion_to_what_is_left(
    world: World,
) -> None:
    world.creds()
    world.client.then("renew_lease", AILS, AILS)
    assert len(served(world, 120)) == 1
    first, second, third = world.client.times("renew_lease")[:3]
    left = 60 - (first - 1000)
    assert second - first == pytest.approx(min(left / 4, 10) * 0.875)
    assert third > second + 1
    assert world.metric("vault_lease_renewal_errors_total") == 2
    assert [event.retry_in for event in world.of(LeaseRenewalFailed)] == pytest.approx([second - first, third - second])


def test_where_no_further_try_fits_a_new_lease_is_the_last_thing_to_try(world: World) -> None:
    world.creds()
    world.client.then("renew_lease", *[AILS] * 100)
    world.run(60)
    assert world.client.count("read") == 2
    assert world.of(LeaseRotated)[0].reason == "it could not be renewed"


def test_while_the_replacement_cannot_be_had_the_old_one_serves_to_its_deadline_and_not_past_it(world: World) -> None:
    world.client.lease_renewable = False
    first = world.creds()
    world.client.then("read", *[AILS] * 1000)
    world.run_until(first.lease.deadline - 1.1)
    assert world.creds() == first
    tries = world.client.count("read")
    world.run_until(first.lease.deadline + 0.1)
    with pytest.raises(SecretUnavailable):
        world.creds()
    assert 4 <= tries <= 60
    assert world.engine.leases.live() == []


def test_a_lease_that_ended_unreplaced_is_asked_for_by_the_next_reader_and_by_nobody_else(world: World) -> None:
    world.client.lease_renewable = False
    first = world.creds()
    world.client.then("read", *[AILS] * 200)
    world.run_until(first.lease.deadline)
    world.client._scripts.clear()
    calls = world.client.count("read")
    world.run(1000)
    assert world.client.count("read") == calls
    assert world.creds() != first


def test_while_the_server_is_known_to_be_down_a_lease_costs_no_call(world: World) -> None:
    world.creds()
    world.client.down = DOWN
    world.run(27)
    assert world.engine.breaker.down
    calls = world.client.count("renew_lease")
    world.run(30)
    assert world.client.count("renew_lease") == calls
    assert world.creds()


def test_when_the_server_is_back_every_lease_is_renewed_within_a_few_seconds_at_a_moment_of_its_own() -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return middle(low, high)

    world = World(uniform=uniform)
    world.client.lease_ttl = 600
    paths = [f"database/creds/{number}" for number in range(5)]
    for path in paths:
        world.creds(path=path)
    world.client.down = DOWN
    world.run(400)
    world.client.down = None
    drawn.clear()
    back = world.now
    world.run(1.5 + AFTER_OUTAGE)
    assert world.client.count("renew_lease", since=back) == 5
    assert drawn.count((0.0, AFTER_OUTAGE)) >= 5


def test_when_the_server_is_back_a_lease_near_its_end_does_not_wait_for_the_others(world: World) -> None:
    first = world.creds()
    world.client.down = DOWN
    world.run_until(first.lease.deadline - 3.0)
    world.client.down = None
    world.run_until(first.lease.deadline - 1.0)
    assert world.client.works(first)
    assert world.creds().lease.deadline > first.lease.deadline


def test_nothing_is_lost_where_the_server_is_back_in_time(world: World) -> None:
    first = world.creds()
    world.run(20)
    world.client.down = DOWN
    world.run(20)
    assert world.creds() == first
    world.client.down = None
    assert served(world, 100) == {first.lease.lease_id}


# -- its bounds


def test_a_lease_lives_no_longer_than_the_token_that_made_it(world: World) -> None:
    world.client.lease_ttl, world.client.token_ttl = 600, 100
    secret = world.creds()
    assert secret.lease.deadline == world.now + 100
    world.run(50)  # the token has been renewed
    assert world.client.count("renew_token") == 1
    assert world.creds().lease.deadline == world.client.times("renew_token")[0] + 100


def test_the_tokens_end_is_no_reason_to_renew_or_replace_a_lease_again_and_again() -> None:
    for renewable in (True, False):
        world = World()
        world.client.lease_renewable, world.client.token_renewable = renewable, False
        world.client.lease_ttl, world.client.token_ttl = 120, 100
        world.creds()
        world.client.then("log_in", *[VaultUnavailable("no")] * 100)
        world.run(99.9)
        assert world.client.count("renew_lease") + world.client.count("read") <= 2


def test_a_lease_with_less_than_the_least_validity_left_is_not_handed_out(world: World) -> None:
    world.client.lease_renewable = False
    first = world.creds()
    world.clock.now = first.lease.deadline - 0.9  # the renewer was late
    assert world.creds() != first


def test_an_idle_lease_is_given_back_and_the_next_reader_gets_another() -> None:
    world = World(lease_idle_ttl=300)
    first = world.creds()
    holder = Holder()
    world.run(200)
    world.creds(holder)
    world.run(400)
    assert world.engine.leases.current(CREDS) is not None  # it is held
    holder.end()
    world.run(60)
    assert [event.lease_id for event in world.of(LeaseRevoked)] == [first.lease.lease_id]
    assert world.engine.leases.live() == []
    calls = len(world.client.calls)
    world.run(1000)
    assert {call.name for call in world.client.calls[calls:]} <= {"renew_token"}
    assert world.creds() != first


def test_replacing_a_lease_is_not_reading_it() -> None:
    world = World(lease_idle_ttl=300)
    world.client.lease_renewable = False
    world.creds()
    world.run(400)
    assert world.engine.leases.live() == []


def test_without_an_idle_ttl_a_lease_is_kept_for_ever(world: World) -> None:
    first = world.creds()
    world.run(10_000)
    assert world.creds() == first


def test_one_lease_more_than_the_limit_is_refused_before_it_is_made() -> None:
    world = World(max_leases=2)
    world.creds(path="database/creds/a")
    world.creds(path="database/creds/b")
    with pytest.raises(LeaseLimitReached, match="VAULT_MAX_LEASES"):
        world.creds(path="database/creds/c")
    assert world.client.count("read") == 2
    world.creds(path="database/creds/a")
    assert world.value() == "one"  # what is no lease counts for nothing
    world.run(100)  # and those that are there are renewed and replaced as ever
    assert world.creds(path="database/creds/b")


def test_one_folder_takes_no_more_than_three_quarters_of_the_places() -> None:
    world = World(max_leases=8, lease_idle_ttl=50)
    for number in range(6):
        world.creds(path=f"database/creds/{number}")
    with pytest.raises(LeaseLimitReached, match="the 6 of 8 that one folder may have"):
        world.creds(path="database/creds/made-up")
    world.creds(path="other/creds/a")
    world.creds(path="other/creds/b")
    with pytest.raises(LeaseLimitReached, match="the 8 that this process may hold"):
        world.creds(path="third/creds/a")
    assert world.client.count("read") == 8
    world.run(200)  # nobody reads them: they are given back, and so are their places
    for number in range(6):
        world.creds(path=f"third/creds/{number}")


def test_the_place_of_a_lease_that_did_not_come_or_has_ended_is_free_again() -> None:
    world = World(max_leases=1, lease_idle_ttl=10)
    world.client.then("read", AILS)
    with pytest.raises(SecretUnavailable):
        world.creds()
    world.creds()
    world.run(120)
    world.creds(path="database/creds/other")


def test_a_full_table_of_leases_hinders_no_static_role() -> None:
    world = World(max_leases=1, cache_ttl=10)
    role = "database/static-creds/app"
    world.client.data[role] = {"username": "app", "password": "one", "rotation_period": 60, "ttl": 60}
    world.client.role_ttl = 60
    world.read(role)
    world.creds()
    for _ in range(20):
        world.run(5)
        assert world.read(role).secret["password"] == "one"


def test_a_lease_that_a_later_one_has_overtaken_is_given_back_and_not_served(world: World) -> None:
    world.creds()
    generation = world.engine.session.current
    assert generation is not None
    early = world.now
    late = world.client.read(CREDS, generation.token, version=None, timeout=1, correlation_id=None)
    world.clock.now += 1
    world.engine.reject(world.creds())
    current = world.creds()
    assert late.started == early
    world.engine.leases.publish(CREDS, late, generation)
    assert world.creds() == current
    world.run(0)
    assert late.lease_id not in world.client.leases
    assert current.lease.lease_id in world.client.leases


def test_a_lease_that_is_over_when_it_arrives_is_not_served_and_the_error_says_why(world: World) -> None:
    world.client.lease_ttl = 3
    world.client.latency = 4
    world.client.token_ttl = 3600
    with pytest.raises(SecretUnavailable, match="raise the TTL of the role"):
        world.creds()
    world.run(10)
    assert world.engine.leases.live() == []


def test_a_task_whose_lease_is_not_current_any_more_does_nothing(world: World) -> None:
    world.creds()
    leased = world.leased()
    world.engine.leases.end(leased)
    calls = len(world.client.calls)
    assert world.engine.keeper.tend(leased) is None
    assert len(world.client.calls) == calls


# -- behind a proxy


def proxied(uniform: Callable[[float, float], float] = middle) -> World:
    return World(auth_method="proxy", uniform=uniform)


def test_behind_a_proxy_nothing_is_renewed_or_revoked_and_the_lease_is_read_again_near_its_end() -> None:
    world = proxied()
    world.creds()
    world.run(500)
    assert {call.name for call in world.client.calls} == {"log_in", "read"}
    assert 10 <= world.client.count("read") <= 13
    world.engine.stop(5)
    assert {call.name for call in world.client.calls} == {"log_in", "read"}


def test_behind_a_proxy_the_age_of_the_answer_shortens_the_lease() -> None:
    world = proxied()
    world.client.age = 40
    assert world.creds().lease.deadline == world.now + 20
    world.run(16)
    assert world.client.count("read") == 2


def test_behind_a_proxy_the_same_lease_again_moves_its_end_and_is_no_rotation() -> None:
    world = proxied()
    first = world.creds()
    lease_id = first.lease.lease_id
    real = world.client.read

    def same(*args: object, **options: object) -> object:
        reading = real(*args, **options)  # type: ignore[arg-type]
        return type(reading)(
            reading.mount, first, reading.started, 0.0, "", lease_id=lease_id, lease_duration=60, renewable=True
        )

    world.client.read = same  # type: ignore[method-assign,assignment]
    world.run(1000)
    assert world.creds().lease.lease_id == lease_id
    assert not world.of(LeaseRotated)
    assert 15 <= world.client.count("read") <= 25
