"""The README's own code: each marked block is pasted into a file, and runs as it stands on real servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from vault_middleware.devstack import DevStack

from .support import answers, eventually, serve

README = Path(__file__).parents[2] / "README.md"

#: ``<!-- run -->`` over a block that defines `app`, ``<!-- run: manager -->`` over a script.
MARKED = re.compile(r"^<!-- run(: manager)? -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

BLOCKS = [(number, bool(kind), code) for number, (kind, code) in enumerate(MARKED.findall(README.read_text()))]
APPS = [pytest.param(code, id=f"block {number}") for number, script, code in BLOCKS if not script]
SCRIPTS = [pytest.param(code, id=f"block {number}") for number, script, code in BLOCKS if script]


def test_the_readme_has_code_of_each_kind_and_no_mark_that_is_passed_over() -> None:
    assert APPS
    assert SCRIPTS
    assert len(BLOCKS) == README.read_text().count("<!-- run")


@pytest.mark.parametrize("code", APPS)
def test_an_application_of_the_readme_answers_every_route_and_reads_its_secrets(
    code: str, stack: DevStack, tmp_path: Path
) -> None:
    Path(tmp_path, "pasted.py").write_text(code)
    command: tuple[str, ...] = ("uvicorn", "--port", "{port}", "pasted:app")
    if "WSGI" in code:
        command = ("waitress-serve", "--listen", "127.0.0.1:{port}", "pasted:app")
    with serve(command, stack, tmp_path, root=tmp_path) as running:
        eventually(lambda: answers(running, "/"), "the application to answer")
        for route in re.findall(r"""Route\(["'](/[^"']*)["']""", code) or ["/"]:
            answer = httpx.get(f"{running.url}{route}", trust_env=False, timeout=20)
            assert answer.status_code == 200, running.log.read_text()
        read = {line["secret_path"] for line in running.lines("secret_access")}
    assert read == set(re.findall(r"""get_(?:dynamic_)?secret\(["']([^"']+)["']""", code))


@pytest.mark.parametrize("code", SCRIPTS)
def test_a_script_of_the_readme_ends_well_and_leaves_nothing_behind(code: str, stack: DevStack, tmp_path: Path) -> None:
    stack.revoke_all_leases()  # of other tests, that is
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
