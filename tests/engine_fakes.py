"""A whole engine on a hand-stepped clock, before a server that is a few lines of Python.

The engine is the real one. Its client is scripted (it stands for timing and failure only), its workers do a job at once
or keep it until the test says so, and neither the renewer's thread nor the breaker's is started: :meth:`World.run_until`
runs, in order, whatever comes due. So nothing sleeps, and a day takes as long as its events.
"""

from __future__ import annotations

import json
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry

from vault_middleware.cache import Entry, Key
from vault_middleware.config import SecretConfig
from vault_middleware.engine.engine import Engine
from vault_middleware.engine.leases import Leased
from vault_middleware.errors import AuthenticationError, SecretAccessDenied, SecretNotFound, VaultUnavailable
from vault_middleware.events import Event
from vault_middleware.holds import Holds
from vault_middleware.secret import DynamicSecret, Secret
from vault_middleware.telemetry.audit import Audit
from vault_middleware.telemetry.metrics import Metrics
from vault_middleware.vault.client import Forbidden, Grant, LeaseGone, Reading, Token
from vault_middleware.vault.paths import Mount

__all__ = ["CREDS", "KEY", "ROLE", "Call", "Clock", "FakeClient", "Holder", "World", "at", "middle"]

E = TypeVar("E", bound=Event)

#: A static secret, a database role that makes leases, and a static database role.
KEY, CREDS, ROLE = "kv/api-key", "database/creds/app", "database/static-creds/app"

#: More steps, beside four a second, than any honest schedule takes: a hot loop.
HOT = 5_000


