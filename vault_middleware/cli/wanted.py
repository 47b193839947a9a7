"""Which secret paths a command is about: those given, those of the settings, or those that the app really read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import SecretConfig
from ..errors import ConfigurationError

__all__ = ["Wanted", "from_audit_log", "wanted"]

#: What became of a read that gave the app a value.
_READ = frozenset({"hit", "miss", "stale"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """A path relative to ``VAULT_NAMESPACE``; it may end in ``*``. What the audit log knows of it: its kind and engine."""

    path: str
    dynamic: bool | None = None
    versioned: bool | None = None


def wanted(paths: Sequence[str], audit_log: str | None, config: SecretConfig) -> list[Wanted]:
    """The *paths*, else those of *audit_log*, else ``VAULT_PREFETCH``, else those of ``VAULT_AUDIT_LOG`` if it is a file.

    Raises
    ------
    ConfigurationError
        *audit_log* cannot be read, or holds no audit line.
    """
    if paths:
        return [Wanted(path.removeprefix("dynamic:")) for path in dict.fromkeys(paths)]
    if audit_log is not None:
        return from_audit_log(Path(audit_log))
    if config.prefetch:
        return [Wanted(path) for path in config.prefetch]
    if "/" in config.audit_log and Path(config.audit_log).is_file():
        return from_audit_log(Path(config.audit_log))
    return []


def from_audit_log(path: Path) -> list[Wanted]:
    """The paths that gave the app a value, from its audit lines; refused and hostile ones are left out.

    Raises
    ------
    ConfigurationError
        As for :func:`wanted`.
    """
    problem = None
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return _read(lines, path)
    except OSError as error:
        problem = error.strerror or type(error).__name__
    raise ConfigurationError(
        f"the audit log {path} cannot be read ({problem}); give the file that VAULT_AUDIT_LOG names"
    )


def _read(lines: Iterable[str], path: Path) -> list[Wanted]:
    found: dict[str, Wanted] = {}
    known = False
    for text in lines:
        line = _line(text)
        known = known or "event" in line
        secret = line.get("secret_path")
        if line.get("event") != "secret_access" or line.get("outcome") not in _READ or not isinstance(secret, str):
            continue
        if secret.endswith("…"):
            continue  # it was cut, as no real path is
        before = found.get(secret, Wanted(secret))
        dynamic = line.get("kind") == "dynamic" or bool(before.dynamic)
        found[secret] = Wanted(secret, dynamic, line.get("version") is not None or bool(before.versioned))
    if not known:
        raise ConfigurationError(f"{path} holds no audit line; give the file that VAULT_AUDIT_LOG names")
    return sorted(found.values(), key=lambda each: each.path)


def _line(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) else {}
