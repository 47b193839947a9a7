"""A campaign of hostile answers against real managers: every endpoint that the client uses, one wrong answer after another.

A lane is a server and a manager of its own, and a seed; several run side by side, since some answers take the client's
whole time. Between the wrong answers everything else is answered well, so that each of them meets a manager in full use.
"""

from __future__ import annotations

import gc
import json
import logging
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from tests.scripted import Exchange, Reply, ScriptedServer, answer
from vault_middleware import RequestSecrets, Secret, SecretConfig, SecretsManager, errors
from vault_middleware.errors import AccessorClosed, ConfigurationError, SecretError, VaultMiddlewareError

from .hostile import PLANTED, hostile

__all__ = ["Report", "Vault", "campaign", "endpoint_of"]

#: Seconds that a getter may take, and how much later than that it may end on a machine that is busy.
BUDGET, NOISE = 0.4, 5.0

#: The most that the memory may grow while it goes on, in MB: some bodies of 32 MB at once, read and parsed.
GROWTH = 1200

KEPT, LEASED = "app/kept", "db/creds/kept"

_TTL = 3600


def endpoint_of(method: str, path: str) -> str:
    """The name of what a request asks for."""
    for part, name in (
        ("/sys/internal/ui/mounts/", "mount"),
        ("/sys/internal/ui/mounts", "namespace"),
        ("/auth/kubernetes/login", "login"),
        ("/auth/token/renew-self", "renew_token"),
        ("/auth/token/lookup-self", "lookup_token"),
        ("/auth/token/revoke-self", "revoke_token"),
        ("/sys/leases/renew", "renew_lease"),
        ("/sys/leases/revoke", "revoke_lease"),
        ("/sys/health", "health"),
        ("/db/", "lease"),
        ("/data/", "kv2"),
    ):
        if part in path:
            return name
    return "kv1"


class Vault:
    """The good answers, and for one endpoint at a time the wrong one."""

    def __init__(self) -> None:
        self.wrong: dict[str, Reply] = {}
        self.given: Counter[str] = Counter()
        self.forbidden: set[str] = set()
        self._leases = 0

    def good(self, endpoint: str, path: str) -> Any:
        """What a real server would say, with the parts that the client reads."""
        match endpoint:
            case "health":
                return {"initialized": True, "sealed": False, "standby": False, "version": "1.17.0"}
            case "namespace":
                return {"data": {"secret": {"app/": {"type": "kv"}}}}
            case "login" | "renew_token":
                return {"auth": {"client_token": "hvs.good", "lease_duration": _TTL, "renewable": True}}
            case "lookup_token":
                return {"data": {"ttl": _TTL, "creation_ttl": _TTL, "renewable": True}}
            case "mount":
                name = path.rsplit("/mounts/lotabots/")[1].partition("/")[0]
                kind, version = ("database", None) if name == "db" else ("kv", "1" if name == "old" else "2")
                options = None if version is None else {"version": version}
                return {"data": {"path": f"lotabots/{name}/", "type": kind, "options": options}}
            case "lease":
                self._leases += 1
                return {
                    "request_id": f"r-{self._leases}",
                    "lease_id": f"lotabots{path}/{self._leases}",
                    "lease_duration": _TTL,
                    "renewable": True,
                    "data": {"username": f"u-{self._leases}", "password": f"p-{self._leases}"},
                }
            case "renew_lease":
                return {"lease_id": "x", "lease_duration": _TTL, "renewable": True}
            case "kv2":
                data = {"data": {"value": "good"}, "metadata": {"version": 1, "destroyed": False, "deletion_time": ""}}
                return {"request_id": "r", "lease_id": "", "lease_duration": 0, "renewable": False, "data": data}
            case "kv1":
                return {"request_id": "r", "lease_id": "", "lease_duration": 2764800, "data": {"value": "good"}}
        return None

    def __call__(self, exchange: Exchange) -> None:
        path = exchange.request.path
        endpoint = endpoint_of(exchange.request.method, path)
        reply = self.wrong.get(endpoint)
        if reply is not None:
            try:
                reply(exchange)
            finally:
                self.given[endpoint] += 1
            return
        if path.rpartition("/")[2] in self.forbidden:
            answer({"errors": ["permission denied"]}, 403)(exchange)
            return
        body = self.good(endpoint, path)
        answer(body, 204 if body is None else 200)(exchange)


