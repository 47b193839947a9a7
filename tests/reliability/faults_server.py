"""Faults of the server: silent, killed, sealed, a leader that dies, a bad network, and a stop in the middle of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tests.integration.support import DYNAMIC, STATIC, eventually
from vault_middleware import SecretsManager
from vault_middleware.devstack import Cluster, DevStack
from vault_middleware.errors import SecretNotFound, SecretUnavailable, VaultMiddlewareError

from .load import Load, Report, misses, watched
from .network import Balancer, Chaos
from .table import AT_ONCE, RECOVERY, fault, settle, wait, works

#: What a gateway on such a network fetches before it serves.
PREFETCH = f"{STATIC},shared/jwt,{DYNAMIC}"


def _outage(
    report: Report,
    manager: SecretsManager,
    load: Load,
    down: Callable[[], object],
    up: Callable[[], object],
    seconds: float,
) -> None:
    """Take the server away for *seconds*; cached reads go on, uncached ones fail at once, and all works again soon."""
    down()
    works(manager)  # the load has reads that miss, too
    load.timed_from = time.monotonic()
    end = time.monotonic() + seconds
    asked = 0
    while time.monotonic() < end:
        before = time.monotonic()
        try:
            manager.get_secret(f"api-gateway/never-read-{asked}")
            report.problems.append("an uncached secret came from a server that is down")
        except SecretUnavailable:
            asked += 1
        took = time.monotonic() - before
        report.require(took < AT_ONCE, f"an uncached read waited {took:.2f} s for the dead server")
        wait(0.25)
    load.timed_from = float("inf")
    up()
    since = time.monotonic()
    eventually(lambda: works(manager), "recovery", 30)
    took = time.monotonic() - since
    report.notes.append(f"works again {took:.1f} s after the server; {asked} uncached reads refused at once meanwhile")
    report.require(took <= RECOVERY, f"it took {took:.1f} s to work again")
    report.require(report.slowest < AT_ONCE, f"a cached read took {report.slowest:.2f} s while the server was down")


def _with_outage(
    name: str, done: str, seconds: float, down: Callable[[DevStack], object], up: Callable[[DevStack], object]
) -> Report:
    report = Report(name, f"{done} for {seconds:.0f} s; static TTL 2 s, lease 60 s")
    with DevStack(lease_ttl=60, lease_max_ttl=300, token_ttl=300, token_max_ttl=600) as stack:
        with watched(report, stack, VAULT_CACHE_TTL="2s") as manager, Load(manager, stack, report) as load:
            wait(1.0)
            _outage(report, manager, load, lambda: down(stack), lambda: up(stack), seconds)
            wait(2.0)
    report.require(report.events["server_down"] == 1, f"{report.events['server_down']} outages were noticed, not one")
    settle(report)
    return report


@fault
def server_stopped(short: bool) -> Report:
    return _with_outage(
        "OpenBao silent",
        "SIGSTOP",
        5 if short else 20,
        lambda stack: stack.bao.pause(),
        lambda stack: stack.bao.resume(),
    )


@fault
def server_killed(short: bool) -> Report:
    return _with_outage(
        "OpenBao killed and restarted",
        "SIGKILL, the same storage again",
        4 if short else 20,
        lambda stack: stack.bao.kill(),
        lambda stack: stack.bao.restart(),
    )


@fault
def server_sealed(short: bool) -> Report:
    return _with_outage(
        "OpenBao sealed", "sealed", 4 if short else 20, lambda stack: stack.bao.seal(), lambda stack: stack.bao.unseal()
    )


@fault
def leader_killed_twice(short: bool) -> Report:
    seconds = 4 if short else 15
    report = Report(
        "the leader of a cluster killed, twice", "three Raft nodes behind one address; static TTL 2 s, lease 60 s"
    )
    cluster = Cluster()
    with DevStack(bao=cluster, lease_ttl=60, lease_max_ttl=300, token_ttl=300, token_max_ttl=600) as stack:
        with (
            Balancer(cluster.addresses) as balancer,
            watched(report, stack, VAULT_ADDR=balancer.address, VAULT_CACHE_TTL="2s") as manager,
            Load(manager, stack, report) as load,
        ):
            for _ in range(2):
                wait(1.0)
                old = cluster.leader()
                old.kill()
                works(manager)  # within the first second a read may still find out
                load.timed_from = time.monotonic()
                _no_read_waits(report, manager, seconds)
                cluster.leader(other_than=old)
                since = time.monotonic()
                eventually(lambda: works(manager), "recovery", 30)
                took = time.monotonic() - since
                load.timed_from = float("inf")
                report.notes.append(f"works again {took:.1f} s after there is a leader")
                report.require(took <= RECOVERY, f"it took {took:.1f} s to work again")
                cluster.restart(old)
    report.require(report.slowest < AT_ONCE, f"a cached read took {report.slowest:.2f} s without a leader")
    settle(report)
    return report


def _no_read_waits(report: Report, manager: SecretsManager, seconds: float) -> None:
    """Read what is not cached for *seconds*: it is refused at once, or answered where there is a leader again."""
    end = time.monotonic() + seconds
    asked = 0
    while time.monotonic() < end:
        before = time.monotonic()
        try:
            manager.get_secret(f"api-gateway/never-read-{before}")
        except SecretUnavailable:
            took = time.monotonic() - before
            report.require(took < 1.5, f"an uncached read waited {took:.2f} s for a dead leader")
        except SecretNotFound:
            return
        asked += 1
        wait(0.25)


@fault
def bad_network(short: bool) -> Report:
    seconds = 20 if short else 120
    report = Report(
        "a bad network", f"300 ms of latency, 5 % resets, 1 % truncated bodies, TTLs of 30 s, for {seconds} s, seed 1"
    )
    with DevStack(lease_ttl=30, lease_max_ttl=90, token_ttl=30, token_max_ttl=90) as stack:
        with (
            Chaos(stack.bao.address, seed=1) as chaos,
            watched(
                report,
                stack,
                VAULT_ADDR=chaos.address,
                VAULT_CACHE_TTL="8s" if short else "30s",
                VAULT_PREFETCH=PREFETCH,
            ) as manager,
            Load(manager, stack, report),
        ):
            warm = misses(report)
            wait(seconds)
            report.misses = misses(report) - warm
            report.notes.append(f"the network did: {chaos.counts}")
            chaos.calm = True
    settle(report)
    return report


@fault
def stop_while_a_call_hangs(short: bool) -> Report:
    del short
    report = Report("stop while a call hangs", "OpenBao stopped (SIGSTOP) in the middle of a fetch, then close()")
    with DevStack() as stack:
        with watched(report, stack, VAULT_SHUTDOWN_TIMEOUT="3s", VAULT_CLIENT_TIMEOUT="30s") as manager:
            with Load(manager, stack, report):
                wait(0.3)
            stack.bao.pause()
            hanging = threading.Thread(target=_swallow, args=(manager,), daemon=True)
            hanging.start()
            wait(0.1)
            before = time.monotonic()
            manager.close()
            took = time.monotonic() - before
            stack.bao.resume()
        hanging.join(40)
    report.notes.append(f"close() took {took:.1f} s of the 3 s it may take")
    report.require(took < 3.5, f"close() took {took:.1f} s")
    report.leases_left = None  # the server did not answer: they end with their TTL
    settle(report)
    return report


def _swallow(manager: SecretsManager) -> None:
    try:
        manager.get_secret("api-gateway/other")
    except VaultMiddlewareError:
        return
