"""Many threads: an open loop at 20,000 reads a second, a closed loop of 32 threads, and reads beside a refresh."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from tests.fakes import DYNAMIC, STATIC
from vault_middleware import SecretsManager

from .bare import Bare
from .measure import Figure, quantile
from .peers import HandWritten
from .reads import opened

__all__ = ["beside_a_refresh", "closed_loop", "open_loop"]


def open_loop(threads: int = 8, rate: int = 20_000, seconds: float = 3.0) -> list[Figure]:
    """CPU and slowest percent of strict reads that come at a fixed rate, whether the last one is done or not."""
    with tempfile.TemporaryDirectory() as name, opened(Path(name), "strict") as manager:
        peer = HandWritten(STATIC, Path(name) / "peer.jsonl")
        works: dict[str, Callable[[], object]] = {
            "nothing": lambda: None,
            "ours": lambda: manager.get_secret(STATIC),
            "by hand": lambda: peer.get_secret(STATIC),
        }
        rounds = [{key: _paced(work, threads, rate, seconds / 3) for key, work in works.items()} for _ in range(3)]
        peer.close()
    cpu = {key: statistics.median(each[key][0] for each in rounds) for key in works}
    slow = {key: statistics.median(each[key][1] for each in rounds) for key in works}
    mine, theirs = (max(cpu[key] - cpu["nothing"], 0.0) for key in ("ours", "by hand"))
    return [
        Figure(
            f"{rate:,} strict reads/s from {threads} threads: CPU",
            "≤ 1/4 of by hand",
            f"{mine / theirs:.2f} ({mine:.1%} of a core; {theirs:.1%})",
            mine * 4 <= theirs,
            "less what the same loop takes that reads nothing; os.write is in both",
        ),
        Figure(
            "the same: slowest percent (p99)",
            "≤ 1/10 of by hand",
            f"{slow['ours'] / slow['by hand']:.2f} ({slow['ours'] * 1e6:.0f} µs; {slow['by hand'] * 1e6:.0f} µs)",
            slow["ours"] * 10 <= slow["by hand"],
            "one os.write, and the wait for the interpreter's lock after it, which each write lets go",
        ),
    ]


def _paced(work: Callable[[], object], threads: int, rate: int, seconds: float) -> tuple[float, float]:
    """Cores in use meanwhile, and the p99 of one call in seconds. A thread wakes each 5 ms and makes up what is due."""
    each = rate // threads
    times = [array("d") for _ in range(threads)]
    began = time.monotonic() + 0.02

    def run(number: int) -> None:
        found, done, pause = times[number], 0, threading.Event()
        while (passed := time.monotonic() - began) < seconds:
            for _ in range(int(max(passed, 0) * each) - done):
                before = time.perf_counter()
                work()
                found.append(time.perf_counter() - before)
                done += 1
            pause.wait(0.005)

    before = time.process_time()
    _threads(threads, run)
    return (time.process_time() - before) / seconds, quantile([time for found in times for time in found], 0.99)


def closed_loop(threads: int = 32, seconds: float = 1.0) -> list[Figure]:
    """Throughput of many threads that do nothing but read, of one thread's; and whether a count or a line was lost."""
    figures = []
    for mode in ("strict", "buffered"):
        with tempfile.TemporaryDirectory() as name, opened(Path(name), mode) as manager:
            shares, done = [], 2  # the two reads that filled the cache
            for _ in range(3):
                one, reads = _flat_out(manager, 1, seconds)
                many, more = _flat_out(manager, threads, seconds)
                shares.append(many / one)
                done += reads + more
            manager.close()
            counted = _counted(manager)
            with (Path(name) / f"{mode}.jsonl").open("rb") as file:
                lines = sum(b'"secret_access"' in line for line in file)
        share = statistics.median(shares)
        least = f"{_bare_share(threads, seconds):.2f}" if mode == "strict" else ""
        figures.append(
            Figure(
                f"{threads} threads flat out, {mode}: throughput of one thread's; lost counts; lost lines",
                "≥ 0.8; 0; 0",
                f"{share:.2f}; {done - counted}; {done - lines} (of {done:,})",
                share >= 0.8 and counted == done and lines == done,
                "the interpreter's lock, which each os.write gives to the next thread"
                if mode == "strict"
                else "the interpreter's lock; a full queue makes readers write",
                least,
            )
        )
    return figures


