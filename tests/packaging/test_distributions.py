"""What is published: the source distribution, and the wheel that is built from it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from vault_middleware._version import __version__

ROOT = Path(__file__).parents[2]

#: Nothing of these is part of the project.
LITTER = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"


def build(kind: str, source: Path, target: Path) -> Path:
    """Build *source* by the build backend that pyproject.toml names, as any front end would, without a network."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind), str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=LITTER)
    return build("sdist", folder / "tree", folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


def in_sdist(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def tree(*folders: str) -> set[str]:
    """The Python files of the project below *folders*."""
    return {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py")}


def test_the_source_distribution_has_what_is_needed_to_test_and_to_understand_it(sdist: Path) -> None:
    names = in_sdist(sdist)
    assert {"CHANGELOG.md", "LICENSE", "README.md", "Makefile", ".ci/run", "setup.cfg", "pyproject.toml"} <= names
    assert {"vault_middleware/py.typed", "docs/architecture.md"} <= names
    assert tree("vault_middleware", "tests", "examples") <= names


def test_the_source_distribution_has_no_litter(sdist: Path) -> None:
    parts = {part for name in in_sdist(sdist) for part in Path(name).parts}
    assert "__pycache__" not in parts
    assert {part for part in parts if part.startswith(".")} == {".ci"}


def test_the_wheel_has_the_whole_package_its_types_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if not name.startswith(f"vault_middleware-{__version__}.dist-info/")}
    assert package == tree("vault_middleware") | {"vault_middleware/py.typed", "pytest_vault_middleware.py"}


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"vault_middleware-{__version__}.dist-info"
    said = archive.read(f"{info}/METADATA").decode()
    head = said.partition("\n\n")[0].splitlines()
    assert "Name: vault-middleware" in head
    assert f"Version: {__version__}" in head
    assert "License-Expression: Apache-2.0" in head
    assert "Requires-Python: >=3.11" in head
    needed = {
        line.split()[1].partition(">")[0] for line in head if line.startswith("Requires-Dist:") and ";" not in line
    }
    told = re.search(r"^Runtime dependencies: .*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert told, "the README does not name the dependencies"
    assert {"hvac", "prometheus-client", "requests", "starlette", "tenacity"} <= needed
    assert [name for name in needed if name not in told[0]] == [], "a dependency without a word about it in the README"
    assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert b"vault-middleware = vault_middleware.cli:main" in archive.read(f"{info}/entry_points.txt")


def test_the_version_stands_in_one_place() -> None:
    ours = [ROOT / "setup.cfg", ROOT / "pyproject.toml", *(ROOT / "vault_middleware").rglob("*.py")]
    holding = [
        path.name for path in ours if f'"{__version__}"' in path.read_text() or f"= {__version__}\n" in path.read_text()
    ]
    assert holding == ["_version.py"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", __version__)
