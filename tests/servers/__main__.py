"""Run the matrix and print a line for each cell: ``python -m tests.servers [part of a cell's name …]``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .cells import CELLS
from .run import make_stack, run


def main(parts: list[str]) -> int:
    cells = [cell for cell in CELLS if not parts or any(part.lower() in str(cell).lower() for part in parts)]
    failed = 0
    with make_stack() as stack:
        for cell in cells:
            with tempfile.TemporaryDirectory() as folder:
                outcome = run(cell, stack, Path(folder))
            print(outcome, flush=True)
            if outcome.problems:
                failed += 1
                print(outcome.log[-1500:], flush=True)
    print(f"{len(cells) - failed} of {len(cells)} cells hold")
    return 1 if failed or not cells else 0


sys.exit(main(sys.argv[1:]))
