"""How the benchmarks measure, and what they say: costs side by side in one run, medians, and figures beside their goals."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from timeit import Timer

__all__ = ["Figure", "costs", "quantile"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes
    ----------
    met
        Whether the goal is reached; None where it could not be measured.
    bound
        What bounds it, or why it was not measured.
    least
        What the bare work takes (see :mod:`.bare`), where that was measured beside it.
    """

    what: str
    goal: str
    value: str
    met: bool | None
    bound: str = ""
    least: str = ""


def costs(
    works: Mapping[str, tuple[Callable[[], object], int]],
    *,
    rounds: int = 9,
    between: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """The median CPU time of one call of each of *works* on this thread, in nanoseconds.

    Each comes with how often it is called a round; the rounds of all take turns, so that whatever else the machine does
    meets all alike; *between* them something may be put in order. What a call of an empty function takes is taken off.
    """
    found: dict[str, list[float]] = {name: [] for name in ("", *works)}
    for _ in range(rounds):
        for name, (work, times) in (("", (_nothing, 100_000)), *works.items()):
            between()
            found[name].append(Timer(work, timer=time.thread_time).timeit(times) / times * 1e9)
    medians = {name: statistics.median(values) for name, values in found.items()}
    call = medians.pop("")
    return {name: value - call for name, value in medians.items()}


def quantile(values: list[float], part: float) -> float:
    """What this *part* of *values* does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def _nothing() -> None:
    """What a call costs by itself."""
