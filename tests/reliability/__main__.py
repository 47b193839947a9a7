"""``python -m tests.reliability [NAME …]``: the fault table at full length, with a plain report."""

import sys

from . import faults_credentials, faults_processes, faults_server  # noqa: F401 (they enter the table)
from .table import FAULTS


def main(names: list[str]) -> int:
    """Run the named faults, or all; 1 if one of them shows a problem."""
    bad = 0
    for name in names or FAULTS:
        report = FAULTS[name](False)
        print(report, flush=True)
        bad += bool(report.problems)
    print(f"\n{bad} of {len(names or FAULTS)} with problems" if bad else "\nall of it holds")
    return 1 if bad else 0


sys.exit(main(sys.argv[1:]))
