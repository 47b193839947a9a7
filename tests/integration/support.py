"""What several of these tests need: managers on a stack, what it was really asked, and servers as real processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from tests.waiting import eventually, in_threads
from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.devstack.process import free_port

__all__ = [
    "DYNAMIC",
    "JWT",
    "STATIC",
    "Running",
    "answers",
    "asked",
    "eventually",
    "free_port",
    "in_threads",
    "running",
    "serve",
    "settings",
]

DYNAMIC = "database/creds/api-gateway"
STATIC = "api-gateway/api-key"
JWT = "shared/jwt"


def settings(stack: DevStack, **more: str) -> SecretConfig:
    """The service's settings on *stack*, with the audit off unless *more* says otherwise."""
    return SecretConfig.from_env({**stack.environ, "VAULT_AUDIT_LOG": "off", **more})


@contextlib.contextmanager
def running(stack: DevStack, **more: str) -> Iterator[SecretsManager]:
    """A manager with metrics of its own."""
    with SecretsManager(settings(stack, **more), registry=CollectorRegistry()) as manager:
        yield manager


def asked(stack: DevStack, path: str) -> list[dict[str, Any]]:
    """The requests for *path* that the server's own audit log knows of, ours only (not the stack's administration)."""
    return [
        line
        for line in stack.bao.audit_log()
        if line["type"] == "request" and _full(line) == path and "root" not in line["auth"].get("policies", [])
    ]


def _full(line: dict[str, Any]) -> str:
    namespace = line["request"].get("namespace", {}).get("path", "")
    return f"{namespace}{line['request']['path']}"


# -- servers as real processes


@dataclass
class Running:
    """A server's process, and where its audit lines and its own words go."""

    process: subprocess.Popen[bytes]
    url: str
    audit: Path
    log: Path

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The audit lines about *event*, so far."""
        if not self.audit.exists():
            return []
        text = self.audit.read_text()
        whole = text[: text.rfind("\n") + 1]  # a line that is being written just now may be seen in part
        every = [json.loads(line) for line in whole.splitlines()]
        return [line for line in every if line["event"] == event]


@contextlib.contextmanager
def serve(command: tuple[str, ...], stack: DevStack, folder: Path, *, root: Path, **more: str) -> Iterator[Running]:
    """*command* in the folder *root*, with a free port for its ``{port}`` and the environment of *stack* and *more*."""
    port = free_port()
    audit, log = folder / "audit.jsonl", folder / "server.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VAULT_", "BAO_"))}
    environ = {
        **clean,
        **stack.environ,
        "VAULT_AUDIT_LOG": str(audit),
        "DATABASE_HOST": stack.postgres.host,
        "DATABASE_PORT": str(stack.postgres.port),
        "PYTHONPATH": str(root),
        **more,
    }
    script, *arguments = (part.format(port=port) for part in command)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sysconfig.get_path("scripts"), script)), *arguments],
            env=environ,
            cwd=root,
            stdout=output,
            stderr=output,
        )
    try:
        yield Running(process, f"http://127.0.0.1:{port}", audit, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(running: Running, path: str = "/pid") -> bool:
    """Whether the server answers at all; fails where it has ended."""
    if running.process.poll() is not None:
        raise AssertionError(f"the server ended by itself:\n{running.log.read_text()}")
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{running.url}{path}", trust_env=False).status_code < 500
    return False
