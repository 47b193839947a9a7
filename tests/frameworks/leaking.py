"""A secret for applications to leak, and what the tripwire says of it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from tests.fakes import STATIC
from vault_middleware import SecretsManager
from vault_middleware.cache import Entry
from vault_middleware.secret import Secret
from vault_middleware.telemetry.metrics import Metrics

__all__ = ["Leaking"]

_VALUE = "s3cr3t-of-the-gateway"


class Leaking:
    """*manager*, with metrics of its own and a value in its cache that is long enough to be known; *audit* has its lines."""

    def __init__(self, manager: SecretsManager, audit: Path) -> None:
        self.manager = manager
        self.audit = audit
        self._registry = CollectorRegistry()
        manager._metrics = Metrics.for_registry(self._registry)
        secret = Secret(STATIC, {"value": _VALUE})
        manager._engine.cache.put(STATIC, Entry(secret, fetched=0.0, fresh_until=1e18, stale_until=1e18))

    def value(self) -> str:
        """What must not leave."""
        return str(self.manager.get_secret(STATIC)["value"])

    def counted(self, where: str) -> float:
        """How many alarms there were about a ``header`` or a ``body``."""
        return self._registry.get_sample_value("vault_secret_leaks_total", {"where": where}) or 0.0
