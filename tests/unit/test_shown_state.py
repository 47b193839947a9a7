"""What the pulse shows of one engine: its server, and how much its token and its leases have left; alerts stand on it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.engine_fakes import CREDS, Holder, World
from vault_middleware.errors import VaultUnavailable

DOWN = VaultUnavailable("the server does not answer; look at it")
LEASE, TOKEN, SERVER = "vault_lease_remaining_ratio", "vault_token_remaining_ratio", "vault_server_up"


def test_nothing_that_does_not_exist_is_near_its_end() -> None:
    world = World()
    world.run(1)
    assert world.metric(LEASE) == world.metric(TOKEN) == float("inf")


@pytest.mark.parametrize("seed", range(3))
def test_healthy_tokens_and_leases_always_have_more_left_than_the_alerts_ask_for(seed: int) -> None:
    world = World(uniform=random.Random(seed).uniform)
    world.client.lease_max_ttl, world.client.token_max_ttl = 300.0, 600.0
    world.client.token_ttl = 200.0
    world.creds()
    least = 1.0
    for _ in range(300):
        world.run(5)
        world.creds()
        least = min(least, world.metric(LEASE), world.metric(TOKEN))
    assert 0.15 < least < 0.35


def test_a_lease_that_cannot_be_renewed_or_replaced_falls_to_nothing() -> None:
    world = World()
    world.creds()
    world.run(1)
    assert world.metric(LEASE) > 0.9
    world.client.then("renew_lease", *[DOWN] * 1000)
    world.client.then("read", *[DOWN] * 1000)
    world.run(58)
    assert world.metric(LEASE) < 0.05


def test_a_lease_whose_token_ends_sooner_is_measured_by_its_own_end() -> None:
    world = World()
    world.client.token_ttl, world.client.lease_ttl = 60.0, 3600.0
    world.creds()
    world.run(1)
    assert world.metric(LEASE) > 0.9


def test_an_old_lease_that_a_request_holds_to_its_end_is_nothing_to_alert_on() -> None:
    world = World()
    world.client.lease_max_ttl = 60.0
    holder = Holder()
    held = world.creds(holder)
    for _ in range(1000):
        world.run(0.05)
        if not world.client.works(held):
            break
        assert world.metric(LEASE) > 0.15
    assert world.leased().lease.lease_id != held.lease.lease_id


def test_a_proxys_lease_is_the_proxys_to_keep() -> None:
    world = World(auth_method="proxy")
    world.creds()
    world.run(1)
    assert world.metric(LEASE) == float("inf")


def test_a_token_without_an_end_is_not_near_it() -> None:
    world = World()
    world.client.token_ttl = float("inf")
    world.read()
    world.run(1)
    assert world.metric(TOKEN) == float("inf")


def test_a_token_while_every_log_in_fails_falls_to_nothing() -> None:
    world = World()
    world.client.token_renewable = False
    world.read()
    world.client.then("log_in", *[DOWN] * 1000)
    world.run(3590)
    assert world.metric(TOKEN) < 0.05


def test_the_server_shows_as_down_as_long_as_the_breaker_says_so() -> None:
    world = World()
    world.read()
    world.run(1)
    assert world.metric(SERVER) == 1
    world.client.down = DOWN
    world.engine.breaker.suspect()
    world.run(2)
    assert world.metric(SERVER) == 0
    world.client.down = None
    world.run(3)
    assert world.metric(SERVER) == 1


def test_the_lease_nearest_to_its_end_is_the_one_that_counts() -> None:
    world = World()
    world.client.lease_renewable = False
    world.creds()
    world.run(30)
    world.creds(path="database/creds/other")
    world.run(1)
    assert world.leased(CREDS).issued < world.leased("database/creds/other").issued
    assert world.metric(LEASE) == pytest.approx(29 / 60, abs=0.02)


def test_the_operations_guide_lists_every_metric_and_no_other() -> None:
    world = World()
    world.creds()
    world.run(1)
    world.metrics.expect_leaks()  # as a tripwire does
    exported = {f"{family.name}{'_total' * (family.type == 'counter')}" for family in world.registry.collect()}
    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    table = guide.partition("### The metrics")[2].partition("### The alerts")[0]
    listed = {
        name for row in re.findall(r"^\| (`vault_.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)", row)
    }
    assert listed == exported
