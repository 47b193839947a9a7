"""The embedded OpenBao Proxy and Raft cluster: what a manager has of each, and that our stop harms nobody else."""

from __future__ import annotations

import contextlib
import http.client
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.support import DYNAMIC, JWT, STATIC, answers, asked, eventually, running, serve
from tests.reliability.network import Balancer, Chaos
from vault_middleware import SecretsManager
from vault_middleware.devstack import Cluster, DevStack, Proxy
from vault_middleware.devstack.keeper import states
from vault_middleware.errors import SecretUnavailable, VaultMiddlewareError

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
    other = {"VAULT_AUTH_METHOD": "token", "VAULT_TOKEN": "none"}
    with Proxy(stack, force=True) as proxy, running(stack, VAULT_ADDR=proxy.address, **other) as secrets:
        assert secrets.get_secret(STATIC)["value"] in stack.secret_values()


def test_managers_behind_one_proxy_share_one_lease(stack: DevStack, proxy: Proxy) -> None:
    before = len(asked(stack, CREDS))
    with behind(stack, proxy) as one, behind(stack, proxy) as other:
        first, second = one.get_dynamic_secret(DYNAMIC), other.get_dynamic_secret(DYNAMIC)
    assert first.lease.lease_id == second.lease.lease_id
    assert len(asked(stack, CREDS)) == before + 1


