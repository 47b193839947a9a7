"""Fixtures that more than one folder of tests uses: the embedded servers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from vault_middleware.devstack import DevStack

# An example's time says more about the machine than about the code.
hypothesis.settings.register_profile("machines are noisy", deadline=None)
hypothesis.settings.load_profile("machines are noisy")


@pytest.fixture(scope="session")
def stack() -> Iterator[DevStack]:
    """The servers in the "namespace" deployment, shared by all tests; healed after each that used them."""
    with DevStack(lease_ttl=10, lease_max_ttl=30, token_ttl=60, token_max_ttl=300) as started:
        yield started


@pytest.fixture(autouse=True)
def _find_and_leave_the_stack_healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    used: DevStack | None = request.getfixturevalue("stack") if "stack" in request.fixturenames else None
    if used is not None:
        used.revoke_all_leases()  # of other tests: a manager that was closed in an outage leaves its own to their TTL
    yield
    if used is not None:
        used.heal()


@pytest.fixture
def make_stack() -> Iterator[Callable[..., DevStack]]:
    """Start a stack of one's own, with `DevStack`'s parameters; stopped at the test's end."""
    with contextlib.ExitStack() as stacks:
        yield lambda **parameters: stacks.enter_context(DevStack(**parameters))
