"""SecretsManager: lives with the app, owns everything, starts and stops it."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from prometheus_client import REGISTRY, CollectorRegistry

from .cache import Entry, Key
from .config import SecretConfig
from .engine.closed import ClosedGate
from .engine.engine import Engine
from .engine.fetcher import Callback
from .engine.gate import Gate, Reading, no_hit
from .engine.verification import Probe
from .errors import VaultMiddlewareError
from .events import Event, Started, Stopped
from .exits import ExitHooks
from .holds import Holds
from .secret import DynamicSecret, Secret
from .telemetry.audit import Audit
from .telemetry.lines import NOBODY, asked
from .telemetry.log import OperationalLog
from .telemetry.metrics import Metrics
from .telemetry.sinks import open_sink
from .workers import require_threads

__all__ = ["SecretsManager"]

_log = logging.getLogger("vault_middleware")

#: Every manager of this process, for what a forked child must leave to its parent.
_managers: weakref.WeakSet[SecretsManager] = weakref.WeakSet()


class _Outside:
    """Reads outside any request: nobody can say when their user has ended, so a lease is left to its deadline."""

    request_id = None

    def __init__(self, context: str) -> None:
        self.context = context

    def take(self, holds: Holds) -> None:
        holds.unbounded = True


class SecretsManager:
    """The secrets of one application: read, cached, renewed, rotated, audited and counted.

    Use it as a context manager, or call :meth:`start` and :meth:`close`. A getter starts it if need be.

    Parameters
    ----------
    config
        The settings; without them, those of the environment.
    registry
        Where the metrics are registered.
    clock
        A monotonic clock in seconds.

    Raises
    ------
    ConfigurationError
        A setting is wrong; every bad one is named.
    """

    def __init__(
        self,
        config: SecretConfig | None = None,
        *,
        registry: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_threads()
        self.config = SecretConfig.from_env() if config is None else config
        #: The monotonic clock, in seconds.
        self.clock = self._clock = clock
        self._metrics = Metrics.for_registry(registry)
        #: Each number drawn from it counts one read that an accessor answered from its own pins.
        self.hits = self._metrics.hits
        #: The audit of this manager, for accessors.
        self.audit = self._audit = Audit(open_sink(self.config.audit_log), mode=self.config.audit_mode, clock=clock)
        self._operational = OperationalLog()
        self._outside = _Outside(asked(NOBODY))
        self._callbacks: dict[str, list[Callback]] = {}
        self._probes: dict[str, Probe] = {}
        self._lock = threading.Lock()
        self._started = False
        self._closed = False
        #: The gate's: what the cache can answer at once, to whom; nothing but while it is started.
        self.hit: Callable[[Key, bool, Reading], Entry | None] = no_hit
        self._exits = ExitHooks(self.close)
        self._engine = self._build()
        for warning in self.config.warnings():
            _log.warning(warning)
        self._exits.take_sigterm()
        _managers.add(self)

    def _build(self) -> Engine:
        return Engine(
            self.config,
            emit=self._emit,
            audit=self._audit,
            metrics=self._metrics,
            callbacks=self._callbacks,
            probes=self._probes,
            clock=self._clock,
        )

    def _emit(self, event: Event) -> None:
        for listener in (self._metrics, self._operational, self._audit):
            try:
                listener(event)
            except Exception:
                _log.exception("a telemetry listener failed; please report this")

    # -- start and stop

    def start(self, *, wait: bool = True) -> Self:
        """Start the renewer; with ``VAULT_STARTUP=eager`` also log in and fetch ``VAULT_PREFETCH`` before returning.

        Does nothing if it is started already.

        Parameters
        ----------
        wait
            False: do not wait for the server; what an eager start fetches is fetched in the background.

        Raises
        ------
        AuthenticationError, VaultUnavailable, SecretError
            The eager start did not succeed within ``VAULT_STARTUP_TIMEOUT``. The manager can be started again.
        """
        with self._lock:
            if self._started:
                return self
            if self._closed:
                self._closed = False
                self._engine = self._build()
            self._started = True
            engine = self._engine
            self.hit = engine.gate.hit
        engine.start()
        self._exits.install()
        self._emit(Started(os.getpid()))
        if self.config.startup == "eager" and not wait:
            engine.warm_up_aside()
        elif self.config.startup == "eager":
            failure: VaultMiddlewareError | None = None
            try:
                engine.warm_up(self.config.startup_timeout)
            except VaultMiddlewareError as error:
                failure = error.with_traceback(None)
            if failure is not None:
                self.close("failed start")
                raise failure
        return self

    def close(self, hook: str = "close") -> None:
        """Stop within ``VAULT_SHUTDOWN_TIMEOUT``: revoke every lease and token of ours; idempotent, raises nothing.

        Parameters
        ----------
        hook
            What closes it, for the log and the audit line.
        """
        with self._lock:
            started, self._started = self._started, False
            self.hit = no_hit
            self._closed = True  # also where it was never started: a late reader must not start it then
            engine = self._engine
        if not started:
            return
        self._exits.remove()
        try:
            engine.stop(self.config.shutdown_timeout)
        except Exception:
            _log.exception("the stop failed half-way; please report this")
        self._emit(Stopped(hook, os.getpid()))
        self._metrics.forget(engine)
        self._metrics.flush()
        self._audit.flush()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def started(self) -> bool:
        """Whether it is started and not closed."""
        return self._started

    @property
    def ready(self) -> bool:
        """Whether the first warm-up is over, and it is not closed; an outage after that changes nothing.

        A lazy start is ready at once.
        """
        return not self._closed and (self.config.startup == "lazy" or self._engine.warm)

    def _after_fork(self) -> None:
        """In a forked child: fresh locks, threads and connections; the static cache is kept, the rest is the parent's."""
        parent = self._engine
        self._lock = threading.Lock()
        self._audit.after_fork()
        if self._closed:
            return
        self._started, self.hit = False, no_hit
        self._engine = self._build()
        self._engine.cache.inherit(parent.cache)

    # -- the getters

    @property
    def gate(self) -> Gate:
        """Where accessors read; starts the manager at first use, and refuses them once it is closed."""
        if not self._started:
            if self._closed:
                return ClosedGate(self._engine.cache, self._engine.reader, self._audit, self._metrics)
            self.start(wait=False)
        return self._engine.gate

    def get_secret(
        self, path: str, *, version: int | None = None, fresh: bool = False, timeout: float | None = None
    ) -> Secret:
        """The secret at *path*, outside any request.

        A lease that is read here is not revoked when it is replaced, but left to its own deadline, since nobody can say
        when its user has ended; :meth:`on_rotate` tells of the replacement.

        Parameters
        ----------
        path
            Relative to ``VAULT_NAMESPACE``: ``api-gateway/api-key``.
        version
            Of a KV v2 secret; the current one if None.
        fresh
            Fetch now, and replace what is cached.
        timeout
            The most this may take, in seconds; ``VAULT_REQUEST_TIMEOUT`` if None, and never more than that.

        Raises
        ------
        InvalidSecretPath, SecretNotFound, SecretAccessDenied, SecretUnavailable, LeaseLimitReached, AuditError
            See the table of errors in the documentation.
        """
        key: Key = path if version is None else (path, version)
        entry = None if fresh else self.hit(key, False, self._outside)
        return (entry or self.gate.read(key, False, fresh, timeout, self._outside)).secret

    def get_dynamic_secret(self, path: str, *, timeout: float | None = None) -> DynamicSecret:
        """The leased secret at *path*, outside any request; see :meth:`get_secret`.

        Raises
        ------
        SecretNotDynamic
            The path answers without a lease; and what :meth:`get_secret` raises.
        """
        return _dynamic(self.gate.read(path, True, False, timeout, self._outside))

    async def aget_secret(
        self, path: str, *, version: int | None = None, fresh: bool = False, timeout: float | None = None
    ) -> Secret:
        """As :meth:`get_secret`, for the event loop: a hit is immediate, a miss does not block it."""
        key: Key = path if version is None else (path, version)
        return (await self.gate.aread(key, False, fresh, timeout, self._outside)).secret

    async def aget_dynamic_secret(self, path: str, *, timeout: float | None = None) -> DynamicSecret:
        """As :meth:`get_dynamic_secret`, for the event loop."""
        return _dynamic(await self.gate.aread(path, True, False, timeout, self._outside))

    def reject(self, secret: Secret) -> None:
        """*secret* did not work: if it is still the current one, it is replaced, once for all who ask."""
        self._engine.reject(secret)

    def on_rotate(self, path: str, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call *callback* with the new secret whenever the values at *path* change; returns how to undo that.

        It is called after the new secret is published, on a thread of the renewer: it should be quick. What it raises is
        logged, without the message.
        """
        callbacks = self._callbacks.setdefault(path, [])
        callbacks.append(callback)

        def undo() -> None:
            if callback in callbacks:
                callbacks.remove(callback)

        return undo

    def verify(self, path: str, probe: Callable[[Any], object]) -> Callable[[], None]:
        """Have each new secret at *path* pass *probe* before anyone is handed it; returns how to undo that.

        *probe* is called with the new secret, on a thread of ours, and passes by returning: log in with it, say. One that
        raises, or returns False, is called again up to four times within two seconds. If it never passes, the new secret
        is given back, the one before it serves on to its own end, and the replacement is tried again as after any other
        failure; where there is none before it, reads raise :class:`SecretUnavailable`. Give it a time-out of its own: while
        it runs, other leases of the same mount wait. What it raises is told by its type alone. A path has one probe: another
        takes its place.
        """
        self._probes[path] = probe

        def undo() -> None:
            if self._probes.get(path) is probe:
                del self._probes[path]

        return undo

    def health(self) -> dict[str, Any]:
        """What an operator wants to know, ready for JSON and without a value: server, token, leases, cache, last error.

        Times are in seconds from now.
        """
        return {"started": self._started, "closed": self._closed, "ready": self.ready, **self._engine.health()}

    def __repr__(self) -> str:
        state = "started" if self._started else "closed" if self._closed else "not started"
        return f"<SecretsManager {self.config.vault_addr} role={self.config.vault_role!r} {state}>"


def _dynamic(entry: Entry) -> DynamicSecret:
    secret = entry.secret
    assert isinstance(secret, DynamicSecret)  # the gate has raised SecretNotDynamic otherwise
    return secret


def _after_fork() -> None:
    Metrics.after_fork_in_child()
    for manager in list(_managers):
        manager._after_fork()


os.register_at_fork(
    before=Metrics.before_any_fork, after_in_parent=Metrics.after_fork_in_parent, after_in_child=_after_fork
)
