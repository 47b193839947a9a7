"""Everything in this folder runs against the embedded servers, and is marked so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vault_middleware.devstack import DevStack
from vault_middleware.devstack.layout import Deployment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def deployments() -> Iterator[Callable[[Deployment], DevStack]]:
    """A stack with the defaults for each deployment, started when first wanted; who uses one heals it."""
    started: dict[Deployment, DevStack] = {}
    with contextlib.ExitStack() as stacks:

        def of(deployment: Deployment) -> DevStack:
            if deployment not in started:
                started[deployment] = stacks.enter_context(DevStack(deployment=deployment))
            started[deployment].revoke_all_leases()  # of other tests, that is
            return started[deployment]

        yield of
