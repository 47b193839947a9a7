"""The embedded OpenBao Proxy and Raft cluster: what a manager has of each, and that our stop harms nobody else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.integration.support import DYNAMIC, JWT, STATIC, asked, eventually, running
from tests.reliability.network import Balancer, Chaos
from vault_middleware import SecretsManager
from vault_middleware.devstack import Cluster, DevStack, Proxy
from vault_middleware.devstack.keeper import states
from vault_middleware.errors import VaultMiddlewareError

CREDS = f"lotabots/{DYNAMIC}"


@pytest.fixture
def proxy(stack: DevStack) -> Iterator[Proxy]:
    """A proxy with an empty cache, in front of the shared stack."""
    with Proxy(stack) as started:
        yield started


@contextlib.contextmanager
def behind(stack: DevStack, proxy: Proxy, **more: str) -> Iterator[SecretsManager]:
    """A manager that talks to *proxy* alone: it could not log in by itself."""
    with running(stack, **{**proxy.environ, "VAULT_KUBERNETES_TOKEN_PATH": "/nowhere", **more}) as manager:
        yield manager


def logs_in(stack: DevStack, credential: Any) -> bool:
    return stack.postgres.can_log_in(credential["username"], credential["password"])


# -- the proxy


@pytest.mark.parametrize("over", ["address", "unix_address"])
def test_a_manager_behind_a_proxy_reads_static_and_dynamic_secrets(stack: DevStack, proxy: Proxy, over: str) -> None:
    with behind(stack, proxy, VAULT_ADDR=getattr(proxy, over)) as secrets:
        assert secrets.get_secret(STATIC)["value"] in stack.secret_values()
        assert secrets.get_secret(JWT)["key"] in stack.secret_values()
        assert logs_in(stack, secrets.get_dynamic_secret(DYNAMIC))


def test_a_proxy_that_forces_its_own_token_serves_a_client_with_another(stack: DevStack) -> None:
    with Proxy(stack, force=True) as proxy:
        with running(stack, VAULT_ADDR=proxy.address, VAULT_AUTH_METHOD="token", VAULT_TOKEN="none") as secrets:
            assert secrets.get_secret(STATIC)["value"] in stack.secret_values()


def test_managers_behind_one_proxy_share_one_lease(stack: DevStack, proxy: Proxy) -> None:
    before = len(asked(stack, CREDS))
    with behind(stack, proxy) as one, behind(stack, proxy) as other:
        first, second = one.get_dynamic_secret(DYNAMIC), other.get_dynamic_secret(DYNAMIC)
    assert first.lease.lease_id == second.lease.lease_id
    assert len(asked(stack, CREDS)) == before + 1


def test_our_stop_leaves_the_proxys_token_and_the_shared_lease_alone(stack: DevStack, proxy: Proxy) -> None:
    with behind(stack, proxy) as other:
        with behind(stack, proxy) as one:
            lease = one.get_dynamic_secret(DYNAMIC).lease
        kept = other.get_dynamic_secret(DYNAMIC)
        assert kept.lease.lease_id == lease.lease_id
        assert kept.lease.lease_id.rsplit("/", 1)[1] in " ".join(stack.leases())
        assert logs_in(stack, kept)
        stack.put_secret("shared/written-after-the-stop", {"value": "new"})
        assert other.get_secret("shared/written-after-the-stop")["value"] == "new"
    revocations = [line for line in stack.bao.audit_log() if "revoke" in line["request"]["path"]]
    assert all("root" in line["auth"].get("policies", []) for line in revocations)


def test_the_age_of_a_shared_lease_counts_against_its_deadline(stack: DevStack, proxy: Proxy) -> None:
    with behind(stack, proxy) as first:
        mine = first.get_dynamic_secret(DYNAMIC).lease
        eventually(lambda: time.monotonic() > mine.deadline - mine.lease_duration + 3, "the lease to be 3 s old")
        with behind(stack, proxy) as second:
            theirs = second.get_dynamic_secret(DYNAMIC).lease
    assert theirs.lease_id == mine.lease_id
    assert theirs.lease_duration == mine.lease_duration
    assert theirs.deadline == pytest.approx(mine.deadline, abs=1.0)  # the header is in whole seconds


def test_a_manager_follows_the_proxys_lease_through_its_renewals_and_on_to_the_next(stack: DevStack) -> None:
    stack.add_database_role("short", ttl=4, max_ttl=10)
    path = "database/creds/short"
    seen: dict[str, float] = {}
    registry = CollectorRegistry()
    with Proxy(stack) as proxy, behind(stack, proxy) as secrets:
        secrets.get_dynamic_secret(path)

        def followed() -> bool:
            credential = secrets.get_dynamic_secret(path)
            assert credential.lease.deadline > time.monotonic()
            assert logs_in(stack, credential)
            seen.setdefault(credential["username"], time.monotonic())
            return len(seen) == 3

        eventually(followed, "the third lease")
        took = list(seen.values())
    del registry
    # Each was kept through its renewals, for longer than the four seconds of the first answer.
    assert min(later - earlier for earlier, later in zip(took, took[1:], strict=False)) > 5


def test_a_proxys_lease_serves_while_the_server_behind_it_hangs(stack: DevStack) -> None:
    stack.add_database_role("outlasting", ttl=8, max_ttl=60)
    path = "database/creds/outlasting"
    with Proxy(stack) as proxy, behind(stack, proxy) as secrets:
        lease = secrets.get_dynamic_secret(path).lease
        # Past the duration of the first answer, with most of a renewal before it.
        eventually(lambda: time.monotonic() > lease.deadline + 0.5, "the first duration to be over")
        stack.bao.pause()
        paused = time.monotonic()
        eventually(lambda: not secrets.health()["server"]["up"], "the outage to be noticed")

        def served() -> bool:
            assert secrets.get_dynamic_secret(path).lease.lease_id == lease.lease_id
            return time.monotonic() > paused + 2.0

        eventually(served, "two seconds")


def test_a_proxy_can_be_paused_and_killed_and_leaves_nothing(stack: DevStack) -> None:
    with Proxy(stack) as proxy:
        with behind(stack, proxy) as secrets:
            secrets.get_secret(STATIC)
            proxy.pause()
            with pytest.raises(VaultMiddlewareError):
                secrets.get_secret(JWT, timeout=0.5)
            proxy.resume()
            assert eventually(lambda: _tried(secrets, JWT), "the proxy to be asked again")["key"]
        address, folder = proxy.address, proxy.folder
        proxy.kill()
        assert not proxy.running
        assert proxy.start().address == address
        pid = proxy.pid
    assert not folder.exists()
    assert states().get(pid, (0, "Z"))[1] == "Z"


def _tried(secrets: SecretsManager, path: str) -> Any:
    try:
        return secrets.get_secret(path)
    except VaultMiddlewareError:
        return None


# -- the cluster


@pytest.fixture(scope="module")
def clustered() -> Iterator[tuple[DevStack, Cluster]]:
    cluster = Cluster()
    with DevStack(bao=cluster, lease_ttl=60, lease_max_ttl=300) as stack:
        yield stack, cluster


def test_a_manager_behind_a_balancer_serves_through_the_loss_of_the_leader(
    clustered: tuple[DevStack, Cluster],
) -> None:
    stack, cluster = clustered
    assert cluster.voters() == 3
    with Balancer(cluster.addresses) as balancer:
        with running(stack, VAULT_ADDR=balancer.address, VAULT_CACHE_TTL="1s") as secrets:
            value = secrets.get_secret(STATIC)["value"]
            before = secrets.get_dynamic_secret(DYNAMIC)
            old = cluster.leader()
            cluster.kill(old)

            def served() -> bool:
                assert secrets.get_secret(STATIC)["value"] == value
                assert logs_in(stack, secrets.get_dynamic_secret(DYNAMIC))
                return balancer.active not in (None, old.address)

            eventually(served, "the balancer to follow to the new leader")
            assert cluster.leader(other_than=old).address == balancer.active
            assert eventually(lambda: _tried(secrets, JWT), "a read that needs the server")["key"]
            assert secrets.get_dynamic_secret(DYNAMIC).lease.lease_id == before.lease.lease_id
        assert eventually(lambda: not stack.leases(), "our leases to be revoked at the new leader", 5)
        cluster.restart(old)
        stack.heal()
        assert balancer.switches == 2


def test_a_leader_that_steps_down_or_hangs_is_followed_by_another(clustered: tuple[DevStack, Cluster]) -> None:
    stack, cluster = clustered
    with Balancer(cluster.addresses) as balancer:
        first = cluster.leader()
        second = cluster.step_down()
        assert second is not first
        eventually(lambda: balancer.active == second.address, "the balancer to follow")
        cluster.pause(second)
        third = cluster.leader()
        assert third is not second
        eventually(lambda: balancer.active == third.address, "the balancer to follow")
        stack.heal()
        assert [node.paused for node in cluster.nodes] == [False] * 3
        assert cluster.voters() == 3


# -- the bad link


def test_a_bad_link_breaks_its_share_of_the_responses_and_reads_come_through(stack: DevStack) -> None:
    with Chaos(stack.bao.address, seed=5, latency=0.02, resets=0.2, truncated=0.1) as link:
        link.calm = True
        with running(stack, VAULT_ADDR=link.address, VAULT_MAX_RETRIES="6") as secrets:
            secrets.get_secret(STATIC)
            link.calm = False
            for _ in range(60):
                assert secrets.get_secret(STATIC, fresh=True)["value"] in stack.secret_values()
            link.calm = True
    counts = link.counts
    assert counts.responses > 60
    assert counts.resets > 5
    assert counts.truncated > 2


def test_the_same_seed_breaks_the_same_responses(stack: DevStack) -> None:
    def breaks() -> list[bool]:
        found = []
        with Chaos(stack.bao.address, seed=11, latency=0.0, resets=0.3, truncated=0.2) as link:
            for _ in range(30):
                before = link.counts.resets + link.counts.truncated
                with running(stack, VAULT_ADDR=link.address, VAULT_STARTUP="lazy", VAULT_MAX_RETRIES="0"):
                    pass
                found.append(link.counts.resets + link.counts.truncated > before)
        return found

    assert breaks() == breaks()
