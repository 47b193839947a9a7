"""A manager over a fake Vault, for every framework."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import FakeVault, manager_over
from vault_middleware import SecretsManager


@pytest.fixture
def vault() -> FakeVault:
    return FakeVault()


@pytest.fixture
def manager(vault: FakeVault) -> Iterator[SecretsManager]:
    with manager_over(vault) as manager:
        yield manager