class Clock:
    """The time, in seconds, as the test sets it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def middle(low: float, high: float) -> float:
    """``uniform`` that always draws the middle."""
    return (low + high) / 2


def at(share: float) -> Callable[[float, float], float]:
    """``uniform`` that always draws the same share of the way from low to high."""
    return lambda low, high: low + share * (high - low)


class Call(NamedTuple):
    """One call to the server: when it was sent, which, about what, and with which token."""

    at: float
    name: str
    what: str
    token: str


class FakeClient:
    """A healthy server of a few lines; :meth:`then` puts other answers in front of its own.

    Attributes
    ----------
    calls
        Every call so far.
    latency
        Seconds that each call takes; the clock is moved by them.
    down
        What every call fails with, as long as it is set.
    hangs_for
        How long the longest call under way has taken.
    token_ttl, token_renewable, token_max_ttl, owned, same_token, proxied
        What a log-in gives; *same_token*: always the same one, as with a given token; *proxied*: none.
    lease_ttl, lease_renewable, lease_max_ttl
        What a read of ``database/creds/…`` gives.
    valid, leases
        The tokens and leases that the server knows: the lease's end and its token.
    data
        The values of static paths; a path that is not there is not found.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls: list[Call] = []
        self.latency = 0.0
        self.down: VaultUnavailable | None = None
        self.leases_outlive_tokens = False
        self.token_ttl, self.token_max_ttl, self.token_renewable, self.owned = 3600.0, float("inf"), True, True
        self.same_token = False
        self.lease_ttl, self.lease_max_ttl, self.lease_renewable = 60.0, float("inf"), True
        self.valid: dict[str, float] = {}
        self.leases: dict[str, tuple[float, float, str]] = {}
        self.data: dict[str, dict[str, Any]] = {KEY: {"value": "one"}}
        self.role_ttl: float | None = None
        self.age = 0.0
        self.proxied = False
        self.hangs_for = 0.0
        self.closed = False
        self._born: dict[str, float] = {}
        self._scripts: dict[str, deque[Any]] = {}
        self._serial = self._tokens = 0

    # -- the script

    def then(self, name: str, *answers: Any) -> None:
        """The next calls of *name* get *answers*: an error is raised, a function called, else it is the result."""
        self._scripts.setdefault(name, deque()).extend(answers)

    def count(self, name: str, since: float = float("-inf")) -> int:
        """How many calls of *name* there were, from the time *since*."""
        return sum(call.name == name and call.at >= since for call in self.calls)

    def times(self, *names: str) -> list[float]:
        """When the calls of *names* were sent."""
        return [call.at for call in self.calls if call.name in names]

    def works(self, secret: Secret) -> bool:
        """Whether the server would still take the credential of *secret*."""
        assert isinstance(secret, DynamicSecret)
        lease = self.leases.get(secret.lease.lease_id)
        if lease is None:
            return False
        ends, _, token = lease
        return self.clock.now < ends and (not token or self.clock.now < self.valid.get(token, 0.0))

    def revoke_outside(self, token: str) -> None:
        """Somebody else revokes *token*; its leases go with it."""
        self.valid.pop(token, None)
        for lease_id in [lease_id for lease_id, (_, _, of) in self.leases.items() if of == token]:
            del self.leases[lease_id]

    def _called(self, name: str, what: str, token: Token | None = None) -> Any:
        """Record a call and let its time pass; the scripted answer, or None for the server's own."""
        self.calls.append(Call(self.clock.now, name, what, "" if token is None else token.value))
        script = self._scripts.get(name)
        answer = script.popleft() if script else None
        self.clock.now += self.latency
        if isinstance(answer, Exception):
            raise answer
        if self.down is not None:
            raise self.down.again()
        return answer() if callable(answer) else answer

    def _know(self, token: Token) -> None:
        """403 to a token that the server does not know, or not any more."""
        if token.value and self.valid.get(token.value, 0.0) <= self.clock.now:
            self.revoke_outside(token.value)
            raise Forbidden

    # -- the server

    def probe(self, timeout: float) -> None:
        self._called("probe", "")

    def oldest_call(self, now: float) -> float:
        return self.hangs_for

    def close(self) -> None:
        self.closed = True

    def log_in(self, timeout: float) -> Token:
        sent = self.clock.now
        answer = self._called("log_in", "")
        if answer is not None:
            return answer  # type: ignore[no-any-return]
        if self.proxied:
            return Token("", 0.0, False, float("inf"), "", "the proxy", owned=False)
        if not self._born or not self.same_token:
            self._tokens += 1
        value = f"token-{self._tokens}"
        if value in self.valid:
            left = self.valid[value] - sent
            return Token(value, self.token_ttl, self.token_renewable, sent + left, "", "auth/x/login", self.owned)
        self.valid[value] = sent + self.token_ttl
        self._born[value] = sent
        ends = self.valid[value]
        return Token(value, self.token_ttl, self.token_renewable, ends, "", "auth/x/login", self.owned)

    def renew_token(self, token: Token, timeout: float) -> Token:
        sent = self.clock.now
        answer = self._called("renew_token", token.value, token)
        if answer is not None:
            return answer  # type: ignore[no-any-return]
        if self.valid.get(token.value, 0.0) <= sent:
            self.revoke_outside(token.value)
            raise AuthenticationError("the token may not be renewed")
        granted = min(self.token_ttl, self._born[token.value] + self.token_max_ttl - sent)
        self.valid[token.value] = sent + granted
        return Token(
            token.value, granted, token.renewable, sent + granted, token.namespace, token.auth_path, token.owned
        )

    def revoke_token(self, token: Token, timeout: float) -> None:
        self._called("revoke_token", token.value, token)
        self.revoke_outside(token.value)

    def token_is_valid(self, token: Token, timeout: float) -> bool:
        answer = self._called("token_is_valid", token.value, token)
        if answer is not None:
            return bool(answer)
        return not token.value or self.valid.get(token.value, 0.0) > self.clock.now

    def mount_of(self, path: str, token: Token, timeout: float) -> Mount:
        first = path.split("/", 1)[0]
        return Mount(f"{first}/", first, 2 if first == "kv" else None)

    def read(
        self, path: str, token: Token, *, version: int | None, timeout: float, correlation_id: str | None
    ) -> Reading:
        sent = self.clock.now
        answer = self._called("read", path, token)
        if answer is not None:
            return answer  # type: ignore[no-any-return]
        self._know(token)
        self._serial += 1
        mount = self.mount_of(path, token, timeout)
        if "/creds/" in path:
            lease_id = f"{path}/{self._serial}"
            self.leases[lease_id] = (sent + self.lease_ttl, sent, token.value)
            data = {"username": f"user-{self._serial}", "password": f"pass-{self._serial}"}
            return Reading(mount, data, sent, self.age, "", None, None, lease_id, self.lease_ttl, self.lease_renewable)
        if path not in self.data:
            raise SecretNotFound(path, f"there is no secret {path!r}; check the path")
        kv = mount.kv_version is not None
        return Reading(mount, dict(self.data[path]), sent, 0.0, "", 1 if kv else None, None if kv else self.role_ttl)

    def denied(self, path: str, mount: Mount | None) -> SecretAccessDenied:
        return SecretAccessDenied(path, f"the policy does not permit reading {path!r}; add a line")

    def ends_with(self, token: Token, lease_id: str) -> bool:
        return not self.leases_outlive_tokens

    def lease_line(self, call: str, lease_id: str) -> str:
        return f"add a line for sys/leases/{call}"

    def renew_lease(self, lease_id: str, increment: float, token: Token, timeout: float) -> Grant:
        sent = self.clock.now
        answer = self._called("renew_lease", lease_id, token)
        if answer is not None:
            return answer  # type: ignore[no-any-return]
        self._know(token)
        ends, born, of = self.leases.get(lease_id, (0.0, 0.0, ""))
        if ends <= sent:
            self.leases.pop(lease_id, None)
            raise LeaseGone("lease not found")
        granted = min(increment, born + self.lease_max_ttl - sent)
        self.leases[lease_id] = (sent + granted, born, of)
        return Grant(granted, True, sent)

    def revoke_lease(self, lease_id: str, token: Token, timeout: float) -> None:
        self._called("revoke_lease", lease_id, token)
        self._know(token)
        self.leases.pop(lease_id, None)


