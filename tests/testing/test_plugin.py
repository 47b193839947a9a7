"""The pytest plugin: light while unused, its marker known, its fixture as the nearest marker says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .test_documented import ROOT, run_pytest

pytestmark = pytest.mark.integration  # each test is a process of its own


def test_the_plugin_imports_nothing_heavy() -> None:
    script = "import sys, pytest; before = set(sys.modules); import pytest_vault_middleware; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["pytest_vault_middleware"]


def test_the_marker_nearest_to_the_test_wins_and_settings_are_passed_on(tmp_path: Path) -> None:
    Path(tmp_path, "test_markers.py").write_text(
        """
import pytest
from vault_middleware import SecretsManager

pytestmark = pytest.mark.vault_secrets({"a/b": {"value": "module"}, "a/c": {"value": "module"}}, cache_ttl=7)


@pytest.mark.vault_secrets({"a/b": {"value": "test"}})
def test_markers(vault_secrets):
    assert vault_secrets.config.cache_ttl == 7
    manager = SecretsManager()
    assert [manager.get_secret(path)["value"] for path in ("a/b", "a/c")] == ["test", "module"]


def test_one_test_does_not_see_the_others(vault_secrets):
    assert vault_secrets.get_secret("a/b")["value"] == "module"
    assert vault_secrets.vault.reads == ["a/b"]


class TestWithout:
    def test_the_fixture_alone_holds_what_the_module_says(self, vault_secrets):
        assert vault_secrets.get_secret("a/c")["value"] == "module"
"""
    )
    assert "3 passed" in run_pytest(tmp_path)
