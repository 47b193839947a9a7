"""``python -m benchmarks.leases``: 10,000 leases of 60 s in one process, kept alive by one renewer on a real server.

The leases are those of KV engines that give them (the cheapest there are, so that the server is not what is measured).
Every renewal is timed where the renewer runs it. Afterwards everything comes due at one instant, which shows what one
mount (one call in flight) and all of them sustain. The exit status is 1 where a promise is broken: a lease lost, one
renewed past its deadline, or one renewed twice in a period (two renewals closer than half its duration).
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client import CollectorRegistry

from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.engine.leases import Leased

from .leased_kv import LeasedKV

#: Threads that read the secrets for the first time; few, as what is renewed meanwhile shares the cores with them.
READERS = 2


class Watch:
    """What the renewals were like; put between the renewer and what it runs for a lease."""

    def __init__(self, manager: SecretsManager, ttl: float) -> None:
        self._leases = manager._engine.leases
        self._renewer = manager._engine.renewer
        self._tend = self._leases.tend
        self._leases.tend = self._timed
        self._ttl = ttl
        self._last: dict[str, float] = {}
        self._waited_for = 0
        self._reached = threading.Event()
        #: Seconds from when each renewal was due to when its call had ended.
        self.lateness = array("d")
        self.past_deadline = 0
        self.twice = 0

    def _timed(self, leased: Leased) -> float | None:
        due, before = leased.task._due, leased.lease
        again = self._tend(leased)
        if leased.lease is not before and not leased.ended:
            self._renewed(before.lease_id, due, time.monotonic(), before.deadline)
        return again

    def _renewed(self, lease_id: str, due: float, ended: float, deadline: float) -> None:
        self.past_deadline += ended > deadline
        self.twice += ended - self._last.get(lease_id, float("-inf")) < self._ttl / 2
        self._last[lease_id] = ended
        self.lateness.append(ended - due)
        if len(self.lateness) == self._waited_for:
            self._reached.set()

    def restart(self) -> None:
        """Count and time from here on; what came twice is counted from the start."""
        self.lateness = array("d")

    def share(self, part: float) -> float:
        """The lateness, in seconds, that this *part* of the renewals kept within."""
        ordered = sorted(self.lateness)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0

    def all_at_once(self, leases: list[Leased]) -> float:
        """Let *leases* come due at one instant; how many were renewed a second."""
        self.restart()
        self._last.clear()
        self._reached.clear()
        self._waited_for = len(leases)
        before = time.monotonic()
        for leased in leases:
            self._renewer.schedule(leased.task, before)
        if not self._reached.wait(self._ttl * 10):
            return 0.0
        return len(leases) / (time.monotonic() - before)


def resident() -> int:
    """Bytes of memory that this process has in use."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def calls(registry: CollectorRegistry, *operations: str) -> int:
    """How many calls to the server there were, of these kinds or in all."""
    return int(
        sum(
            sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if sample.name == "vault_server_request_duration_seconds_count"
            and (not operations or sample.labels["operation"] in operations)
        )
    )


def total(registry: CollectorRegistry, name: str) -> int:
    """The value of a counter without labels."""
    return int(registry.get_sample_value(name) or 0)


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> list[str]:
    """Do it all; what was promised and did not hold."""
    problems: list[str] = []
    server = LeasedKV(mounts=options.mounts, secrets=options.leases, ttl=options.ttl)
    with server.running(), tempfile.TemporaryDirectory() as folder:
        registry = CollectorRegistry()
        environ = {
            **server.environ,
            "VAULT_MAX_LEASES": str(options.leases),
            "VAULT_AUDIT_LOG": str(Path(folder, "audit.jsonl")),
        }
        manager = SecretsManager(SecretConfig.from_env(environ), registry=registry)
        watch = Watch(manager, options.ttl)
        with manager:
            manager.get_dynamic_secret(server.paths[0])
            before = resident()
            began = time.monotonic()
            with ThreadPoolExecutor(READERS) as pool:
                list(pool.map(manager.get_dynamic_secret, server.paths))
            took = time.monotonic() - began
            per_lease = (resident() - before) / len(server.paths)
            say(f"{len(server.paths)} leases of {options.ttl} s in {options.mounts} mounts, issued in {took:.1f} s")
            say(f"memory a lease: {per_lease / 1024:.2f} KiB (growth of the resident set)")
            say(f"what came due meanwhile was caught up with {_caught_up(manager):.1f} s later")
            problems += _run(manager, watch, registry, options.seconds, say)
            there = server.leases()
            if there != len(server.paths):
                problems.append(f"the server has {there} of {len(server.paths)} leases")
            say(f"resident set a lease at the end: {(resident() - before) / len(server.paths) / 1024:.2f} KiB")
            _at_once(manager, watch, options.mounts, say)
            began = time.monotonic()
        say(f"stop: {time.monotonic() - began:.1f} s, {_gone(server)}")
    return problems


