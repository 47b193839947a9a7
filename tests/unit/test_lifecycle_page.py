"""docs/lifecycle.md is true to the tests: every transition of a diagram has its row, every row a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "lifecycle.md"

FILES = {name: f"test_life_of_a_{name}.py" for name in ("lease", "token")} | {
    "static": "test_life_of_a_static_secret.py"
}

if not PAGE.parent.exists():  # the tests of an installed wheel have no docs beside them
    pytest.skip("no docs here", allow_module_level=True)

TEXT = PAGE.read_text()


def test_every_transition_of_a_diagram_has_its_row() -> None:
    drawn: set[str] = set()
    for diagram in re.findall(r"```mermaid\n(.*?)```", TEXT, re.DOTALL):
        drawn |= set(re.findall(r"\b[A-Z]\d+\b", diagram))
    rows = re.findall(r"^\| ([A-Z]\d+) \|", TEXT, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert drawn <= set(rows)


def test_every_row_names_tests_that_are_there() -> None:
    rows = re.findall(r"^\| [A-Z]\d+ \|.*$", TEXT, re.MULTILINE)
    assert rows
    for row in rows:
        named = re.findall(r"`(\w+)::(\w+)`", row)
        assert named, row
        for file, test in named:
            source = (HERE / FILES.get(file, f"test_{file}.py")).read_text()
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), test
