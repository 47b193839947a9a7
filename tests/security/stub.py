"""A real manager whose transport answers at once, well, and without a socket; it notes what it was asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from prometheus_client import CollectorRegistry

from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.vault.transport import Answer

from .campaign import Vault, endpoint_of

__all__ = ["Asked", "stubbed"]


class Asked:
    """Stands for `Transport.request`; *answering* may give (status, body) in place of the good answer."""

    def __init__(self, answering: Callable[[str, str], tuple[int, dict[str, Any]] | None]) -> None:
        self.paths: list[str] = []
        self.look_ups = 0
        self._vault = Vault()
        self._answering = answering

    def __call__(self, operation: str, method: str, path: str, **_rest: Any) -> Answer:
        endpoint = endpoint_of(method, path)
        if endpoint in ("kv1", "kv2", "lease", "mount"):
            self.paths.append(path)
        self.look_ups += endpoint == "lookup_token"
        status, body = self._answering(endpoint, path) or (200, self._vault.good(endpoint, unquote(path)) or {})
        return Answer(status, body, time.monotonic(), {})


@contextmanager
def stubbed(
    answering: Callable[[str, str], tuple[int, dict[str, Any]] | None] = lambda endpoint, path: None, **settings: Any
) -> Iterator[tuple[SecretsManager, Asked]]:
    """A manager with a given token, over the stub."""
    settings.setdefault("audit_log", "off")
    config = SecretConfig(auth_method="token", token="t", auth_namespace="", startup="lazy", **settings)
    asked = Asked(answering)
    with SecretsManager(config, registry=CollectorRegistry()) as manager:
        manager._engine.client._transport.request = asked  # type: ignore[method-assign]
        yield manager, asked
