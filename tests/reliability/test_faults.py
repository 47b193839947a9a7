"""The fault table in its short form; ``make reliability`` runs it at full length."""

from __future__ import annotations

import pytest

from . import faults_credentials, faults_processes, faults_server  # noqa: F401 (they enter the table)
from .table import FAULTS


@pytest.mark.integration
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_fails_that_need_not(name: str) -> None:
    report = FAULTS[name](True)
    assert report.problems == [], str(report)
