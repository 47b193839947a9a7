"""The code of README and docs: each marked block is pasted into a file, and runs as it stands on real servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from vault_middleware.devstack import DevStack

from .support import answers, eventually, serve

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "index.md",
    ROOT / "docs" / "security.md",
    *sorted((ROOT / "docs" / "frameworks").glob("*.md")),
]

#: ``<!-- run -->`` over a block that defines `app`, ``<!-- run: manager -->`` over a script.
MARKED = re.compile(r"^<!-- run(: manager)? -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

APPS: list[Any] = []
SCRIPTS: list[Any] = []
for page in PAGES:
    for number, (kind, code) in enumerate(MARKED.findall(page.read_text()), 1):
        (SCRIPTS if kind else APPS).append(pytest.param(code, id=f"{page.stem} {number}"))

#: The routes of an application, as each framework writes them.
ROUTE = re.compile(r"""(?:Route|[@.]get|path)\(["']/?([^"'<]*)["']""")


def test_the_readme_has_code_of_each_kind_and_no_mark_that_is_passed_over() -> None:
    assert APPS
    assert SCRIPTS
    assert len(APPS) + len(SCRIPTS) == sum(page.read_text().count("<!-- run") for page in PAGES)


def test_no_python_block_of_the_documentation_is_without_the_mark_of_a_test() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        marked = re.findall(r"^<!-- (?:run|file).* -->\n```python$", text, re.MULTILINE)
        assert len(marked) == text.count("```python"), page.name


@pytest.mark.parametrize("code", APPS)
def test_an_application_answers_every_route_and_reads_its_secrets(code: str, stack: DevStack, tmp_path: Path) -> None:
    Path(tmp_path, "pasted.py").write_text(code)
    command: tuple[str, ...] = ("uvicorn", "--port", "{port}", "pasted:app")
    if "WSGI" in code or "Flask(" in code:
        command = ("waitress-serve", "--listen", "127.0.0.1:{port}", "pasted:app")
    with serve(command, stack, tmp_path, root=tmp_path) as running:
        eventually(lambda: answers(running, "/"), "the application to answer")
        for route in ROUTE.findall(code) or [""]:
            answer = httpx.get(f"{running.url}/{route}", trust_env=False, timeout=20)
            assert answer.status_code == 200, running.log.read_text()
        read = {line["secret_path"] for line in running.lines("secret_access")}
    assert read == set(re.findall(r"""get_(?:dynamic_)?secret\(["']([^"']+)["']""", code))


@pytest.mark.parametrize("code", SCRIPTS)
def test_a_script_ends_well_and_leaves_nothing_behind(code: str, stack: DevStack, tmp_path: Path) -> None:
    script = tmp_path / "pasted.py"
    script.write_text(code)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VAULT_", "BAO_"))}
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**clean, **stack.environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "secret_access" in done.stderr
    eventually(lambda: not stack.leases(), "the leases to be revoked", 5)
