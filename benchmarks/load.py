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
    """Reads slower than ten times the median: quiet, and while another thread refreshes and rotates, in turns.

    The machine itself holds up thousands of reads a second; so the difference is told with its standard error.
    """
    more: list[float] = []
    quiet = refreshes = 0
    with tempfile.TemporaryDirectory() as name, opened(Path(name), "off") as manager:
        for _ in range(rounds):
            none, _ = _slow(manager, reads, 0.0)
            slow, times = _slow(manager, reads, 0.002)
            quiet += none
            refreshes += times
            more.append(slow - none)
    each = sum(more) / refreshes
    error = statistics.stdev(more) * rounds**0.5 / refreshes
    return Figure(
        "reads slower than 10 × the median because of a refresh or rotation",
        "none",
        f"{each:.2f} ± {error:.2f} a refresh, of {refreshes} ({quiet / rounds / reads:.2%} of reads are when quiet)",
        each < 0.01,
        "no read waits for a lock or a call; but the refreshing thread needs the interpreter's lock for its own Python, "
        "and a reader waits that long each time",
    )


def _slow(manager: SecretsManager, reads: int, pause: float) -> tuple[int, int]:
    """How many of *reads* were slow, and how often another thread refreshed meanwhile, *pause* seconds apart (0: never)."""
    over = threading.Event()
    refreshes = 0

    def refresh() -> None:
        nonlocal refreshes
        while not over.wait(pause):  # each is a fetch, a publication, and for the lease a rotation
            manager.get_secret(STATIC, fresh=True)
            manager.get_secret(DYNAMIC, fresh=True)
            refreshes += 2

    thread = threading.Thread(target=refresh, daemon=True)
    if pause:
        thread.start()
    took = array("d")
    for _ in range(reads):
        before = time.perf_counter()
        manager.get_secret(STATIC)
        took.append(time.perf_counter() - before)
    over.set()
    if pause:
        thread.join()
    limit = 10 * statistics.median(took)
    return sum(each > limit for each in took), refreshes


def _threads(number: int, run: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