def _run(
    manager: SecretsManager, watch: Watch, registry: CollectorRegistry, seconds: float, say: Callable[[str], None]
) -> list[str]:
    """The measured time itself."""
    leases = manager._engine.leases
    ids = {leased.lease.lease_id for leased in leases.live()}
    counted, made = calls(registry), calls(registry, "renew_lease")
    failed = total(registry, "vault_lease_renewal_errors_total")
    watch.restart()
    began, spent = time.monotonic(), time.process_time()
    threading.Event().wait(seconds)
    wall, spent = time.monotonic() - began, time.process_time() - spent
    renewals = len(watch.lateness)
    lost = len(ids - {leased.lease.lease_id for leased in leases.live()})
    errors = total(registry, "vault_lease_renewal_errors_total") - failed
    say(
        f"{wall:.0f} s: {renewals} renewals, {renewals / wall:.1f}/s; {lost} leases lost, {errors} failed tries, "
        f"{watch.past_deadline} renewed past the deadline, {watch.twice} twice in a period"
    )
    say(
        f"lateness (end of the call, from when it was due): p50 {watch.share(0.5) * 1000:.1f} ms, "
        f"p99 {watch.share(0.99) * 1000:.1f} ms, max {watch.share(1.0) * 1000:.0f} ms"
    )
    each = f", {spent / renewals * 1e6:.0f} µs a renewal" if renewals else ""
    say(f"CPU of the process: {spent:.1f} s, {spent / wall:.1%} of a core{each}")
    every, kept = calls(registry) - counted, calls(registry, "renew_lease") - made
    say(f"server calls: {every}, of which {kept} renewals")
    problems = {
        f"{lost} leases were lost": lost,
        f"{watch.past_deadline} leases were renewed past their deadline": watch.past_deadline,
        f"{watch.twice} renewals came twice in a period": watch.twice,
        "nothing was renewed": not renewals,
    }
    return [text for text, broken in problems.items() if broken]


def _caught_up(manager: SecretsManager) -> float:
    """Wait until no renewal that is due waits for its turn; the seconds that took."""
    workers = manager._engine.renewer._workers
    began = time.monotonic()
    while workers._waiting and time.monotonic() - began < 60:
        threading.Event().wait(0.01)
    return time.monotonic() - began


def _at_once(manager: SecretsManager, watch: Watch, mounts: int, say: Callable[[str], None]) -> None:
    live = manager._engine.leases.live()
    one = [leased for leased in live if leased.path.startswith("leased-0/")]
    say(f"all due at one instant: one mount sustains {watch.all_at_once(one):.0f} renewals/s")
    if mounts > 1:
        say(f"all due at one instant: {mounts} mounts sustain {watch.all_at_once(live):.0f} renewals/s")


def _gone(server: LeasedKV) -> str:
    """How long the server took to end what the stop revoked: the token, and with it the leases."""
    began = time.monotonic()
    while (left := server.leases()) and time.monotonic() - began < 60:
        threading.Event().wait(0.2)
    return f"{left} leases left at the server after {time.monotonic() - began:.1f} s more"


def main() -> int:
    """Run it; 1 where a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leases", description=__doc__)
    parser.add_argument("--leases", type=int, default=10_000, help="how many; %(default)s")
    parser.add_argument("--ttl", type=int, default=60, help="of each, in whole seconds; %(default)s")
    parser.add_argument("--mounts", type=int, default=4, help="over how many engines; %(default)s")
    parser.add_argument("--seconds", type=float, default=300, help="measured; %(default)s")
    problems = measure(parser.parse_args(), lambda line: print(line, flush=True))
    for problem in problems:
        print(f"✗ {problem}")
    print("a promise is broken" if problems else "✓ every lease renewed before its deadline, none twice in a period")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
