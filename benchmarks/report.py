"""The table and the chart of one run, for the terminal and for the documentation."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from .measure import Figure

__all__ = ["chart", "page", "table"]

_MARKS = {True: "✓", False: "✗", None: ""}


def table(title: str, figures: list[Figure]) -> str:
    """For the terminal."""
    width = max(len(figure.what) for figure in figures)
    lines = [title]
    for figure in figures:
        mark = _MARKS[figure.met] or " "
        least = f"  (bare: {figure.least})" if figure.least else ""
        lines.append(f"  {mark} {figure.what:{width}}  {figure.goal:24}  {figure.value}{least}")
    return "\n".join(lines)


def page(sections: dict[str, list[Figure]], instructions: dict[str, float] | str, load: str) -> str:
    """The page for the documentation."""
    text = [_HEAD.format(python=platform.python_version(), machine=platform.machine(), load=load)]
    for title, figures in sections.items():
        bare = any(figure.least for figure in figures)
        text += [
            f"## {title}\n",
            f"| what | goal | measured | |{' the bare work |' * bare}\n|---|---|---|---|{'---|' * bare}",
        ]
        for figure in figures:
            least = f" {figure.least} |" if bare else ""
            text.append(f"| {figure.what} | {figure.goal} | {figure.value} | {_MARKS[figure.met]} |{least}")
        text.append("")
    text.append("## What bounds it\n")
    for figures in sections.values():
        text += [f"- **{figure.what}** – {figure.bound}." for figure in figures if figure.met is False]
    text.append(_REASONS)
    text.append("## Instructions\n\nCounted by callgrind, so that a busy machine changes nothing; user space only.\n")
    if isinstance(instructions, str):
        text.append(f"Not counted in this run: {instructions}.")
    else:
        floor = instructions["floor"]
        text.append("| what | instructions | times the floor |\n|---|---|---|")
        text += [f"| {name} | {count:,.0f} | {count / floor:.1f} |" for name, count in instructions.items()]
    return "\n".join(text) + "\n"


_HEAD = """\
# Performance

Written by `make bench`, from one run: everything in a block is measured side by side, in turns, and shown as medians (what
asks a server: as the lowest tenth). Ratios carry over to another machine, times do not. Python {python} on {machine}, two
cores; {load}.

The unit is the least that a read with a time to live can cost: a look-up in a dictionary and a look at the clock, without a
lock, a count, or an audit line. CPU time is that of the reading thread unless it says otherwise.

![CPU of a read beside its peers](images/performance.png)
"""

_REASONS = """
**The bare work** is what the contract asks of a read that hits, written as one function (`benchmarks/bare.py`): the value
checked against the clock, a lease noticed, the read counted without a loss whatever thread it is on, the value pinned for all
threads of the request, its end noticed, who asks kept apart from the request, a bounded queue whose writer is roused, and a
line with all its fields, each bounded and escaped, strictly before the value is handed over. It has no layers, no errors, no
fetch, no rotation, no allow-lists and no scopes: it gives up where they begin. Where even that is past a goal, the goal is not
to be had on this machine and Python without leaving out something that is promised. What ours takes beyond it are the rooms
of the package: a first read passes the accessor, the identity, the gate and the queue or the line, each a function of its own.

The parts of a first read are measured one by one, again and again: in a request they are found less warm, and what waits in
the queue is not there for the next request to use again, so that together they take more than their sum.
"""


def chart(path: Path, reads: dict[str, float], waits: dict[str, float]) -> bool:
    """Draw CPU a read, and what a caller waits, beside the peers; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 (an extra)

        mpl.use("Agg")
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError:
        print("no chart: matplotlib is not installed", file=sys.stderr)
        return False
    ours, theirs, floor = "#2a6f97", "#c9883c", "#8a8a8a"
    bars: list[tuple[str, float, str]] = [
        ("lock-free TTL read (the floor)", reads["floor"], floor),
        ("repeat read in a request", reads["repeat"], ours),
        ("first read, audit buffered", reads["first, buffered"], ours),
        ("first read, audit strict to a file", reads["first, strict"], ours),
        ("one os.write of a line, by itself", reads["os.write"], floor),
        ("aws-secretsmanager-caching (no audit)", reads["aws cache"], theirs),
        ("cachetools, lock, counters, JSON logging", reads["hand-written"], theirs),
    ]
    if waits:
        bars += [
            ("OpenBao Proxy, unix socket", waits["proxy, unix socket"], theirs),
            ("OpenBao Proxy, loopback", waits["proxy, TCP"], theirs),
            ("hvac a request", waits["hvac"], theirs),
        ]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(bars) + 1.3))
    names = [name for name, _, _ in bars]
    values = [value for _, value, _ in bars]
    drawn = axes.barh(names, values, color=[colour for _, _, colour in bars], height=0.68)
    labels = [
        f" {_time(value)}  ({value / reads['floor']:,.1f} ×)"
        if value < reads["floor"] * 100
        else f" {_time(value)}  ({value / reads['floor']:,.0f} ×)"
        for value in values
    ]
    axes.bar_label(drawn, labels, fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(values[0] / 2, max(values) * 60)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("nanoseconds a read, logarithmic; in brackets: times the floor")
    axes.set_title("One read of a cached secret: ours (blue) and its peers (orange)", loc="left", fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _time(nanoseconds: float) -> str:
    if nanoseconds < 1000:
        return f"{nanoseconds:.0f} ns"
    return f"{nanoseconds / 1000:.1f} µs" if nanoseconds < 1e6 else f"{nanoseconds / 1e6:.1f} ms"
