"""The doctor on a stack, and what every one of its reports has to be: free of secrets, with a cause that has a name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from vault_middleware.cli.doctor import Doctor
from vault_middleware.cli.findings import Finding, Findings
from vault_middleware.devstack import DevStack

from .support import DYNAMIC, JWT, STATIC

__all__ = ["EVERY", "HASTE", "causes", "examine", "finding"]

EVERY = (STATIC, JWT, DYNAMIC)

#: So that a server that hangs is found to hang soon; the leases of the shared stack leave as much for a second try.
HASTE = {"VAULT_CLIENT_TIMEOUT": "1.2s"}

TROUBLESHOOTING = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def examine(
    stack: DevStack,
    *paths: str,
    settings: Mapping[str, str] | None = None,
    wall: Callable[[], float] = time.time,
    kubernetes: str | None = None,
    processes: int = 1,
    **more: str,
) -> Findings:
    """What the doctor finds with the service's settings on *stack*, *settings* and *more*."""
    environ = {**stack.environ, **HASTE, **(settings or {}), **more}
    doctor = Doctor(environ, paths=paths or EVERY, kubernetes=kubernetes, processes=processes, wall=wall)
    return clean(doctor.examine(), stack)


def clean(findings: Findings, stack: DevStack) -> Findings:
    """*findings*, which hold no secret and no token, and mend what they find."""
    shown = findings.as_text() + findings.as_json()
    secret = {*stack.secret_values()}
    if stack.token_path.is_file():
        secret |= {part for part in stack.token_path.read_text().split(".") if len(part) > 20}
    assert not [value for value in secret if value in shown]
    assert "s." not in [word[:2] for word in shown.split()]
    headings = TROUBLESHOOTING.read_text(encoding="utf-8")
    for each in findings.found:
        if each.sign in ("failed", "warning"):
            assert each.found, each
            assert each.why, each
            assert each.mend, each
            assert f"`{each.code}`" in headings, f"{each.code} has no heading in the page on troubleshooting"
    assert json.loads(findings.as_json())["healthy"] is not findings.failed
    return findings


def causes(findings: Findings) -> list[str]:
    """The codes of what failed, each once, the cause first."""
    return list(dict.fromkeys(each.code for each in findings.found if each.sign == "failed"))


def finding(findings: Findings, code: str) -> Finding:
    """The first finding of *code*."""
    found = [each for each in findings.found if each.code == code]
    assert found, findings.as_text()
    return found[0]