@dataclass
class Report:
    """What a campaign met; it has held where ``problems`` is empty."""

    answers: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0
    requests: int = 0
    grown: int = 0
    kept: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{sum(self.answers.values())} hostile answers in {self.seconds:.0f} s, {self.requests} requests in all",
            f"  at: {dict(self.answers.most_common())}",
            f"  of: {dict(self.kinds.most_common())}",
            f"  ended in: {dict(self.ends.most_common())}",
            f"  slowest getter {self.slowest:.2f} s, budget {BUDGET} s",
            f"  memory at most {self.grown} MB over the start's, {self.kept} MB at the end",
            *(f"PROBLEM {problem}" for problem in self.problems[:20]),
        ]
        return "\n".join(lines)


class Lane:
    """One server, one manager, one seed."""

    def __init__(self, seed: int, folder: Path, report: Report) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.report = report
        self.vault = Vault()
        self.serial = 0
        self.now = ""
        self.token = folder / f"token-{seed}"
        self.token.write_text("a.service.account.token")
        self.audit = folder / f"audit-{seed}.jsonl"

    def run(self, answers: int) -> None:
        """Meet *answers* hostile answers."""
        with ScriptedServer() as server:
            server.on("*", self.vault)
            self.server = server
            with self._manager() as manager:
                self.manager = manager
                self._until(lambda: self._had(KEPT) and self._had(LEASED), "there is something to keep")
                self.first = manager.get_secret(KEPT)
                steps = [
                    (5, self._read),
                    (5, self._lease),
                    (3, self._fresh),
                    (3, self._mount),
                    (2, self._renew_token),
                    (2, self._renew_lease),
                    (2, self._revoke_lease),
                    (2, self._lookup),
                    (2, self._health),
                    (2, self._login),
                    (1, self._close),
                ]
                work = [step for weight, step in steps for _ in range(weight)]
                while sum(self.vault.given.values()) < answers and len(self.report.problems) < 20:
                    self._one(self.chance.choice(work))
                    if len(server.requests) > 500:
                        self._forget()
            self._forget()
        self.report.answers.update(self.vault.given)

    def _had(self, path: str) -> bool:
        try:
            return bool(self.manager.get_secret(path))
        except VaultMiddlewareError:
            return False

    def _forget(self) -> None:
        """Let go of what the scripted server keeps for tests that look at each request."""
        self.report.requests += len(self.server.requests)
        self.server.requests.clear()
        self.server._threads[:] = [thread for thread in self.server._threads if thread.is_alive()]

    def _manager(self, **more: Any) -> SecretsManager:
        config = SecretConfig(
            vault_addr=self.server.url,
            kubernetes_token_path=str(self.token),
            auth_namespace=more.pop("auth_namespace", ""),
            startup="lazy",
            audit_log=str(self.audit),
            client_timeout=0.3,
            request_timeout=BUDGET,
            shutdown_timeout=0.5,
            max_retries=self.seed % 2,
            cache_ttl=3600.0,
            lease_min_validity=0.05,
            **more,
        )
        manager = SecretsManager(config, registry=CollectorRegistry())
        manager._engine.breaker._uniform = lambda low, high: 0.01  # so that a campaign does not wait for the next probe
        return manager

    # -- one step

    def _one(self, step: Callable[[], None]) -> None:
        self.serial += 1
        self.now = f"seed {self.seed} step {self.serial} {step.__name__}"
        engine = self.manager._engine
        self._until(lambda: not engine.breaker.down, "the server is up again")
        step()
        self.vault.wrong.clear()
        self._until(lambda: not engine.breaker.down, "the server is up again")
        try:
            kept = self.manager.get_secret(KEPT)
            if dict(kept) != dict(self.first):
                self._problem(f"the cache serves something else: {kept!r}")
        except VaultMiddlewareError as error:
            self._problem(f"the cache does not serve what it had: {error!r}")

    def _wrong(self, *endpoints: str) -> None:
        for endpoint in endpoints:
            reply, kind = hostile(
                self.chance, self.vault.good(endpoint, f"/v1/x/mounts/lotabots/m{self.serial}/x") or {"warnings": None}
            )
            self.vault.wrong[endpoint] = reply
            self.report.kinds[kind] += 1
            self.now += f" {endpoint}:{kind}"

    def _get(self, getter: Callable[[], Secret], *, of: type[VaultMiddlewareError] = SecretError) -> None:
        """Call a getter: a secret or an error of the documented kind, within the budget."""
        before = time.monotonic()
        try:
            secret = getter()
            self.report.ends[type(secret).__name__] += 1
            if PLANTED in repr(secret.path):
                self._problem("the path is the server's")
            hash(str(secret["value"] if "value" in secret else sorted(secret)))
        except of as error:
            self._error(error)
        except BaseException as error:
            self._problem(f"{type(error).__name__}: {error}")
        took = time.monotonic() - before
        self.report.slowest = max(self.report.slowest, took)
        if took > BUDGET + NOISE:
            self._problem(f"a getter took {took:.1f} s")

    def _error(self, error: VaultMiddlewareError) -> None:
        self.report.ends[type(error).__name__] += 1
        if type(error).__name__ not in errors.__all__ or isinstance(error, ConfigurationError | AccessorClosed):
            self._problem(f"an error that is none of the documented: {error!r}")
        if PLANTED in repr(error) or len(repr(error)) > 4000:
            self._problem(f"an error in the server's words: {str(error)[:300]}")
        if error.__cause__ is not None or error.__context__ is not None:
            self._problem(f"an error with a cause: {error!r}")

    def _problem(self, text: str) -> None:
        self.report.problems.append(f"{self.now}: {text}")

    def _until(self, happened: Callable[[], object], what: str, seconds: float = 15.0) -> None:
        pause, deadline = threading.Event(), time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                self._problem(f"waited in vain until {what}")
                return
            pause.wait(0.002)

    def _until_given(self, endpoint: str, before: int) -> None:
        """Wait until the wrong answer has been given, and taken."""
        client = self.manager._engine.client
        self._until(lambda: self.vault.given[endpoint] > before, f"{endpoint} is asked")
        self._until(lambda: client.oldest_call(time.monotonic()) == 0.0, "no call is under way")

    # -- the endpoints

    def _read(self) -> None:
        path = self.chance.choice([f"app/x{self.serial}", f"old/x{self.serial}"])
        self._wrong("kv2" if path.startswith("app") else "kv1")
        self._get(lambda: self.manager.get_secret(path))
        self._get(lambda: self.manager.get_dynamic_secret(path))

    def _lease(self) -> None:
        path = f"db/creds/r{self.serial % 5}"
        self._wrong("lease")
        self._get(lambda: self.manager.get_secret(path, fresh=True))
        self._get(lambda: self.manager.get_dynamic_secret(path))

    def _fresh(self) -> None:
        """A stale value outlives whatever is no plain refusal."""
        path = "app/fresh"
        self._get(lambda: self.manager.get_secret(path, fresh=True))
        if (old := self.manager._engine.cache.entries.get(path)) is None:
            return  # on a machine that is too busy for the client's time
        before = old.secret
        self._wrong("kv2")
        self._get(lambda: self.manager.get_secret(path, fresh=True))
        if (entry := self.manager._engine.cache.entries.get(path)) is None:
            refusal = self.manager._engine.cache.refusal(path)
            if not isinstance(refusal, errors.SecretNotFound | errors.SecretAccessDenied):
                self._problem(f"what was cached is gone, and no refusal is known: {refusal!r}")
        elif entry.secret is not before and self.vault.given["kv2"] == 0:
            self._problem("replaced by nothing")

    def _mount(self) -> None:
        self._wrong("mount")
        self._get(lambda: self.manager.get_secret(f"m{self.serial}/x"))

    def _renew_token(self) -> None:
        engine = self.manager._engine
        generation = engine.session.current
        if generation is None or generation.task is None:
            self._get(lambda: self.manager.get_secret("app/any", fresh=True))
            return
        before = self.vault.given["renew_token"]
        if generation.token.renewable:
            self._wrong("renew_token")
            engine.renewer.schedule(generation.task, time.monotonic())
            self._until(
                lambda: self.vault.given["renew_token"] > before or engine.session.current is not generation, "renewed"
            )
        self.vault.wrong.clear()
        # Whatever it was answered: there is a token soon, and one that is good.
        self._get(lambda: self.manager.get_secret("app/any", fresh=True))

    def _renew_lease(self) -> None:
        engine = self.manager._engine
        self._get(lambda: self.manager.get_dynamic_secret(LEASED))
        leased = engine.leases.current(LEASED)
        if leased is None or not leased.lease.renewable or leased.generation.retired:
            self._get(lambda: self.manager.get_secret(LEASED, fresh=True))
            return
        before = self.vault.given["renew_lease"]
        self._wrong("renew_lease")
        engine.renewer.schedule(leased.task, time.monotonic())
        self._until_given("renew_lease", before)
        self.vault.wrong.clear()
        self._get(lambda: self.manager.get_dynamic_secret(LEASED))

    def _revoke_lease(self) -> None:
        path = f"db/creds/s{self.serial % 3}"
        engine = self.manager._engine
        self._get(lambda: self.manager.get_secret(path, fresh=True))
        before = self.vault.given["revoke_lease"]
        if not engine.keeper.may_revoke:
            engine.keeper.may_revoke = True  # the server has said 403 once, and would be asked no more
        with RequestSecrets(self.manager) as request:
            self._get(lambda: request.get_secret(path, fresh=True))
            self._wrong("revoke_lease")
            self._get(lambda: request.get_secret(path, fresh=True))
        if any(leased.path == path and leased.holds.draining for leased in engine.leases.live()):
            self._until(
                lambda: (
                    self.vault.given["revoke_lease"] > before
                    or not any(
                        leased.path == path and leased.holds.draining and not leased.holds.unbounded
                        for leased in engine.leases.live()
                    )
                ),
                "revoked",
            )

    def _lookup(self) -> None:
        name = f"f{self.serial}"
        self.vault.forbidden.add(name)
        self._wrong("lookup_token")
        self._get(lambda: self.manager.get_secret(f"app/{name}"))
        self.vault.wrong.clear()
        self.vault.forbidden.discard(name)

    def _health(self) -> None:
        before = self.vault.given["health"]
        self._wrong("health")
        breaker = self.manager._engine.breaker

        def asked() -> bool:
            breaker._trusted_until = float("-inf")  # a good answer of a moment ago is trusted for a while
            breaker.suspect()
            return self.vault.given["health"] > before

        self._until(asked, "health is asked")
        self._get(lambda: self.manager.get_secret(f"app/h{self.serial}"))

    def _login(self) -> None:
        """A manager of its own, which meets the answer at its first log-in, eager or lazy."""
        endpoint = self.chance.choice(["login", "login", "namespace"])
        self._wrong(endpoint)
        manager = self._manager(auth_namespace=None if endpoint == "namespace" else "")
        try:
            with manager:
                self._get(lambda: manager.get_secret("app/login"))
                self.vault.wrong.clear()
                self._get(lambda: manager.get_secret("app/login"))
        except BaseException as error:
            self._problem(f"a manager with a bad log-in: {type(error).__name__}: {error}")

    def _close(self) -> None:
        """A stop within its time, whatever is said to the revocations."""
        manager = self._manager()
        manager.start()
        self._get(lambda: manager.get_dynamic_secret("db/creds/close"))
        self._wrong("revoke_lease", "revoke_token")
        before = time.monotonic()
        manager.close()
        if (took := time.monotonic() - before) > 0.5 + 2.0 + NOISE:
            self._problem(f"the stop took {took:.1f} s")


