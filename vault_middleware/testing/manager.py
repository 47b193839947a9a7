"""StubManager: the real manager, engine, cache and accessors over a Vault in memory, on a clock that the test moves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry

from ..config import SecretConfig
from ..engine.engine import Engine
from ..manager import SecretsManager
from .vault import MemoryVault, leased

__all__ = ["Clock", "StubManager", "sigterm_untouched"]


class Clock:
    """Stands still until it is told otherwise; in seconds."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class StubManager(SecretsManager):
    """A :class:`SecretsManager` for unit tests; pass it as ``manager=``, or see :func:`override`.

    No server, no thread, no environment, no wait: what comes due is done within :meth:`advance`.

    Parameters
    ----------
    secrets
        What is where: ``{"api-gateway/api-key": {"value": "k"}}``. A path with ``/creds/`` in it, or a value in
        :class:`leased`, is read with a lease.
    registry
        For the metrics; one of its own by default.
    settings
        Of :class:`SecretConfig`, by name: ``cache_ttl=60``.

    Attributes
    ----------
    vault : MemoryVault
        The Vault in memory: ``vault.reads``, ``vault.put(path, data)``, ``vault.leases``.
    """

    def __init__(
        self,
        secrets: Mapping[str, Mapping[str, Any] | leased] | None = None,
        *,
        registry: CollectorRegistry | None = None,
        **settings: Any,
    ) -> None:
        time = Clock()
        self._time = time
        self._origin = weakref.ref(self)  # not of those that are this one within an override
        self.vault = MemoryVault(secrets or {}, clock=time)
        descriptor, name = tempfile.mkstemp(prefix="audit-", suffix=".jsonl")
        os.close(descriptor)
        self._lines = Path(name)
        weakref.finalize(self, self._lines.unlink, missing_ok=True)
        # A unit test has no process to end in order: SIGTERM is left as it was. Nothing waits: the start is lazy.
        fixed = {"vault_addr": "http://127.0.0.1:1", "audit_log": name, "startup": "lazy", "audit_mode": "strict"}
        with sigterm_untouched():
            config = SecretConfig(**{**settings, **fixed})
            super().__init__(config, registry=registry or CollectorRegistry(), clock=time)

    def _build(self) -> Engine:
        engine = Engine(
            self.config,
            emit=self._emit,
            audit=self.audit,
            metrics=self._metrics,
            callbacks=self._callbacks,
            probes=self._probes,
            clock=self._time,
            uniform=lambda low, high: (low + high) / 2,
            client=self.vault,
        )
        _run_by_hand(engine)
        return engine

    def start(self, *, wait: bool = True) -> Self:
        """As the real one's; it asks for nothing yet."""
        super().start(wait=wait)
        self._engine.renewer.cancel(self._engine._pulse_task)  # twice a second of a day would be long
        return self

    # -- what happens to the secrets

    def rotate(self, path: str, new: Mapping[str, Any] | leased | None = None) -> None:
        """Replace the secret at *path* now, as a rotation does: published, ``on_rotate`` called, the old lease drained.

        Parameters
        ----------
        new
            Its values from now on; without them, those it has with a number behind them (``app``, ``app-2``, …).
        """
        if new is None:
            self.vault.renew_values(path)
        else:
            self.vault.put(path, new)
        if path in self._engine.cache.entries:
            self._engine.reader.refresh(path)
        self.advance(0.0)

    def down(self) -> None:
        """Vault answers nobody: what is cached is served as the settings say, for the rest ``SecretUnavailable``."""
        self.vault.is_down = True
        self._engine.breaker.suspect()

    def up(self) -> None:
        """Vault answers again."""
        self.vault.is_down = False
        if self._engine.breaker.down:
            self._engine.breaker._look()
        self.advance(1.0)

    def deny(self, path: str) -> None:
        """The policy refuses *path*, from the next time that Vault is asked."""
        self.vault.denied_paths.add(path)

    def allow(self, path: str) -> None:
        """Take :meth:`deny` back; a refusal is remembered for 5 s."""
        self.vault.denied_paths.discard(path)

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass: leases are renewed, rotated and revoked, static secrets refreshed, each at its time."""
        renewer, until = self._engine.renewer, self._time.now + seconds
        while True:
            due = renewer.run_due(self._time.now)
            if due is None or due > until:
                break
            self._time.now = max(self._time.now, due)
        self._time.now = until
        if self.started:
            self._engine._pulse()

    # -- what came of it

    @property
    def leases(self) -> list[str]:
        """The ids of the leases that live at the server: held, or current."""
        self.advance(0.0)
        return self.vault.leases

    @property
    def audit_lines(self) -> list[dict[str, Any]]:
        """The audit lines so far."""
        return [json.loads(line) for line in self._lines.read_text(encoding="utf-8").splitlines()]


def _run_by_hand(engine: Engine) -> None:
    """No thread of the engine's is started: a job is done at once where it is asked for, the schedule in ``advance``."""

    def at_once(_group: str, _deadline: float, job: Callable[[], object]) -> bool:
        job()
        return True

    for workers in (engine.workers, engine.renewer._workers):
        workers.submit = at_once  # type: ignore[method-assign, assignment]
    engine.renewer.start = lambda: None  # type: ignore[method-assign]
    engine.breaker._start = engine.breaker._look  # type: ignore[method-assign, assignment]


@contextlib.contextmanager
def sigterm_untouched() -> Iterator[None]:
    """A manager that is made within the block does not take the signal."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is not before:  # only the main thread changes it
            signal.signal(signal.SIGTERM, before)