@pytest.mark.parametrize("over", ["address", "unix_address"])
def test_four_gunicorn_workers_behind_one_proxy_share_one_lease_and_their_stop_leaves_it(
    stack: DevStack, proxy: Proxy, tmp_path: Path, over: str
) -> None:
    before, creds = len(stack.bao.audit_log()), len(asked(stack, CREDS))
    alone = {"VAULT_KUBERNETES_TOKEN_PATH": "/nowhere"}  # no worker could log in by itself
    more = {**proxy.environ, **alone, "VAULT_ADDR": getattr(proxy, over)}
    command = ("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "4", "--log-level", "warning", "gateways:wsgi")
    users: set[str] = set()  # as PostgreSQL calls who logs in
    with serve(command, stack, tmp_path, root=Path(__file__).parent, **more) as gunicorn:
        eventually(lambda: answers(gunicorn), "the server to answer")

        def all_have_read() -> bool:  # a worker starts its manager at its first read
            answer = httpx.get(f"{gunicorn.url}/who", trust_env=False, timeout=20)
            assert answer.status_code == 200, gunicorn.log.read_text()
            users.add(answer.text)
            return len({line["pid"] for line in gunicorn.lines("start")}) == 4

        eventually(all_have_read, "each of the four workers to read")
        (user,) = users
        assert user.startswith("v-")
        assert len(asked(stack, CREDS)) == creds + 1
        gunicorn.process.send_signal(signal.SIGTERM)
        gunicorn.process.wait(30)
        assert len({line["pid"] for line in gunicorn.lines("stop")}) == 4
    assert not [line for line in stack.bao.audit_log()[before:] if "revoke" in line["request"]["path"]]
    assert user in stack.postgres.users()
    with behind(stack, proxy, VAULT_ADDR=more["VAULT_ADDR"]) as another:
        credential = another.get_dynamic_secret(DYNAMIC)
        assert credential["username"] == user
        assert logs_in(stack, credential)


def test_our_stop_leaves_the_proxys_token_and_the_shared_lease_alone(stack: DevStack, proxy: Proxy) -> None:
    before = len(stack.bao.audit_log())
    with behind(stack, proxy) as other:
        with behind(stack, proxy) as one:
            lease = one.get_dynamic_secret(DYNAMIC).lease
        kept = other.get_dynamic_secret(DYNAMIC)
        assert kept.lease.lease_id == lease.lease_id
        assert kept.lease.lease_id.rsplit("/", 1)[1] in " ".join(stack.leases())
        assert logs_in(stack, kept)
        stack.put_secret("shared/written-after-the-stop", {"value": "new"})
        assert other.get_secret("shared/written-after-the-stop")["value"] == "new"
    assert not [line for line in stack.bao.audit_log()[before:] if "revoke" in line["request"]["path"]]


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
    with Proxy(stack) as proxy, behind(stack, proxy) as secrets:
        secrets.get_dynamic_secret(path)

        def followed() -> bool:
            credential = secrets.get_dynamic_secret(path)
            assert credential.lease.deadline > time.monotonic()
            assert logs_in(stack, credential)
            seen.setdefault(credential["username"], time.monotonic())
            return len(seen) == 2

        eventually(followed, "the next lease")
        took = list(seen.values())
    # The first was kept through its renewals, for longer than the four seconds of its answer.
    assert took[1] - took[0] > 5


def test_a_proxys_lease_serves_while_the_server_behind_it_hangs(stack: DevStack) -> None:
    stack.add_database_role("outlasting", ttl=6, max_ttl=60)
    path = "database/creds/outlasting"
    with Proxy(stack) as proxy, behind(stack, proxy) as secrets:
        lease = secrets.get_dynamic_secret(path).lease
        # Past the duration of the first answer, with most of a renewal before it.
        eventually(lambda: time.monotonic() > lease.deadline + 0.5, "the first duration to be over")
        stack.bao.pause()
        paused = time.monotonic()
        with pytest.raises(SecretUnavailable):
            secrets.get_secret(JWT, timeout=2)

        def served() -> bool:
            assert secrets.get_dynamic_secret(path).lease.lease_id == lease.lease_id
            return time.monotonic() > paused + 2.0

        eventually(served, "two seconds")
        assert not secrets.health()["server"]["up"]


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


def test_a_leader_that_hangs_or_steps_down_is_followed_by_another(clustered: tuple[DevStack, Cluster]) -> None:
    stack, cluster = clustered
    with Balancer(cluster.addresses) as balancer:
        first = cluster.leader()
        cluster.pause(first)
        second = cluster.leader()
        assert second is not first
        eventually(lambda: balancer.active == second.address, "the balancer to follow")
        stack.heal()
        assert [node.paused for node in cluster.nodes] == [False] * 3
        third = cluster.step_down()
        assert third is not second
        eventually(lambda: balancer.active == third.address, "the balancer to follow")
        assert cluster.voters() == 3


# -- the bad link


def test_what_is_cached_is_served_over_a_bad_link(stack: DevStack) -> None:
    with Chaos(stack.bao.address, seed=5, latency=0.02, resets=0.2, truncated=0.1) as link:
        link.calm = True
        with running(stack, VAULT_ADDR=link.address, VAULT_CACHE_TTL="0.2s") as secrets:
            secrets.get_secret(STATIC)
            secrets.get_dynamic_secret(DYNAMIC)
            link.calm = False

            def served() -> bool:
                assert secrets.get_secret(STATIC)["value"] in stack.secret_values()
                assert logs_in(stack, secrets.get_dynamic_secret(DYNAMIC))
                return link.counts.resets > 3 and link.counts.truncated > 1

            eventually(served, "some responses to be broken")
            link.calm = True
        assert link.counts.connections > 1


def test_a_link_is_as_slow_as_it_was_made_and_breaks_nothing_while_it_is_calm(stack: DevStack) -> None:
    with Chaos(stack.bao.address, seed=1, latency=0.2, resets=1.0) as link:
        link.calm = True
        before = time.monotonic()
        assert _fate(link.address) == "whole"
        assert time.monotonic() - before >= 0.2
        link.calm = False
        assert _fate(link.address) == "reset"
        assert (link.counts.responses, link.counts.resets) in ((1, 1), (2, 1))


def test_the_same_seed_breaks_the_same_responses(stack: DevStack) -> None:
    def fates(seed: int) -> list[str]:
        with Chaos(stack.bao.address, seed=seed, latency=0.0, resets=0.3, truncated=0.2) as link:
            return [_fate(link.address) for _ in range(40)]

    assert fates(11) == fates(11) != fates(12)
    assert set(fates(11)) == {"whole", "reset", "cut short"}


def _fate(address: str) -> str:
    """What becomes of one request on a connection of its own."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", "/v1/sys/health")
        with connection.getresponse() as response:
            response.read()
        return "whole"
    except http.client.IncompleteRead:
        return "cut short"
    except ConnectionError:
        return "reset"
    finally:
        connection.close()
