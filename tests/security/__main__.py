"""``python -m tests.security [SEED]``: all of the fuzzing, 100,000 paths and 20,000 hostile answers, with a report."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["FUZZ"] = "full"

from .campaign import campaign
from .scale import ANSWERS


def _tests_fail(*arguments: str) -> bool:
    """Whether pytest, in a process of its own, found something."""
    return bool(subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode)


def main(seed: int) -> int:
    """Run everything; 1 if something does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        report = campaign(ANSWERS, Path(folder), seed=seed)
    print(report, flush=True)
    bad = bool(report.problems)
    here = Path(__file__).parent
    properties = [str(here.parent / "property" / f"test_{name}_properties.py") for name in ("path", "config", "audit")]
    # The campaign has just been; here come the paths, and what the property tests say of paths, settings and audit lines.
    bad |= _tests_fail("-q", "-p", "tests.security.profile", "--hypothesis-profile=fuzz", *properties)
    bad |= _tests_fail("-q", "--hypothesis-show-statistics", "-k", "not hostile_server", str(here))
    print("\nsomething does not hold" if bad else "\nall of it holds")
    return int(bad)


sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
