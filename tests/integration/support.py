"""What several of these tests need: managers on a stack, what the server was really asked, and waiting for a fact."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.devstack import DevStack

T = TypeVar("T")

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


def eventually(happened: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Poll until *happened* gives something true."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if result := happened():
            return result
        pause.wait(0.02)
    raise AssertionError(f"waited in vain for {what}")


def in_threads(number: int, work: Callable[[int], T]) -> list[T]:
    """What *work* gives for 0 … *number*-1, on as many threads that start together; the first error is raised."""
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    together = threading.Barrier(number)

    def run(index: int) -> None:
        try:
            together.wait(20)
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert len(results) == number, "a thread hangs"
    return [results[index] for index in range(number)]