class Holder:
    """Who reads: a request, or (``unbounded``) the manager outside of any."""

    request_id: str | None = None

    def __init__(self, *, unbounded: bool = False) -> None:
        self.context = ',"request_id":"r"'
        self.unbounded = unbounded
        self.held: list[Holds] = []

    def take(self, holds: Holds) -> None:
        if self.unbounded:
            holds.unbounded = True
            return
        holds.take(self)
        self.held.append(holds)

    def end(self) -> None:
        """The request has ended."""
        for holds in self.held:
            holds.give_back(self)


class Lines:
    """An audit sink that keeps its lines; ``failure`` is what it fails with, as long as that is set."""

    most = 4096

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.failure: Exception | None = None

    def write(self, data: bytes, _now: float | None = None, /) -> int:
        if self.failure is not None:
            raise self.failure
        self.lines += [json.loads(line) for line in data.splitlines()]
        return len(data)

    def after_fork(self) -> None:
        """Nothing to do."""


class _Faults(logging.Handler):
    """Fails the test where a task ended in an error that nobody foresaw."""

    def emit(self, record: logging.LogRecord) -> None:
        if "unexpectedly" in record.getMessage():
            raise AssertionError(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)

    def __enter__(self) -> None:
        logging.getLogger("vault_middleware").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("vault_middleware").removeHandler(self)


