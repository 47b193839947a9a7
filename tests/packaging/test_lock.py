"""The lock file of the development environment: complete, pinned, hashed, and bound to no particular registry."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements-dev.lock"


@pytest.fixture(scope="module")
def entries() -> list[str]:
    """Each requirement with its options, on one line."""
    text = LOCK.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_each_entry_is_pinned_and_hashed(entries: list[str]) -> None:
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+==[^\s;]+(\s*;[^-]+)?\s+--hash=sha256:[0-9a-f]{64}", entry), entry[:80]


def test_no_registry_and_no_address_is_named() -> None:
    text = LOCK.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=)", text, re.MULTILINE)


def test_everything_that_the_settings_ask_for_is_in_it(entries: list[str]) -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    groups = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
    wanted = {
        plain(re.split(r"[\s\[<>=;!~]", line.strip())[0])
        for group in groups
        for line in group.splitlines()
        if line.strip() and not line.strip().startswith("#")
    }
    missing = wanted - {plain(entry.partition("==")[0]) for entry in entries} - {"vault-middleware"}
    assert not missing, "run: make lock"
