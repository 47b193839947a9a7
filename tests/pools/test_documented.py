"""Every snippet of docs/pools.md, run as it stands on real servers; each leaves no user behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import eventually
from vault_middleware.devstack import DevStack

PAGE = (Path(__file__).parents[2] / "docs" / "pools.md").read_text()
BLOCKS = re.findall(r"^<!-- run -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_has_no_snippet_that_is_passed_over() -> None:
    assert len(BLOCKS) == PAGE.count("```python") == PAGE.count("<!-- run")


@pytest.mark.integration
@pytest.mark.parametrize("code", [pytest.param(code, id=f"block {number}") for number, code in enumerate(BLOCKS)])
def test_a_snippet_queries_as_a_user_of_ours_and_leaves_none_behind(code: str, stack: DevStack, tmp_path: Path) -> None:
    (tmp_path / "pasted.py").write_text(code)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VAULT_", "BAO_"))}
    database = {"DATABASE_HOST": stack.postgres.host, "DATABASE_PORT": str(stack.postgres.port)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(tmp_path / "pasted.py")],
        env={**clean, **stack.environ, **database},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "v-lotabots-" in done.stdout
    assert "Error" not in done.stderr
    eventually(lambda: not stack.postgres.users(), "the database users to go")  # the server revokes in the background
