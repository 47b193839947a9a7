"""``python -m tests.pools [KIND …]``: every pool at full length, one after the other, with a plain report."""

import sys

from vault_middleware.devstack import DevStack

from .kinds import KINDS
from .load import add_roles, put_under_load

#: Rotations of each kind, where it is not 8.
ROTATIONS = {"sqlalchemy": 20}


def main(kinds: list[str]) -> int:
    """Run the named kinds, or all; 1 if one of them shows a problem."""
    bad = 0
    with DevStack(token_ttl=3600) as stack:
        add_roles(stack)
        for kind in kinds or KINDS:
            report = put_under_load(kind, stack, threads=16, rotations=ROTATIONS.get(kind, 8))
            print(report, flush=True)
            bad += bool(report.problems)
    print(f"\n{bad} with problems" if bad else "\nall of it holds")
    return 1 if bad else 0


sys.exit(main(sys.argv[1:]))
