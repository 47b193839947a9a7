"""The alert rules under promtool, and what they say to whoever is called."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "monitoring"
NAMES = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text())


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(NAMES)} rules found" in done.stdout


def test_promtools_own_tests_of_the_rules_pass() -> None:
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("_at_length")
@pytest.mark.parametrize("name", NAMES)
def test_promtools_own_tests_fail_without_the_rule(name: str, tmp_path: Path) -> None:
    text = (FOLDER / "alerts.yml").read_text()
    without = re.sub(rf"      - alert: {name}\n(?:(?!      - alert:).*\n?)*", "", text)
    assert without.count("- alert:") == len(NAMES) - 1
    (tmp_path / "alerts.yml").write_text(without)
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    assert promtool("test", "rules", "alerts_test.yml", folder=tmp_path).returncode != 0


def test_each_alert_leads_to_a_passage_of_the_operations_guide() -> None:
    rules = (FOLDER / "alerts.yml").read_text()
    guide = (ROOT / "docs" / "operations.md").read_text()
    for name in NAMES:
        assert f"runbook: docs/operations.md#{name.lower()}\n" in rules
        assert re.search(rf"^#+ {name}$", guide, re.MULTILINE), f"docs/operations.md has no heading {name}"