class World:
    """An engine with everything around it; *settings* are those of SecretConfig.

    Without a *pulse* the gauges are not set each half second, which makes long times short.

    Attributes
    ----------
    events
        What was emitted, with the time.
    fetches, renewals
        The jobs of the fetch workers and of the renewer's that wait; None: each is done at once.
    """

    def __init__(
        self,
        *,
        uniform: Callable[[float, float], float] | int = middle,
        pulse: bool = True,
        **settings: Any,
    ) -> None:
        settings.setdefault("namespace", "")
        settings.setdefault("startup", "lazy")
        if settings.get("auth_method") == "token":
            settings.setdefault("token", "token-1")
        self.config = SecretConfig(vault_addr="http://127.0.0.1:1", **settings)
        self.clock = Clock()
        self.client = FakeClient(self.clock)
        self.client.owned = self.config.auth_method not in ("token", "proxy")
        self.client.same_token = self.config.auth_method == "token"
        self.client.proxied = self.config.auth_method == "proxy"
        self.registry = CollectorRegistry()
        self.metrics = Metrics.for_registry(self.registry)
        self.lines = Lines()
        self.events: list[tuple[float, Event]] = []
        self.callbacks: dict[str, list[Callable[[Secret], object]]] = {}
        self.probes: dict[str, Callable[[Secret], object]] = {}
        self.fetches: list[Callable[[], object]] | None = None
        self.engine = Engine(
            self.config,
            emit=self._emit,
            audit=Audit(self.lines, mode="strict", clock=self.clock),
            metrics=self.metrics,
            callbacks=self.callbacks,
            probes=self.probes,
            clock=self.clock,
            uniform=random.Random(uniform).uniform if isinstance(uniform, int) else uniform,
            client=self.client,  # type: ignore[arg-type]
        )
        self.probe_due: float | None = None
        self.engine.breaker._start = self._suspected  # type: ignore[method-assign]
        self.engine.verification._wait = self._pause
        self.engine.workers.submit = self._fetch  # type: ignore[method-assign]
        self.engine.renewer._workers.submit = self._renew  # type: ignore[method-assign]
        self.engine.renewer.start = lambda: None  # type: ignore[method-assign]
        self.renewals: list[Callable[[], object]] | None = None
        self._faults = _Faults()
        self.engine.start()
        if not pulse:
            self.engine.renewer.cancel(self.engine._pulse_task)

    def _emit(self, event: Event) -> None:
        self.events.append((self.clock.now, event))
        self.metrics(event)

    def _suspected(self) -> None:
        self.probe_due = self.clock.now

    def _pause(self, seconds: float) -> bool:
        """What a fetch waits between two tries of a probe."""
        self.clock.now += seconds
        return self.engine.closing.is_set()

    def _fetch(self, group: str, deadline: float, job: Callable[[], object]) -> bool:
        if self.engine.workers._closed:
            return False
        if self.fetches is None:
            job()
        else:
            self.fetches.append(job)
        return True

    def _renew(self, group: str, deadline: float, job: Callable[[], object]) -> bool:
        if self.renewals is None:
            job()
        else:
            self.renewals.append(job)
        return True

    # -- the time

    def run_until(self, when: float) -> None:
        """Let the time pass until *when*; all that comes due is run at its time."""
        with self._faults:
            self._steps_until(when)

    def _steps_until(self, when: float) -> None:
        bound = HOT + int(4 * (when - self.clock.now))
        for _ in range(bound):
            due = self.engine.renewer.run_due(self.clock.now)
            if self.probe_due is not None and self.probe_due <= self.clock.now:
                pause = self.engine.breaker._look()
                self.probe_due = None if pause is None else self.clock.now + pause
                continue
            times = [each for each in (due, self.probe_due) if each is not None]
            upcoming = min(times, default=float("inf"))
            if upcoming > when:
                self.clock.now = max(self.clock.now, when)
                return
            self.clock.now = max(self.clock.now, upcoming)
        raise AssertionError(f"a hot loop: {bound} steps, and it is {self.clock.now}; last: {self.client.calls[-5:]}")

    def run(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self.run_until(self.clock.now + seconds)

    @property
    def now(self) -> float:
        return self.clock.now

    # -- what a request does

    def read(self, key: Key = KEY, by: Holder | None = None, **options: Any) -> Entry:
        """One read through the gate."""
        options = {"dynamic": False, "fresh": False, "timeout": None, **options}
        by = by or Holder()
        return self.engine.gate.read(key, options["dynamic"], options["fresh"], options["timeout"], by)

    def creds(self, by: Holder | None = None, path: str = CREDS) -> DynamicSecret:
        """One read of a dynamic secret; without a holder, by a request that ends at once."""
        holder = by or Holder()
        secret = self.read(path, holder, dynamic=True).secret
        if by is None:
            holder.end()
        assert isinstance(secret, DynamicSecret)
        return secret

    def value(self, path: str = KEY) -> Any:
        """The value of a static secret."""
        return self.read(path).secret["value"]

    def leased(self, path: str = CREDS) -> Leased:
        """The current lease of *path*."""
        leased = self.engine.leases.of(self.engine.cache.entries.get(path))
        assert leased is not None
        return leased

    # -- what came of it

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for _, event in self.events if isinstance(event, kind)]

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value; 0 where it was never set."""
        return self.registry.get_sample_value(name, labels) or 0.0
