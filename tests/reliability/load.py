"""A steady load of requests, and the report of what it met."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from tests.integration.support import DYNAMIC, JWT, STATIC, settings
from vault_middleware import RequestSecrets, SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.errors import VaultMiddlewareError
from vault_middleware.events import Event

THREADS = 16

#: A thread's pause between two requests, and how many of its requests go without a log-in to PostgreSQL, in a row.
PACE, READS_A_LOGIN = 0.01, 10

#: Static and dynamic, what each request reads.
STATICS, DYNAMICS = (STATIC, JWT), (DYNAMIC,)


@dataclass
class Report:
    """What was done, and what came of it; None where it was not measured.

    Attributes
    ----------
    misses
        How many reads needed a server call of their own after warm-up.
    calls
        How many calls to the server there were in all, the log-in and the stop included.
    """

    name: str
    done: str = ""
    requests: int = 0
    logins: int = 0
    failures: list[str] = field(default_factory=list)
    misses: int | None = None
    calls: int | None = None
    events: collections.Counter[str] = field(default_factory=collections.Counter)
    leases_left: int | None = None
    seconds: float = 0.0
    slowest: float = 0.0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry, repr=False)

    def require(self, holds: object, what: str) -> None:
        """Note *what* as a problem unless it holds."""
        if not holds:
            self.problems.append(what)

    def __str__(self) -> str:
        load = [
            f"{self.seconds:.0f} s",
            f"{self.requests} requests",
            f"{self.logins} log-ins to PostgreSQL",
            f"{len(self.failures)} failed",
        ]
        if self.calls is not None:
            load.append(f"{self.calls} server calls in all")
        if self.misses is not None:
            load.append(f"{self.misses} server calls for a request after warm-up")
        kept = [
            f"{self.events['lease_renewed']} renewals",
            f"{self.events['lease_rotated']} rotations",
            f"{self.events['login']} log-ins",
            f"{self.events['token_renewed']} token renewals",
        ]
        if self.leases_left is not None:
            kept.append(f"{self.leases_left} leases left after the stop")
        lines = [
            f"{'✗' if self.problems else '✓'} {self.name}: {self.done}",
            f"    {', '.join(load)}",
            f"    {', '.join(kept)}",
        ]
        if self.slowest:
            lines.append(f"    the slowest read meanwhile took {self.slowest * 1000:.1f} ms")
        lines += [f"    {note}" for note in self.notes]
        lines += [f"    ✗ {problem}" for problem in self.problems]
        lines += [f"    ✗ a request failed: {failure}" for failure in sorted(set(self.failures))[:5]]
        return "\n".join(lines)


class Load:
    """Requests from 16 threads, each with an accessor of its own that reads *paths*; some log in to PostgreSQL.

    ``accept`` says of an error whether it is one that this fault may cause.
    """

    def __init__(
        self,
        manager: SecretsManager,
        stack: DevStack,
        report: Report,
        *,
        statics: tuple[str, ...] = STATICS,
        dynamics: tuple[str, ...] = DYNAMICS,
        log_in: bool = True,
    ) -> None:
        self._manager = manager
        self._stack = stack
        self._report = report
        self._statics = statics
        self._dynamics = dynamics
        #: Whether requests log in to PostgreSQL just now (not while it is stopped).
        self.log_in = log_in
        #: Whether a credential that fails is rejected and read again, once; counted in ``rejected``.
        self.reject = False
        self.rejected = 0
        self.accept: Callable[[VaultMiddlewareError], bool] = lambda _error: False
        self.accepted = 0
        #: Reads are timed from here on, on the monotonic clock.
        self.timed_from = float("inf")
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._warm = threading.Barrier(THREADS + 1)
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(THREADS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self._warm.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
        if any(thread.is_alive() for thread in self._threads):
            self._report.problems.append("a thread of the load hangs")

    def _run(self, number: int) -> None:
        requests = 0
        while not self._stopping.wait(PACE if requests else 0):
            requests += 1
            # Threads take turns with their log-ins, so that there is always one under way.
            self._request(log_in=(requests + number) % (READS_A_LOGIN + 1) == 0)
            if requests == 1:
                self._warm.wait(30)

    def _request(self, *, log_in: bool) -> None:
        problem: str | None = None
        slowest = 0.0
        logins = 0
        with RequestSecrets(self._manager) as secrets:
            try:
                for path in self._statics:
                    slowest = max(slowest, self._read(secrets.get_secret, path))
                for path in self._dynamics:
                    slowest = max(slowest, self._read(secrets.get_dynamic_secret, path))
                    if log_in and self.log_in:
                        logins += 1
                        problem = problem or self._log_in(secrets, path)
            except VaultMiddlewareError as error:
                if self.accept(error):
                    self.accepted += 1
                else:
                    problem = f"{type(error).__name__}: {error}"
        with self._lock:
            report = self._report
            report.requests += 1
            report.logins += logins
            report.slowest = max(report.slowest, slowest)
            if problem:
                report.failures.append(problem)

    def _read(self, getter: Callable[[str], object], path: str) -> float:
        before = time.monotonic()
        getter(path)
        took = time.monotonic() - before
        return took if before >= self.timed_from else 0.0

    def _log_in(self, secrets: RequestSecrets, path: str) -> str | None:
        """Use the credential at the end of the request, as a slow one would; what was wrong, or None."""
        credential = secrets.get_dynamic_secret(path)
        if "username" not in credential:
            return None
        if self._stack.postgres.can_log_in(credential["username"], credential["password"]):
            return None
        if self.reject:
            with self._lock:
                self.rejected += 1
            secrets.reject(credential)
            credential = secrets.get_dynamic_secret(path)
            if self._stack.postgres.can_log_in(credential["username"], credential["password"]):
                return None
        left = credential.lease.deadline - time.monotonic()
        return f"{credential['username']} could not log in, {left:.1f} s before its deadline"


@contextlib.contextmanager
def watched(report: Report, stack: DevStack, **variables: str) -> Iterator[SecretsManager]:
    """A manager whose events are counted in *report*, and after whose stop the leases that are left are."""
    manager = SecretsManager(settings(stack, **variables), registry=report.registry)
    emit = manager._emit

    def listening(event: Event) -> None:
        report.events[event.name] += 1
        emit(event)

    manager._emit = listening  # type: ignore[method-assign]
    manager._engine = manager._build()
    began = time.monotonic()
    with manager:
        yield manager
        report.seconds = time.monotonic() - began
    report.calls = _calls(report)
    if stack.bao.health() == 200:
        report.leases_left = len(stack.leases())


def misses(report: Report) -> int:
    """How many reads have needed a server call of their own, so far."""
    value = report.registry.get_sample_value
    return int((value("vault_secret_requests_total") or 0) - (value("vault_secret_cache_hits_total") or 0))


def _calls(report: Report) -> int:
    """How many calls to the server the manager has made, answered or not."""
    samples = (sample for family in report.registry.collect() for sample in family.samples)
    return sum(int(sample.value) for sample in samples if sample.name == "vault_server_request_duration_seconds_count")