class _Log(logging.Handler):
    """What is written to the operational log, where it is what no log should hold."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.DEBUG)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if PLANTED in text or "please report" in text or record.exc_info or len(text) > 4000 or "\n" in text:
            self.report.problems.append(f"log: {text[:400]} {record.exc_info and record.exc_info[1]!r}")


def _ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vault-middleware")]


def _resident() -> int:
    """What the process has in memory now, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    return 0


def campaign(answers: int, folder: Path, *, seed: int = 1, lanes: int = 8) -> Report:
    """Meet *answers* hostile answers in *lanes* lanes, and see what is left afterwards."""
    report = Report()
    before, started = _resident(), time.monotonic()
    threads = len(_ours())
    handler = _Log(report)
    logger = logging.getLogger("vault_middleware")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    all_lanes = [Lane(seed * 1000 + number, folder, report) for number in range(lanes)]
    try:
        with ThreadPoolExecutor(lanes) as pool:
            for done in [pool.submit(lane.run, -(-answers // lanes)) for lane in all_lanes]:
                done.result()
        deadline = time.monotonic() + 15
        while len(_ours()) > threads and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        if len(_ours()) > threads:
            report.problems.append(f"threads are left: {[thread.name for thread in _ours()]}")
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    for lane in all_lanes:
        for line in lane.audit.read_bytes().splitlines():
            if len(line) >= 4096 or not isinstance(json.loads(line), dict):
                report.problems.append(f"an audit line that is none: {line[:200]!r}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    report.grown = max(0, peak - before)
    gc.collect()
    report.kept = _resident() - before
    if report.grown > GROWTH:
        report.problems.append(f"the memory grew by {report.grown} MB")
    report.seconds = time.monotonic() - started
    return report
