"""Pools on a real PostgreSQL through rotations of their credential; `python -m tests.pools` is the long form."""

from __future__ import annotations

import pytest

from tests.waiting import in_threads
from vault_middleware.devstack import DevStack

from .kinds import KINDS
from .load import add_roles, put_under_load

pytestmark = pytest.mark.integration


def test_every_pool_under_load_goes_through_rotations_without_a_failed_query_and_leaves_no_old_user(
    stack: DevStack,
) -> None:
    """All kinds at once, for most of the time is spent in waiting for leases to come of age."""
    kinds = list(KINDS)
    add_roles(stack)

    def load(index: int) -> object:
        kind = kinds[index]
        return put_under_load(kind, stack, threads=16 if kind == "sqlalchemy" else 4, rotations=3)

    reports = in_threads(len(kinds), load)
    assert not any(report.problems for report in reports), "\n".join(map(str, reports))  # type: ignore[attr-defined]