def _bare_share(threads: int, seconds: float) -> float:
    """The throughput of many threads that do the bare work, of one thread's."""
    with tempfile.TemporaryDirectory() as name:
        file = os.open(Path(name) / "bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        bare = Bare(STATIC, file, strict=True)
        shares = []
        for _ in range(3):
            one, many = (_flat_out(bare, number, seconds)[0] for number in (1, threads))
            shares.append(many / one)
        os.close(file)
    return statistics.median(shares)


def _counted(manager: SecretsManager) -> int:
    (requests,) = manager._metrics._counts.requests.collect()
    return int(requests.samples[0].value)


def _flat_out(manager: SecretsManager | Bare, threads: int, seconds: float) -> tuple[float, int]:
    done = [0] * threads
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        count = 0
        while time.monotonic() < end:
            for _ in range(100):
                manager.get_secret(STATIC)
            count += 100
        done[number] = count

    began = time.monotonic()
    _threads(threads, run)
    return sum(done) / (time.monotonic() - began), sum(done)


def beside_a_refresh(rounds: int = 40, reads: int = 100_000) -> Figure:
    """Reads slower than ten times the median because another thread refreshes and rotates, beside one that does the bare work.

    The machine itself holds up thousands of reads a second. So only those count that took their time without the processor,
    for they waited for another thread; and of these, what there is when nobody refreshes is taken off, in turns.
    """
    with tempfile.TemporaryDirectory() as name, opened(Path(name), "off") as manager:

        def refresh() -> None:  # each is a fetch, a publication, and for the lease a rotation
            manager.get_secret(STATIC, fresh=True)
            manager.get_secret(DYNAMIC, fresh=True)

        bare = Bare(STATIC, -1, strict=False)
        works = {"ours": refresh, "bare": lambda: (bare.refresh(STATIC), bare.refresh(STATIC))}
        more: dict[str, list[float]] = {who: [] for who in works}
        done = dict.fromkeys(works, 0)
        quiet = 0
        for _ in range(rounds):
            none, _ = _held_up(manager, reads, None)
            quiet += none
            for who, work in works.items():
                slow, times = _held_up(manager, reads, work)
                more[who].append(slow - none)
                done[who] += 2 * times
    each = {who: sum(more[who]) / done[who] for who in works}
    error = {who: statistics.stdev(more[who]) * rounds**0.5 / done[who] for who in works}
    return Figure(
        "reads slower than 10 × the median because of a refresh or rotation",
        "none",
        f"{each['ours']:.2f} ± {error['ours']:.2f} a refresh, of {done['ours']} "
        f"({quiet} of {rounds * reads:,} reads when quiet)",
        each["ours"] + 2 * error["ours"] < 0.01,
        "no read waits for a lock or a call; but the refreshing thread needs the interpreter's lock for its own Python, and a "
        "reader waits that long: so it does where that thread only reads an answer's JSON and puts the value into a dict "
        "(the last column)",
        f"{each['bare']:.2f} ± {error['bare']:.2f}",
    )


def _held_up(manager: SecretsManager, reads: int, work: Callable[[], object] | None) -> tuple[int, int]:
    """How many of *reads* were slow and waited most of that time; how often another thread did its *work*, each 2 ms."""
    over = threading.Event()
    done = 0

    def again_and_again() -> None:
        nonlocal done
        while work is not None and not over.wait(0.002):
            work()
            done += 1

    thread = threading.Thread(target=again_and_again, daemon=True)
    thread.start()
    took, waited = array("d"), array("d")
    for _ in range(reads):
        cpu, began = time.thread_time(), time.perf_counter()
        manager.get_secret(STATIC)
        ended = time.perf_counter()
        took.append(ended - began)
        waited.append(ended - began - (time.thread_time() - cpu))
    over.set()
    thread.join()
    limit = 10 * statistics.median(took)
    return sum(each > limit and wait > each / 2 for each, wait in zip(took, waited, strict=True)), done


def _threads(number: int, run: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
