"""The page on troubleshooting: a heading for each finding of the doctor, and none for anything else."""

from __future__ import annotations

import re
from pathlib import Path

from vault_middleware.config import VARIABLES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"

#: Words with hyphens in the doctor's sources that name no finding.
_OTHERS = {"log-in", "root-auth", "kv-v2"}


def codes() -> set[str]:
    """The codes that the doctor's sources have."""
    found: set[str] = set()
    for source in [
        ROOT / "vault_middleware" / "cli" / "doctor.py",
        *(ROOT / "vault_middleware" / "cli").glob("checks_*.py"),
    ]:
        found |= set(
            re.findall(r'"([a-z]+(?:-[a-z0-9]+)+|tokenreview|redirected)"', source.read_text(encoding="utf-8"))
        )
    return found - _OTHERS


def test_every_finding_has_a_heading_and_every_heading_a_finding() -> None:
    headings = re.findall(r"^### .*\(`([a-z0-9-]+)`\)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert set(headings) == codes()


def test_every_variable_that_the_page_names_exists() -> None:
    known = {name for variable in VARIABLES for name in (variable.name, variable.also)}
    assert set(re.findall(r"\bVAULT_[A-Z_]*[A-Z]\b", PAGE.read_text(encoding="utf-8"))) <= known


def test_the_page_links_to_nothing_that_is_not_there() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", PAGE.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
