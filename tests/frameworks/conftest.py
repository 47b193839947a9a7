"""A manager over a fake Vault, for every framework."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeVault, manager_over
from vault_middleware import SecretsManager

from .leaking import Leaking


@pytest.fixture
def vault() -> FakeVault:
    return FakeVault()


@pytest.fixture
def manager(vault: FakeVault) -> Iterator[SecretsManager]:
    with manager_over(vault) as manager:
        yield manager


@pytest.fixture
def leaking(vault: FakeVault, tmp_path: Path) -> Iterator[Leaking]:
    with manager_over(vault, audit=tmp_path / "audit.jsonl") as manager:
        yield Leaking(manager.start(), tmp_path / "audit.jsonl")
