"""The bill of materials, made by the command of ``make sbom``: what the package needs, at which version, and who needs it."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from vault_middleware._version import __version__

ROOT = Path(__file__).parents[2]

#: Set by ``make sbom``, to the file that it has made.
MADE = "SBOM"


def recipe() -> list[str]:
    """The Makefile's command that makes it."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if "cyclonedx-py environment" in line]
    return shlex.split(line.rpartition("&&")[2].strip())


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has what the package needs, as it is installed here, and no more; the Makefile's fetches it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    [packages] = (folder / "lib").glob("python*/site-packages")
    for name in closure():
        (info := packages / f"{name.replace('-', '_')}-{installed(name).version}.dist-info").mkdir()
        (info / "METADATA").write_text(installed(name).read_text("METADATA") or "", encoding="utf-8")
    return folder / "bin" / "python"


def installed(name: str) -> metadata.Distribution:
    """The one that pip has installed; the tree may have traces of a build beside it."""
    return next(each for each in metadata.distributions(name=name) if each.read_text("METADATA"))


def closure() -> set[str]:
    """The package, what it needs, and what that needs, without any extra."""
    found, waiting = set(), {"vault-middleware"}
    while waiting:
        found.add(name := waiting.pop())
        needed = [Requirement(line) for line in installed(name).requires or ()]
        waiting |= {plain(each.name) for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})}
        waiting -= found
    return found


def make(environment: Path, target: Path) -> dict[str, Any]:
    """The bill of *environment*."""
    scripts = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    program = shutil.which("cyclonedx-py", path=scripts)
    if program is None:
        pytest.skip(
            "cyclonedx-py is not installed; `make sbom` installs it, and looks at what it has made by this test"
        )
    _, verb, _, *flags, name = recipe()
    assert (verb, Path(name).name) == ("environment", "sbom.json")
    command = [program, verb, str(environment), *flags, str(target)]
    done = subprocess.run(command, cwd=target.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return made


@pytest.fixture(scope="module")
def sbom(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if file := os.environ.get(MADE):
        found: dict[str, Any] = json.loads((ROOT / file).read_text(encoding="utf-8"))
        return found
    return make(environment, tmp_path_factory.mktemp("sbom") / "sbom.json")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> set[str]:
    """What the settings say that the package needs to run."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = settings["options"]["install_requires"].splitlines()
    return {plain(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")}


def components(sbom: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {plain(each["name"]): each for each in sbom["components"]}


def needs(sbom: dict[str, Any], name: str) -> set[str]:
    """The names of what *name* depends on, by the SBOM."""
    names = {each["bom-ref"]: plain(each["name"]) for each in sbom["components"]}
    edges = {names.get(each["ref"]): each.get("dependsOn", []) for each in sbom["dependencies"]}
    return {names[each] for each in edges[name]}


def test_it_is_a_cyclonedx_bill_that_is_the_same_each_time(
    sbom: dict[str, Any], environment: Path, tmp_path: Path
) -> None:
    assert sbom["bomFormat"] == "CycloneDX"
    assert tuple(int(part) for part in sbom["specVersion"].split(".")) >= (1, 6)
    # These would be new in each one.
    assert "serialNumber" not in sbom
    assert "timestamp" not in sbom["metadata"]
    if MADE not in os.environ:
        assert make(environment, tmp_path / "again.json") == sbom


def test_the_package_is_in_it_with_its_version_and_licence(sbom: dict[str, Any]) -> None:
    ours = components(sbom)["vault-middleware"]
    assert ours["version"] == __version__
    assert "Apache-2.0" in json.dumps(ours["licenses"])


def test_every_runtime_dependency_is_in_it_and_named_as_ours(sbom: dict[str, Any]) -> None:
    assert required() >= {"hvac", "prometheus-client", "requests", "starlette", "tenacity"}
    assert required() <= needs(sbom, "vault-middleware")
    for name in required():
        found = components(sbom)[name]
        assert found["purl"] == f"pkg:pypi/{name}@{found['version']}"
        if MADE not in os.environ:
            assert found["version"] == installed(name).version


def test_all_that_a_user_gets_is_in_it_and_nothing_that_only_the_tests_need(sbom: dict[str, Any]) -> None:
    tools = {"pip", "setuptools"}  # of every virtual environment
    assert components(sbom).keys() - tools == closure() - tools


def test_it_does_not_say_where_it_was_made(sbom: dict[str, Any]) -> None:
    text = json.dumps(sbom)
    assert "file:" not in text
    assert str(ROOT) not in text
