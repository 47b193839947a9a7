"""``python -m benchmarks``: everything beside its peers in one run; the table, and with ``--write`` the page and the chart."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from . import instructions
from .footprint import imports, memory
from .load import beside_a_refresh, closed_loop, open_loop
from .measure import Figure
from .reads import flatness, parts, reads
from .report import chart, page, table
from .requests import in_process, over_uvicorn
from .servers import servers

DOCS = Path(__file__).parent.parent / "docs"


def main() -> int:
    """Run it all; 0 whatever the figures are, as time alone proves nothing on a busy machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="write docs/performance.md and docs/images/performance.png"
    )
    parser.add_argument("--skip", action="append", default=[], choices=("servers", "uvicorn", "instructions"))
    options = parser.parse_args()
    logging.getLogger("vault_middleware").setLevel(logging.CRITICAL)
    load = [os.getloadavg()[0]]
    sections: dict[str, list[Figure]] = {}

    def add(title: str, *parts: Callable[[], list[Figure]]) -> None:
        figures = [figure for part in parts for figure in part()]
        sections[title] = figures
        load.append(os.getloadavg()[0])
        print(table(title, figures), flush=True)

    in_reads, costs_ = reads()
    add("One cached read", lambda: in_reads, lambda: [flatness()])
    add("What a first read is made of", parts)
    waits: dict[str, float] = {}
    if "servers" not in options.skip:
        beside, waits = servers()
        add("Beside what asks a server", lambda: beside)
    add("Many threads", open_loop, closed_loop, lambda: [beside_a_refresh()])
    add("One request", lambda: in_process()[0], *(() if "uvicorn" in options.skip else (over_uvicorn,)))
    add("To be there at all", imports, memory)
    counted: dict[str, float] | str = instructions.missing()
    if "instructions" in options.skip:
        counted = "skipped"
    elif not counted:
        counted = instructions.counted()
        for name, count in counted.items():
            print(f"    {name:32}{count:10,.0f} instructions, {count / counted['floor']:.1f} of the floor")
    if isinstance(counted, str):
        print(f"instructions not counted: {counted}")
    if options.write:
        busy = f"load average {min(load):.1f} to {max(load):.1f} during the run"
        (DOCS / "performance.md").write_text(page(sections, counted, busy), encoding="utf-8")
        chart(DOCS / "images" / "performance.png", costs_, waits)
    missed = [figure.what for figures in sections.values() for figure in figures if figure.met is False]
    print(f"{len(missed)} goals not met" + "".join(f"\n  ✗ {what}" for what in missed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
