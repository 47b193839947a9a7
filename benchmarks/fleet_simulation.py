"""``python -m benchmarks.fleet_simulation``: 10,000 pods, started at one instant, and an outage of the server.

Every pod is the real engine with all its timing, on a clock that is stepped, before a server of a few lines; so ten
minutes of ten thousand pods take some minutes, and nothing sleeps. The settings are those of ``benchmarks.fleet``. The
server has no limits here: what is counted is what would arrive at it. Writes the plot that the documentation shows
(matplotlib, the ``bench`` extra).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.engine_fakes import Holder, World
from vault_middleware.errors import VaultMiddlewareError, VaultUnavailable

STATICS = ("kv/api-key", "kv/second-key", "shared/jwt")
DYNAMIC = "database/creds/app"

LEASE, LEASE_MAX, TOKEN, TOKEN_MAX, STATIC = 60.0, 180.0, 120.0, 240.0, 30.0

#: A pod reads everything so often, in seconds.
EVERY = 5.0

KINDS = {
    "log_in": "log-ins",
    "renew_token": "token calls",
    "revoke_token": "token calls",
    "token_is_valid": "token calls",
    "renew_lease": "leases",
    "revoke_lease": "leases",
    "probe": "probes",
}
ORDER = ("static reads", "leases", "token calls", "log-ins", "probes")

#: Seconds in a bin of the figures for the steady state.
BIN = 10


@dataclass(frozen=True)
class Plan:
    """When what happens, in seconds from the start of all pods."""

    seconds: int
    down: int
    up: int


@dataclass
class Outcome:
    """What some pods did: calls by (second, kind), those to the dead server aside, and how their reads went."""

    calls: Counter[tuple[int, str]]
    in_vain: int = 0
    reads: int = 0
    #: Reads that failed, by second.
    failed: Counter[int] = None  # type: ignore[assignment]

    def add(self, other: Outcome) -> None:
        """Put *other* to it."""
        self.calls.update(other.calls)
        self.failed.update(other.failed)
        self.in_vain += other.in_vain
        self.reads += other.reads


def one_pod(plan: Plan, seed: int) -> Outcome:
    """The life of one pod."""
    world = World(uniform=seed, pulse=False, cache_ttl=STATIC)
    client = world.client
    client.lease_ttl, client.lease_max_ttl = LEASE, LEASE_MAX
    client.token_ttl, client.token_max_ttl = TOKEN, TOKEN_MAX
    client.data = {path: {"value": "x"} for path in STATICS}
    start, reads = world.now, 0
    failed: Counter[int] = Counter()
    phase = random.Random(-1 - seed).uniform(0.0, EVERY)
    times = [0.0, *(phase + EVERY * number for number in range(1, int(plan.seconds / EVERY)))]
    turns: list[tuple[float, Any]] = [(at, None) for at in times]
    dead = VaultUnavailable("the connection was refused; look at the server")
    turns += [(plan.down, lambda: setattr(client, "down", dead)), (plan.up, lambda: setattr(client, "down", None))]
    for at, turn in sorted(turns, key=lambda each: each[0]):
        world.run_until(start + at)
        if turn is not None:
            turn()
            continue
        reads += 1
        failed[int(at)] += not _request(world)
    world.run_until(start + plan.seconds)
    calls: Counter[tuple[int, str]] = Counter()
    in_vain = 0
    for call in client.calls:
        at = call.at - start
        if plan.down <= at < plan.up:
            in_vain += 1
        else:
            kind = "leases" if call.what.startswith("database/") else "static reads"
            calls[int(at), KINDS.get(call.name, kind)] += 1
    return Outcome(calls, in_vain, reads, failed)


def _request(world: World) -> bool:
    """One request that reads everything; whether it got all of it."""
    holder = Holder()
    try:
        for path in STATICS:
            world.read(path, holder)
        world.read(DYNAMIC, holder, dynamic=True)
    except VaultMiddlewareError:
        return False
    finally:
        holder.end()
    return True


def some_pods(plan: Plan, seeds: Iterable[int]) -> Outcome:
    """As many pods as there are *seeds*, one after the other: they do not know of each other."""
    whole = Outcome(Counter(), failed=Counter())
    for seed in seeds:
        whole.add(one_pod(plan, seed))
    return whole


def simulate(plan: Plan, pods: int) -> Outcome:
    """All of them, on all cores."""
    shares = [range(first, pods, 40) for first in range(min(40, pods))]
    whole = Outcome(Counter(), failed=Counter())
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for part in pool.imap_unordered(partial(some_pods, plan), shares):
            whole.add(part)
    return whole


def totals(calls: Counter[tuple[int, str]], seconds: int) -> list[int]:
    """Calls in each second, probes aside: these are answered without a look into the storage."""
    found = [0] * seconds
    for (second, kind), count in calls.items():
        if second < seconds and kind != "probes":
            found[second] += count
    return found


def report(plan: Plan, pods: int, outcome: Outcome) -> list[str]:
    """The figures, as lines."""
    every = totals(outcome.calls, plan.seconds)
    steady = every[BIN : plan.down]
    bins = [sum(steady[at : at + BIN]) for at in range(0, len(steady) - BIN + 1, BIN)]
    mean = sum(bins) / len(bins)
    after = every[plan.up :]
    kinds: Counter[str] = Counter()
    for (second, kind), count in outcome.calls.items():
        if plan.up <= second < plan.up + 10:
            kinds[kind] += count
    calm = next((at for at in range(len(after)) if max(after[at:]) <= 2 * mean / BIN), len(after))
    later = after[60:]
    first = max(after[:10])
    parts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    none = sum(outcome.failed.values())
    none_after = sum(count for second, count in outcome.failed.items() if second >= plan.up)
    wide = f"in bins of {BIN} s"
    lines = [
        f"{pods} pods, {plan.seconds} s, the server down from {plan.down} s to {plan.up} s; {sum(every)} calls arrive",
        f"the start: {sum(every[:BIN])} calls in {BIN} s, {sum(every[:BIN]) / pods:.1f} a pod",
        f"to the outage: mean {mean / BIN:.0f}/s, peak {max(bins) / BIN:.0f}/s {wide}: peak/mean {max(bins) / mean:.2f}",
        f"ten seconds after it: peak {first}/s in one second, {first / (mean / BIN):.1f} means; {parts}",
        f"no second has more than twice the mean from {calm} s after it on",
        f"requests that got no secret: {none} of {outcome.reads}, {none_after} of them after the outage",
        f"calls to the dead server: {outcome.in_vain / pods / (plan.up - plan.down):.2f} a pod and second",
    ]
    if later:
        lines.append(
            f"from a minute after it on: mean {sum(later) / len(later):.0f}/s, peak {max(later)}/s in one second"
        )
    return lines


def plot(plan: Plan, pods: int, outcome: Outcome, target: Path) -> None:
    """Calls a second by kind, over the whole time."""
    import matplotlib as mpl  # noqa: PLC0415 - nothing else here needs it

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    seconds = range(plan.seconds)
    series = [[outcome.calls[second, kind] for second in seconds] for kind in ORDER]
    every = totals(outcome.calls, plan.seconds)
    steady = every[BIN : plan.down]
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    axes.stackplot(seconds, series, labels=ORDER, step="post", linewidth=0)
    axes.axhline(
        sum(steady) / len(steady), color="black", linewidth=0.8, linestyle="--", label="mean before the outage"
    )
    axes.axvspan(plan.down, plan.up, color="0.85", label="the server is down")
    axes.set(xlim=(0, plan.seconds), xlabel="seconds after the start of all pods", ylabel="calls a second")
    axes.set_ylim(0, 1.1 * max(every[BIN:]))  # the first log-ins go beyond it
    axes.set_title(f"{pods:,} pods, all started at one instant")
    figure.legend(loc="outside lower center", ncols=7, fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110, metadata={"Software": None})


def main() -> int:
    """Run it; 1 where the steady fleet has a peak of more than twice the mean."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_simulation", description=__doc__)
    parser.add_argument("--pods", type=int, default=10_000, help="how many; %(default)s")
    parser.add_argument("--seconds", type=int, default=600, help="simulated; %(default)s")
    parser.add_argument("--outage", type=int, default=60, help="in the middle, in seconds; %(default)s")
    parser.add_argument("--plot", type=Path, help="where to write the plot (docs/images/fleet.png); none if not given")
    options = parser.parse_args()
    plan = Plan(options.seconds, options.seconds // 2, options.seconds // 2 + options.outage)
    outcome = simulate(plan, options.pods)
    for line in report(plan, options.pods, outcome):
        print(line)
    if options.plot is not None:
        plot(plan, options.pods, outcome, options.plot)
        print(f"plot: {options.plot}")
    steady = totals(outcome.calls, plan.seconds)[BIN : plan.down]
    bins = [sum(steady[at : at + BIN]) for at in range(0, len(steady) - BIN + 1, BIN)]
    return 1 if max(bins) > 2 * sum(bins) / len(bins) else 0


if __name__ == "__main__":
    sys.exit(main())
