"""The random numbers of a forked child: its parent's spread of renewals and retries is not also its own."""

from __future__ import annotations

import json
import os

import pytest
from prometheus_client import CollectorRegistry

from vault_middleware.config import SecretConfig
from vault_middleware.manager import SecretsManager


def draws(manager: SecretsManager) -> list[float]:
    """The next numbers that the manager's engine spreads its times with."""
    return [manager._engine._uniform(0.0, 1.0) for _ in range(4)]


def draws_of_a_child(manager: SecretsManager) -> list[float]:
    """What :func:`draws` gives in a process that is forked just now."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writes, json.dumps(draws(manager)).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said: list[float] = json.load(pipe)
    os.waitpid(pid, 0)
    return said


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_children_and_their_parent_draw_different_numbers_after_a_fork() -> None:
    config = SecretConfig(vault_addr="http://127.0.0.1:1", audit_log="off", startup="lazy")
    manager = SecretsManager(config, registry=CollectorRegistry())
    one, two = draws_of_a_child(manager), draws_of_a_child(manager)
    every = [*one, *two, *draws(manager)]
    assert len(set(every)) == 3 * 4
