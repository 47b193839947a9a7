"""Every snippet of docs/testing.md, run by a real pytest as the reader's own files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()

FILES = dict(re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
#: Warnings are errors, but for Starlette's about the client that is installed.
OPTIONS = ["-q", "--strict-markers", "-p", "pytest_vault_middleware", "-W", "error", "-W", "ignore:Using `httpx` with"]

FRAMEWORKS = ["starlette", "fastapi", "flask", "django", "wsgi"]


def run_pytest(folder: Path, *arguments: str) -> str:
    """pytest as the reader runs it, with warnings as errors; its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VAULT_", "BAO_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_no_snippet_that_is_passed_over() -> None:
    assert len(FILES) == PAGE.count("```python") == PAGE.count("<!-- file")


@pytest.mark.integration
def test_every_snippet_of_the_page_passes(tmp_path: Path) -> None:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    written = sum(code.count("\ndef test_") for code in FILES.values())
    assert f"{written} passed" in run_pytest(tmp_path)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_users_test_of_a_handler_is_four_lines_or_fewer(framework: str) -> None:
    tests = [node for node in ast.parse(FILES[f"test_{framework}_app.py"]).body if isinstance(node, ast.FunctionDef)]
    assert tests
    for each in tests:
        first = min([each.lineno, *(decorator.lineno for decorator in each.decorator_list)])
        assert each.end_lineno is not None
        assert each.end_lineno - first + 1 <= 4
