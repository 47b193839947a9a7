"""Verify before publish: what a user's probe does not pass is handed to nobody, and what serves goes on serving."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from tests.engine_fakes import CREDS, KEY, World
from tests.fakes import STATIC, FakeVault, manager_over
from vault_middleware.engine.verification import PAUSE, TRIES
from vault_middleware.errors import SecretUnavailable
from vault_middleware.events import LeaseRenewalFailed
from vault_middleware.secret import DynamicSecret, Secret

CANARY = "hunter2-canary"


@pytest.fixture
def world() -> World:
    world = World()
    world.client.lease_renewable = False  # replaced at 70 to 80 % of 60 s
    return world


class Probe:
    """Passes what *passing* says, and notes what it was shown."""

    def __init__(self, passing: Callable[[int], bool]) -> None:
        self.seen: list[Secret] = []
        self.passing = passing

    def __call__(self, secret: Secret) -> None:
        self.seen.append(secret)
        if not self.passing(len(self.seen)):
            raise ConnectionError(f"no log-in with {CANARY}")

    @property
    def leases(self) -> list[str]:
        """The leases that were shown, each once."""
        return list(dict.fromkeys(each.lease.lease_id for each in self.seen if isinstance(each, DynamicSecret)))


def test_a_new_lease_is_probed_before_anyone_is_handed_it(world: World) -> None:
    served: list[str] = []

    def probe(secret: DynamicSecret) -> None:
        entry = world.engine.cache.entries.get(CREDS)
        served.append("none" if entry is None else entry.secret.lease.lease_id)  # type: ignore[attr-defined]

    world.probes[CREDS] = probe  # type: ignore[assignment]
    first = world.creds().lease.lease_id
    world.run(50)
    assert world.creds().lease.lease_id != first
    assert served == ["none", first]


def test_one_that_does_not_pass_at_once_may_pass_a_moment_later(world: World) -> None:
    world.probes[CREDS] = probe = Probe(lambda number: number >= 3)
    before = world.now
    assert world.creds().lease.lease_id == probe.leases[0]
    assert len(probe.seen) == 3
    assert world.client.count("read") == 1
    assert 0.2 < world.now - before < 0.5


def test_while_no_new_one_passes_the_old_one_serves_and_the_tries_are_bounded(world: World) -> None:
    first = world.creds()
    world.probes[CREDS] = probe = Probe(lambda number: False)
    while world.now < first.lease.deadline - 6:
        world.run(0.5)
        assert world.creds() == first
    assert 1 < len(probe.leases) <= 60 / 4  # what is left, by quarters
    assert len(probe.seen) == len(probe.leases) * (TRIES + 1)
    assert world.client.count("revoke_lease") == len(probe.leases)
    assert not set(probe.leases) & set(world.client.leases)
    failed = world.of(LeaseRenewalFailed)
    assert len(failed) == len(probe.leases)
    assert "did not pass its probe in 5 tries (ConnectionError)" in failed[0].reason
    probe.passing = lambda number: True
    world.run(8)
    assert world.creds().lease.lease_id == probe.leases[-1]


def test_where_none_serves_reads_say_so_and_the_next_one_is_fetched_only_after_a_pause(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.probes[CREDS] = probe = Probe(lambda number: False)
    with pytest.raises(SecretUnavailable, match=r"5 tries \(ConnectionError\)") as caught:
        world.creds()
    assert CANARY not in f"{caught.value!r}{caught.value.__cause__!r}{caplog.text}"
    for _ in range(20):
        with pytest.raises(SecretUnavailable, match="a moment ago"):
            world.creds()
    assert world.client.count("read") == 1
    world.run(0)
    assert world.client.leases == {}
    probe.passing = lambda number: True
    world.clock.now += PAUSE
    assert world.creds().lease.lease_id == probe.leases[-1]


def test_false_does_not_pass_and_nothing_does(world: World) -> None:
    world.probes[CREDS] = lambda secret: False
    with pytest.raises(SecretUnavailable, match="it returned False"):
        world.creds()
    world.clock.now += PAUSE
    world.probes[CREDS] = lambda secret: None
    world.creds()


def test_no_try_begins_after_the_time_of_the_fetch(world: World) -> None:
    def slow(secret: Secret) -> bool:
        world.clock.now += 4
        return False

    world.probes[CREDS] = slow
    with pytest.raises(SecretUnavailable, match="in 3 tries"):  # 10 s is VAULT_REQUEST_TIMEOUT
        world.creds()


def test_a_static_secret_is_probed_where_its_values_changed(world: World) -> None:
    world.probes[KEY] = probe = Probe(lambda number: True)
    assert world.value() == "one"
    world.run(280)  # refreshed with the same values
    assert world.client.count("read") == 2
    assert [each["value"] for each in probe.seen] == ["one"]
    world.client.data[KEY] = {"value": "two"}
    probe.passing = lambda number: False
    assert world.read(KEY).secret["value"] == "one"
    with pytest.raises(SecretUnavailable):
        world.read(KEY, fresh=True)
    assert world.value() == "one"
    probe.passing = lambda number: True
    world.run(300)
    assert world.value() == "two"


def test_a_lease_whose_token_dies_while_it_is_verified_is_served_to_nobody(world: World) -> None:
    def die(secret: DynamicSecret) -> None:
        generation = world.engine.session.current
        if secret.lease.lease_id.endswith("-1") or generation is None:
            return
        world.client.revoke_outside(generation.token.value)
        assert not world.engine.session.is_valid(generation, 1)
        world.probes.clear()

    first = world.creds()
    world.probes[CREDS] = die  # type: ignore[assignment]
    world.engine.reject(first)
    with pytest.raises(SecretUnavailable, match="while it was verified"):
        world.creds()
    assert world.engine.leases.current(CREDS) is None
    world.run(3)
    assert world.creds().lease.lease_id in world.client.leases


def test_a_stop_ends_the_tries_and_gives_the_new_lease_back(world: World) -> None:
    def stop(secret: Secret) -> bool:
        if not world.engine.closing.is_set():
            world.engine.stop(5)
        return False

    world.probes[CREDS] = stop
    with pytest.raises(SecretUnavailable):
        world.creds()
    assert world.client.leases == {}
    assert world.engine.cache.entries == {}
    assert world.engine.leases.live() == []


def test_the_manager_takes_one_probe_a_path_and_lets_go_of_it_again() -> None:
    vault = FakeVault()
    one, other = Probe(lambda number: True), Probe(lambda number: True)
    with manager_over(vault) as manager:
        forget_one = manager.verify(STATIC, one)
        forget_other = manager.verify(STATIC, other)
        forget_one()  # it was replaced already
        manager.get_secret(STATIC)
        assert (len(one.seen), len(other.seen)) == (0, 1)
        forget_other()
        manager.get_secret(STATIC, fresh=True)
        assert len(other.seen) == 1


def test_what_did_not_pass_is_told_once_a_fetch_and_without_a_value(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.probes[CREDS] = Probe(lambda number: False)
    with caplog.at_level(logging.DEBUG), pytest.raises(SecretUnavailable):
        world.creds()
    told = [record.getMessage() for record in caplog.records if "probe" in record.getMessage()]
    assert told == [f"a new secret for {CREDS!r} did not pass its probe (ConnectionError), and is not published"]
    assert CANARY not in caplog.text
