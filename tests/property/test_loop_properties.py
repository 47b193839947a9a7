"""The loop that keeps leases and tokens alive, under any script of failures and delays; nothing sleeps.

The formulas have their own tests. Here the real engine runs, on a clock that is stepped, before a server that fails as
the script says.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine_fakes import CREDS, KEY, Holder, World
from vault_middleware.errors import AuthenticationError, SecretUnavailable, VaultMiddlewareError, VaultUnavailable
from vault_middleware.retry import FLOOR
from vault_middleware.secret import DynamicSecret
from vault_middleware.vault.client import Forbidden, Grant, LeaseGone, Token

#: Floating point: two times that are the same, in seconds.
SAME = 1e-6

FAILS = VaultUnavailable("it failed; look at it")
REFUSED = AuthenticationError("refused; look at the role", True)

seeds = st.integers(0, 2**32)
durations = st.floats(1.0, 3600.0)

#: What the server does with one call: how long it takes, as a share of the lease, and what comes of it.
steps = st.tuples(
    st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.01, 0.1, 0.5, 1.5]),
    st.sampled_from(["well", "fails", "fails", "fails", "short", "gone", "not renewable"]),
)
scripts = st.lists(steps, max_size=60)


def scripted(world: World, script: list[tuple[float, str]], then: str, duration: float) -> None:
    """Let renewals and re-issues go as *script* says, and for ever after as *then* does."""
    rest = iter(script)
    renew, read = world.client.renew_lease, world.client.read

    def step(name: str, what: str, timeout: float, whole: Callable[[], Any]) -> Any:
        took, outcome = next(rest, (0.0, then))
        timeout = min(timeout, world.config.client_timeout)
        world.clock.now += min(took * duration, timeout)
        if took * duration >= timeout or outcome == "fails" or (outcome != "well" and name == "read"):
            world.client.calls.append(type(world.client.calls[0])(world.now, f"failed {name}", what, ""))
            raise FAILS
        if outcome == "gone":
            raise LeaseGone("lease not found")
        if outcome == "short":
            return Grant(duration / 2, True, world.now)
        if outcome == "not renewable":
            return Grant(duration, False, world.now)
        return whole()

    def renewing(lease_id: str, increment: float, token: Token, timeout: float) -> Grant:
        tries.setdefault(lease_id, []).append(world.now)
        [leased] = [each for each in world.engine.leases.live() if each.lease.lease_id == lease_id]
        assert world.now < leased.deadline, "a renewal after the deadline"
        grant: Grant = step("renew_lease", lease_id, timeout, lambda: renew(lease_id, increment, token, timeout))
        return grant

    def reading(path: str, *arguments: Any, **options: Any) -> Any:
        current = world.engine.leases.current(CREDS)
        if current is None:
            raise AssertionError("a lease was asked for that nobody wants")
        assert world.now < current.deadline, "a replacement was asked for after the deadline"
        made = tries.setdefault(current.lease.lease_id, [])
        if not made or world.now > made[-1] + took_of(world):  # else it is what a renewal has led to at once
            made.append(world.now)
        return step("read", path, options["timeout"], lambda: read(path, *arguments, **options))

    tries: dict[str, list[float]] = {}
    world.tries = tries  # type: ignore[attr-defined]
    world.client.renew_lease = renewing  # type: ignore[method-assign]
    world.client.read = reading  # type: ignore[method-assign]


def took_of(world: World) -> float:
    """The longest that a renewal may have taken before a replacement followed it at once."""
    return world.config.client_timeout + SAME


@settings(deadline=None, max_examples=150)
@given(durations, st.booleans(), scripts, st.sampled_from(["well", "fails"]), seeds)
def test_calls_for_a_lease_are_bounded_by_its_time_and_none_comes_after_its_end(
    duration: float, renewable: bool, script: list[tuple[float, str]], then: str, seed: int
) -> None:
    world = World(uniform=seed, pulse=False)
    world.client.token_ttl = 1e7
    world.client.lease_ttl, world.client.lease_renewable = duration, renewable
    start = world.now
    world.creds()
    scripted(world, script, then, duration)
    for _ in range(40):
        world.run(duration / 8)
        entry = world.engine.cache.entries.get(CREDS)
        if entry is not None and world.now < entry.fresh_until:
            assert isinstance(entry.secret, DynamicSecret)
            assert world.now < entry.secret.lease.deadline
            if script == [] or all(outcome == "well" for _, outcome in script):
                assert world.client.works(entry.secret)
    tries: dict[str, list[float]] = world.tries  # type: ignore[attr-defined]
    for made in tries.values():
        # At most one a tenth of a second, so at most time / floor + 1, in any stretch of a lease's life.
        assert all(later - earlier >= FLOOR - SAME for earlier, later in pairwise(made)), made
        assert len(made) <= (world.now - start) / FLOOR + 1
    if then == "fails" and renewable:
        failing = [made for made in tries.values() if len(made) > len(script) + 1]
        # And in fact far fewer: each wait is in proportion to what is left.
        assert all(len(made) < 150 + 2 * len(script) for made in failing)


@settings(deadline=None, max_examples=150)
@given(
    st.floats(6.0, 3600.0), st.booleans(), st.floats(0.0, 3.0), st.floats(0.0, 1.0), st.booleans(), st.booleans(), seeds
)
def test_nothing_is_lost_where_the_server_is_back_in_time(
    duration: float, renewable: bool, begins: float, share: float, known: bool, hangs: bool, seed: int
) -> None:
    """An outage that leaves four seconds of what is served: a probe, half a second's spread, and the call."""
    world = World(uniform=seed, pulse=False, cache_ttl=duration)
    world.client.token_ttl = 1e7
    world.client.lease_ttl, world.client.lease_renewable = duration, renewable
    world.creds()
    world.value()
    world.run(begins * duration)
    current = world.creds()
    ends = current.lease.deadline - 1.0 - 4.0
    if ends > world.now:
        world.client.down = FAILS
        if known:
            world.engine.breaker.suspect()
        if hangs:
            world.client.latency = 0.05
        outage = (ends - world.now) * share
        for _ in range(20):
            world.run(outage / 20)
            assert world.creds() == current
    world.client.down, world.client.latency = None, 0.0
    world.lines.lines.clear()
    ids = set()
    for _ in range(60):
        world.run(duration / 20)
        secret = world.creds()
        assert world.client.works(secret)
        assert world.value() == "one"
        ids.add(secret.lease.lease_id)
    assert {line["outcome"] for line in world.lines.lines if line["secret_path"] == CREDS} == {"hit"}
    if renewable:
        assert ids == {current.lease.lease_id}


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from([FAILS, REFUSED]), max_size=14),
    st.floats(0.0, 2.0),
    st.floats(0.05, 20.0),
    st.booleans(),
    seeds,
)
def test_log_ins_that_fail_come_a_second_to_five_minutes_apart_however_many_ask(
    failures: list[VaultMiddlewareError], latency: float, every: float, expired: bool, seed: int
) -> None:
    world = World(uniform=seed, pulse=False)
    world.client.token_ttl = 60.0
    world.client.token_renewable = False
    if expired:
        world.value()
    world.client.then("log_in", *failures)
    since = world.now
    for _ in range(400):
        world.client.latency = latency if world.client._scripts["log_in"] else 0.0
        with suppress(SecretUnavailable):
            world.read(KEY, fresh=True)
        world.run(every)
        if not world.client._scripts["log_in"] and world.client.count("log_in", since) > len(failures):
            break
    times = [at for at in world.client.times("log_in") if at >= since][: len(failures) + 1]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap >= 1.0 - SAME for gap in gaps)
    assert all(gap <= 300.0 + latency + 1.5 + every + (48.0 if expired else 0.0) for gap in gaps)


