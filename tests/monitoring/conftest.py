"""Everything in this folder needs Prometheus' own programs, and is marked so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

#: Set by ``make monitoring``, which installs them: then that they are missing is a failure, and the long tests run.
REQUIRED = "MONITORING"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "monitoring: needs promtool and prometheus")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.monitoring)


@pytest.fixture(scope="session")
def _at_length() -> None:
    if not os.environ.get(REQUIRED):
        pytest.skip("takes half a minute; `make monitoring` runs it")


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    missing = [program for program in ("promtool", "prometheus") if shutil.which(program) is None]
    if missing and os.environ.get(REQUIRED):
        pytest.fail(f"{' and '.join(missing)} cannot be found; install Debian's package prometheus")
    if missing:
        pytest.skip(f"{' and '.join(missing)} cannot be found; `make monitoring` installs them and runs these tests")
