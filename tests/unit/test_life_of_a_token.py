"""The life of our token: log-in, renewal, make before break, and what is not ours to end; see docs/lifecycle.md."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from tests.engine_fakes import CREDS, KEY, Holder, World, at
from vault_middleware.errors import (
    AuthenticationError,
    SecretAccessDenied,
    SecretUnavailable,
    VaultMiddlewareError,
    VaultUnavailable,
)
from vault_middleware.events import (
    LeaseRenewalFailed,
    LoggedIn,
    LoginFailed,
    TokenRenewalFailed,
    TokenRenewed,
    TokenRevoked,
)
from vault_middleware.renewal.schedule import AFTER_OUTAGE
from vault_middleware.secret import DynamicSecret
from vault_middleware.vault.client import Forbidden

DOWN = VaultUnavailable("the server does not answer; look at it")
REFUSED = AuthenticationError("the log-in was refused; look at the role", True)


@pytest.fixture
def world() -> World:
    return World()


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def retired(world: World) -> tuple[Holder, DynamicSecret]:
    """A token that another one has taken over from, and a request that holds a lease of it."""
    world.client.token_ttl = 100
    holder = Holder()
    held = world.creds(holder)
    world.client.token_ttl = 50
    world.run(42)  # its renewal was cut short
    assert world.client.count("log_in") == 2
    return holder, held


# -- log-in


def test_the_first_read_logs_in_and_the_next_ones_do_not(world: World) -> None:
    assert world.client.count("log_in") == 0
    world.value()
    world.creds()
    assert world.client.count("log_in") == 1
    assert world.of(LoggedIn)[0].ttl == 3600


@pytest.mark.parametrize("failure", [REFUSED, DOWN])
def test_a_log_in_that_fails_is_tried_again_from_one_second_to_five_minutes_without_end(
    world: World, failure: VaultMiddlewareError
) -> None:
    world.client.then("log_in", *[failure] * 14)
    with pytest.raises(SecretUnavailable):
        world.value()
    world.run(3000)
    assert world.value() == "one"
    pauses = gaps(world.client.times("log_in"))
    assert pauses == pytest.approx([1, 1.75, 3.5, 7, 14, 28, 56, 112, 224, 262.5, 262.5, 262.5, 262.5, 262.5])
    assert [event.retry_in for event in world.of(LoginFailed)] == pytest.approx(pauses)


def test_no_pause_between_log_ins_is_under_a_second_whatever_is_drawn() -> None:
    world = World(uniform=at(0.0))
    world.client.then("log_in", *[REFUSED] * 10)
    with pytest.raises(SecretUnavailable):
        world.value()
    world.run(3000)
    assert min(gaps(world.client.times("log_in"))) >= 1.0


def test_while_the_pause_lasts_readers_get_the_failure_at_once_and_make_no_storm(world: World) -> None:
    world.client.then("log_in", *[REFUSED] * 1000)
    for _ in range(1000):
        with pytest.raises(SecretUnavailable, match="the log-in was refused"):
            world.value()
        world.run(0.1)
    assert world.client.count("log_in") <= 7


def test_many_threads_that_need_a_token_make_one_log_in(world: World) -> None:
    entered, go, waiting = threading.Event(), threading.Event(), threading.Semaphore(0)

    def slow() -> None:
        entered.set()
        assert go.wait(10)

    world.client.then("log_in", slow)
    got: list[object] = []

    def need() -> None:
        waiting.release()
        got.append(world.engine.session.get(10))

    threads = [threading.Thread(target=need) for _ in range(16)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert len(got) == 16
    assert len(set(got)) == 1
    assert world.client.count("log_in") == 1


def test_a_failed_log_in_is_raised_as_each_waiters_own_copy(world: World) -> None:
    world.client.then("log_in", REFUSED)
    errors = []
    for _ in range(2):
        with pytest.raises(AuthenticationError) as caught:
            world.engine.session.get(1)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert str(errors[0]) == str(errors[1]) == str(REFUSED)
    assert errors[0].passing
    assert world.engine.session.failure is not None


def test_the_failure_is_forgotten_with_the_log_in_that_succeeds(world: World) -> None:
    world.client.then("log_in", REFUSED)
    with pytest.raises(SecretUnavailable):
        world.value()
    assert "refused" in world.engine.health()["token"]["last_error"]
    world.run(1)
    assert world.engine.health()["token"] == {"valid": True, "ttl": 3600, "last_error": None}


def test_when_the_server_is_back_the_log_in_does_not_wait_for_its_pause(world: World) -> None:
    world.client.down = DOWN
    with pytest.raises(SecretUnavailable):
        world.value()
    world.run(600)
    world.client.down = None
    back = world.now
    world.run(1.5 + AFTER_OUTAGE)
    assert world.client.count("log_in", since=back) == 1
    assert world.value() == "one"


# -- renewed


@pytest.mark.parametrize(("share", "first", "later"), [(0.0, 180.0, 2412.0), (1.0, 2772.0, 2772.0)])
def test_the_first_renewal_spreads_a_fleet_out_and_later_ones_come_at_two_thirds_and_more(
    share: float, first: float, later: float
) -> None:
    world = World(uniform=at(share))
    start = world.now
    world.value()
    world.run(10_000)
    times = world.client.times("renew_token")
    assert times[0] - start == pytest.approx(first)
    assert times[1] - times[0] == pytest.approx(later)
    assert world.client.count("log_in") == 1
    assert len(world.of(TokenRenewed)) == len(times)


def test_a_failed_renewal_is_tried_again_in_proportion_and_costs_nobody_anything(world: World) -> None:
    world.value()
    world.client.then("renew_token", DOWN, DOWN)
    world.run(1600)
    assert world.client.count("renew_token") == 3
    assert world.client.count("log_in") == 1
    assert min(gaps(world.client.times("renew_token"))) >= 7.5
    assert [event.ttl_left for event in world.of(TokenRenewalFailed)] == pytest.approx([2124, 2115.25], abs=1)


# -- replaced: make before break


def test_a_grant_cut_short_brings_a_new_token_and_the_old_one_goes_only_when_its_leases_have(world: World) -> None:
    world.client.token_max_ttl = 4000
    holder = Holder()
    old = world.creds(holder)
    world.run(1600)  # renewed at 1476, and cut short
    assert world.client.count("log_in") == 2
    new = world.creds()
    assert new.lease.lease_id != old.lease.lease_id
    assert world.client.works(old)
    assert world.client.works(new)
    assert not world.of(TokenRevoked)
    holder.end()
    world.run(1)
    assert [call.what for call in world.client.calls if call.name == "revoke_token"] == ["token-1"]
    calls = [call.name for call in world.client.calls if call.name != "renew_lease"]
    assert calls[-4:] == ["log_in", "read", "revoke_lease", "revoke_token"]
    assert world.client.works(new)


def test_nobody_reads_a_lease_of_a_token_that_is_gone_at_any_moment_of_a_take_over(world: World) -> None:
    world.client.token_ttl, world.client.token_max_ttl = 60, 200
    world.client.lease_ttl, world.client.lease_max_ttl = 20, 60
    world.client.latency = 0.01
    paths = [f"database/creds/{number}" for number in range(5)]
    for path in paths:
        world.creds(path=path)
    for _ in range(3000):
        world.run(0.3)
        for path in paths:
            assert world.client.works(world.creds(path=path))
    assert world.client.count("log_in") >= 4
    assert world.client.count("revoke_token") >= 3
    assert len(world.client.valid) <= 2
    world.metrics.flush()
    assert world.metric("vault_secret_requests_total") - world.metric("vault_secret_cache_hits_total") == 5


def test_a_retired_token_is_renewed_for_the_sake_of_those_who_hold_its_leases_to_its_max_ttl(world: World) -> None:
    holder, held = retired(world)
    assert world.creds().lease.lease_id != held.lease.lease_id
    world.run(300)
    assert world.client.works(held)
    world.client.token_max_ttl = world.now - 1000 + 10  # of the first one
    world.run(100)
    assert not world.client.works(held)
    holder.end()
    world.run(1)
    assert "token-1" not in {call.what for call in world.client.calls if call.name == "revoke_token"}


def test_a_retired_token_without_leases_is_revoked_at_once(world: World) -> None:
    world.client.token_max_ttl = 4000
    world.value()
    world.run(1476)
    assert world.client.count("log_in") == 2
    assert [call.what for call in world.client.calls if call.name == "revoke_token"] == ["token-1"]
    assert len(world.of(TokenRevoked)) == 1


@pytest.mark.parametrize(("share", "due"), [(0.0, 2412.0), (1.0, 2772.0)])
def test_a_token_that_cannot_be_renewed_is_replaced_in_the_same_time(share: float, due: float) -> None:
    world = World(uniform=at(share))
    world.client.token_renewable = False
    world.value()
    world.run(due + 1)
    assert world.client.times("log_in")[1] - 1000 == pytest.approx(due)
    assert world.client.count("renew_token") == 0


def test_renewals_that_keep_failing_give_way_to_a_log_in_before_the_end(world: World) -> None:
    world.value()
    world.client.then("renew_token", *[VaultUnavailable("500")] * 1000)
    world.run(3600 - 360 + 5)  # the margin is a tenth of it
    assert world.client.count("log_in") == 2
    assert world.client.count("renew_token") < 60
    assert world.client.times("log_in")[1] >= 1000 + 3600 - 360 - 300


def test_a_valid_token_that_may_not_renew_itself_is_asked_once_and_replaced_before_it_goes(world: World) -> None:
    first = world.creds()
    world.client.then("renew_token", *[AuthenticationError("it may not be renewed; it is replaced in time")] * 2)
    world.client.then("log_in", REFUSED, REFUSED)
    world.run(1475)
    assert world.creds() == first
    world.run(5)
    calls = [call.name for call in world.client.calls if call.name not in ("renew_lease", "read", "probe")]
    assert calls == ["log_in", "renew_token", "token_is_valid", *["log_in"] * 3, "revoke_lease", "revoke_token"]
    assert world.client.works(world.creds())
    world.run(1)
    assert world.client.count("renew_token") == world.client.count("token_is_valid") == 1
    assert world.of(TokenRevoked)


def test_a_refused_renewal_whose_look_up_fails_is_simply_tried_again(world: World) -> None:
    world.value()
    world.client.then("renew_token", AuthenticationError("it may not be renewed; it is replaced in time"))
    world.client.then("token_is_valid", DOWN)
    world.run(1600)
    assert world.client.count("renew_token") == 2
    assert world.client.count("log_in") == 1


def test_while_the_replacement_fails_the_old_token_serves_and_log_ins_keep_their_pace(world: World) -> None:
    world.client.token_renewable = False
    first = world.creds()
    world.client.then("log_in", *[REFUSED] * 6)
    world.run(2592 + 40)
    pauses = gaps(world.client.times("log_in"))
    assert pauses[1:] == pytest.approx([1, 1.75, 3.5, 7, 14])
    assert world.creds() == first


def test_a_token_that_runs_out_while_log_ins_fail_makes_no_second_row_of_them(world: World) -> None:
    world.client.token_renewable = False
    world.creds()
    world.client.then("log_in", *[REFUSED] * 20)
    for _ in range(600):
        world.run(10)
        if world.now > 4600:
            with pytest.raises(SecretUnavailable):
                world.creds()
        if len(world.of(LoginFailed)) == 15:
            break
    pauses = gaps(world.client.times("log_in"))[1:]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(262.5)


def test_an_expired_token_is_replaced_in_the_background(world: World) -> None:
    world.value()
    world.client.then("renew_token", *[VaultUnavailable("500")] * 1000)
    world.client.then("log_in", *[VaultUnavailable("500")] * 9)
    world.run(5000)
    assert world.engine.session.current is not None
    assert world.client.count("log_in") == 11


def test_a_lease_that_was_asked_for_with_the_old_token_survives_the_take_over(world: World) -> None:
    """The read is answered, the take-over happens, and only then is its lease published."""
    world.value()
    session = world.engine.session
    old = session.current
    assert old is not None
    real = world.client.read

    def read(path: str, *args: object, **options: object) -> object:
        reading = real(path, *args, **options)  # type: ignore[arg-type]
        if path == CREDS and old is session.current:
            session._take_over(world.client.log_in(1))
            world.run(0)
            assert "token-1" in world.client.valid
        return reading

    world.client.read = read  # type: ignore[method-assign,assignment]
    assert world.client.works(world.creds())
    world.run(0)
    assert world.client.works(world.creds())  # issued again under the new token
    world.run(1)
    assert "token-1" not in world.client.valid
    assert world.client.works(world.creds())


def test_a_token_that_could_not_carry_a_lease_that_can_be_handed_out_is_replaced_before_it_makes_one(
    world: World,
) -> None:
    world.client.token_ttl = 60
    world.value()
    world.clock.now += 59.5  # the renewer was late
    assert world.value() == "one"
    assert world.client.count("log_in") == 1
    secret = world.creds()
    assert world.client.count("log_in") == 2
    assert secret.lease.deadline - world.now == 60


# -- invalid


def test_a_token_revoked_from_outside_costs_one_look_up_one_log_in_and_no_read(world: World) -> None:
    world.creds()
    world.value()
    world.client.revoke_outside("token-1")
    secret = world.read(KEY, fresh=True).secret
    assert secret["value"] == "one"
    assert world.client.count("token_is_valid") == 1
    assert world.client.count("log_in") == 2
    assert world.client.count("revoke_token") == 0
    world.run(0)
    world.metrics.flush()
    misses = world.metric("vault_secret_requests_total") - world.metric("vault_secret_cache_hits_total")
    assert world.client.works(world.creds())  # issued again in the background
    world.metrics.flush()
    assert world.metric("vault_secret_requests_total") - world.metric("vault_secret_cache_hits_total") == misses
    world.run(3000)
    assert world.client.count("log_in") == 2
    renewed = [call.what for call in world.client.calls if call.name == "renew_token"]
    assert set(renewed) == {"token-2"}  # also when the dead one's renewal would have been due


def test_the_renewer_too_finds_out_that_the_token_is_invalid_and_restores_every_lease(world: World) -> None:
    paths = [f"database/creds/{number}" for number in range(5)]
    for path in paths:
        world.creds(path=path)
    told: list[object] = []
    world.callbacks[paths[0]] = [told.append]
    world.client.revoke_outside("token-1")
    world.run(30)
    assert world.client.count("log_in") == 2
    assert world.client.count("token_is_valid") == 1
    calls = world.client.count("read")
    assert all(world.client.works(world.creds(path=path)) for path in paths)
    assert world.client.count("read") == calls == 10
    assert len(told) == 1


def test_a_lease_that_cannot_be_restored_is_told_and_counted_at_each_try(world: World) -> None:
    world.creds()
    generation = world.engine.session.current
    assert generation is not None
    world.client.revoke_outside(generation.token.value)
    world.client.then("read", *[DOWN] * 2)
    assert not world.engine.session.is_valid(generation, 1)
    world.run(10)
    failed = world.of(LeaseRenewalFailed)
    assert len(failed) == 2
    assert {(event.secret_path, event.ttl_left) for event in failed} == {(CREDS, 0.0)}
    assert all(event.retry_in for event in failed)
    assert world.metric("vault_lease_renewal_errors_total") == 2
    assert world.engine.leases.current(CREDS)


def test_leases_of_an_invalid_token_are_restored_as_soon_as_a_log_in_succeeds(world: World) -> None:
    world.creds()
    world.client.revoke_outside("token-1")
    world.client.then("log_in", *[REFUSED] * 4)
    world.run(60)
    reads = world.client.count("read")
    assert world.client.works(world.creds())
    assert world.client.count("read") == reads


def test_a_token_found_invalid_is_replaced_in_the_background_whether_anyone_reads_or_not(world: World) -> None:
    world.engine.session.get(1)
    world.client.revoke_outside("token-1")
    world.run(1476)
    assert [call.name for call in world.client.calls] == ["log_in", "renew_token", "token_is_valid", "log_in"]


def test_a_process_that_slept_past_its_tokens_end_logs_in_when_it_wakes(world: World) -> None:
    world.engine.session.get(1)
    world.clock.now += 10_000
    world.run(0)
    assert [call.name for call in world.client.calls] == ["log_in", "log_in"]


def test_an_invalid_token_while_log_ins_fail_counts_as_vault_that_cannot_answer(world: World) -> None:
    world.value()
    world.client.revoke_outside("token-1")
    world.client.then("log_in", *[REFUSED] * 3)
    with pytest.raises(SecretUnavailable, match="log-in was refused"):
        world.creds()
    world.clock.now += 301  # past the TTL, with the renewer late
    assert world.value() == "one"
    assert world.lines.lines[-1]["outcome"] == "stale"


def test_a_policy_that_refuses_is_no_reason_to_log_in(world: World) -> None:
    world.value()
    world.client.then("read", *[Forbidden()] * 100)
    for _ in range(30):
        with pytest.raises(SecretAccessDenied):
            world.value("kv/other")
        world.run(1)
    assert world.client.count("log_in") == 1
    assert world.client.count("token_is_valid") <= 6


def test_a_retired_token_that_turns_out_invalid_is_no_reason_to_log_in(world: World) -> None:
    retired(world)
    world.client.revoke_outside("token-1")
    world.run(40)
    assert world.client.count("log_in") == 2
    assert all(leased.generation is world.engine.session.current for leased in world.engine.leases.live())


# -- what is not ours


def test_a_given_token_is_renewed_and_never_revoked_but_its_leases_are() -> None:
    world = World(auth_method="token")
    secret = world.creds()
    world.run(5000)
    assert world.client.count("renew_token") >= 1
    world.engine.stop(5)
    assert world.client.count("revoke_token") == 0
    assert secret.lease.lease_id not in world.client.leases
    assert "token-1" in world.client.valid


def test_a_given_token_near_its_max_ttl_is_looked_at_again_and_nothing_is_issued_anew() -> None:
    world = World(auth_method="token")
    world.client.token_max_ttl = 5000
    secret = world.creds()
    world.run(4900)
    assert world.creds() == secret
    assert world.client.count("log_in") < 30


def test_another_given_token_takes_over_and_the_one_before_it_is_left_alone() -> None:
    world = World(auth_method="token")
    world.client.token_renewable = False
    first = world.creds()
    world.client.same_token = False  # the file has another one now
    world.run(2700)
    second = world.creds()
    assert second != first
    assert world.client.count("revoke_token") == 0
    assert first.lease.lease_id not in world.client.leases
    assert "token-1" in world.client.valid


def test_a_token_that_never_ends_is_never_renewed() -> None:
    world = World(auth_method="token")
    world.client.token_ttl = float("inf")
    world.value()
    world.run(10_000)
    assert world.client.count("renew_token") == 0
    assert world.engine.health()["token"]["ttl"] is None