outcomes = st.sampled_from([None, None, None, FAILS])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(4, 60),
    st.integers(6, 120),
    st.floats(1.0, 4.0),
    st.floats(1.0, 4.0),
    st.lists(outcomes, max_size=40),
    st.lists(outcomes, max_size=40),
    st.lists(st.sampled_from([None, None, FAILS, REFUSED]), max_size=10),
    st.booleans(),
    st.booleans(),
    seeds,
)
def test_what_is_served_works_whatever_fails_and_what_is_held_goes_on_working(
    lease: int,
    token: int,
    lease_max: float,
    token_max: float,
    renewals: list[Exception | None],
    reads: list[Exception | None],
    log_ins: list[Exception | None],
    renewable: bool,
    calm: bool,
    seed: int,
) -> None:
    """Tokens and leases at the ends of their TTLs; every credential is tried at the server at the moment it is got."""
    world = World(uniform=seed, pulse=False)
    client = world.client
    client.token_ttl, client.token_max_ttl, client.token_renewable = token, token * token_max, renewable
    client.lease_ttl, client.lease_max_ttl = lease, lease * lease_max
    world.creds()
    if calm:
        renewals, reads, log_ins = [], [], []
    client.then("renew_lease", *renewals)
    client.then("renew_token", *renewals)
    client.then("read", *reads)
    client.then("log_in", *log_ins)
    for _ in range(80):
        holder = Holder()
        try:
            held = world.creds(holder)
        except (SecretUnavailable, Forbidden):
            world.run(1)
            continue
        assert client.works(held)
        assert world.now < held.lease.deadline
        if calm:
            born = client.leases[held.lease.lease_id][1]
            token_born = client._born[client.leases[held.lease.lease_id][2]]
            longest = min(born + client.lease_max_ttl, token_born + (client.token_max_ttl if renewable else token))
            world.run_until(min(longest - 0.01, world.now + 2 * lease))
            assert client.works(held)
        else:
            world.run(lease / 7)
        holder.end()
    world.run(0)
    assert sum(leased.holds.draining for leased in world.engine.leases.live()) <= 1
    assert len(client.valid) >= 1


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_a_hundred_leases_are_renewed_at_moments_of_their_own(seed: int) -> None:
    world = World(uniform=seed, pulse=False)
    client = world.client
    client.token_ttl, client.lease_ttl = 1e6, 60.0
    for number in range(100):
        world.creds(path=f"database/creds/{number}")
    world.run(600)
    times = client.times("renew_lease")
    by_lease: dict[str, list[float]] = {}
    for call in client.calls:
        if call.name == "renew_lease":
            by_lease.setdefault(call.what, []).append(call.at)
    assert len(by_lease) == 100
    for made in by_lease.values():
        assert all(40.2 - SAME <= later - earlier <= 46.2 + SAME for earlier, later in pairwise(made))
    for second in range(1060, 1600, 10):
        assert sum(second <= at < second + 10 for at in times) < 60  # of 100 in 43 s; never all at once
    assert pytest.approx(100 * 600 / 43.2, rel=0.1) == len(times)
