"""The demo: real servers, a gateway under uvicorn, and the whole life of a secret before your eyes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from ..devstack import DevStack
from ..devstack.layout import Deployment
from ..devstack.process import free_port

__all__ = ["Demo"]

#: Seconds; short, so that all of it fits into a minute.
LEASE_TTL, LEASE_MAX_TTL, TOKEN_TTL = 5, 12, 60

#: How long the demo waits for one thing to happen, in seconds.
PATIENCE = 30.0

CONTRACT = ("vault_secret_requests_total", "vault_secret_cache_hits_total", "vault_lease_renewal_errors_total")


class Failed(Exception):
    """Something that was to be shown did not happen."""


class Stream:
    """Requests without a pause, on threads of its own; it notes which database users it met and what failed."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self._url = url
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.requests = 0
        self.failures: list[str] = []
        self.users: list[str] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with httpx.Client(trust_env=False, timeout=10) as client:
            while not self._stop.is_set():
                problem = user = None
                try:
                    answer = client.get(f"{self._url}/who")
                    user = answer.json()["database_user"] if answer.status_code == 200 else None
                    problem = None if user else f"status {answer.status_code}"
                except (httpx.HTTPError, ValueError) as error:
                    problem = type(error).__name__
                with self._lock:
                    self.requests += 1
                    if problem:
                        self.failures.append(problem)
                    elif user and user not in self.users:
                        self.users.append(user)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(15)


class Demo:
    """See the module's text.

    Parameters
    ----------
    once
        End after the last step instead of leaving the gateway up.
    deployment
        How the servers are set up; see :class:`~vault_middleware.devstack.DevStack`.
    """

    def __init__(self, *, once: bool, deployment: Deployment = "namespace") -> None:
        self._once = once
        self._deployment = deployment
        self._began = time.monotonic()

    def run(self) -> int:
        """Show everything; 0 if all of it happened."""
        self._say("Starting a real OpenBao, a real PostgreSQL and a TokenReview endpoint on this machine …")
        with (
            tempfile.TemporaryDirectory(prefix="vault-middleware-demo-") as folder,
            DevStack(
                deployment=self._deployment,
                lease_ttl=LEASE_TTL,
                lease_max_ttl=LEASE_MAX_TTL,
                token_ttl=TOKEN_TTL,
                token_max_ttl=10 * TOKEN_TTL,
            ) as stack,
        ):
            self._stack = stack
            self._audit = Path(folder, "audit.jsonl")
            where = f"OpenBao at {stack.bao.address}, PostgreSQL on port {stack.postgres.port}"
            self._done(f"{where}, deployment {self._deployment!r}")
            try:
                self._show()
            except Failed as failed:
                print(f"\n✗ {failed}\n", flush=True)
                return 1
        self._say("")
        self._done("All of it happened.")
        return 0

    # -- the steps

    def _show(self) -> None:
        environ = {
            **self._stack.environ,
            "VAULT_AUDIT_LOG": str(self._audit),
            "DATABASE_HOST": self._stack.postgres.host,
            "DATABASE_PORT": str(self._stack.postgres.port),
        }
        self._say("\nStarting a gateway under uvicorn; all its configuration is this environment:")
        for name, value in environ.items():
            print(f"      {name}={value}")
        gateway, url = self._start_gateway(environ)
        try:
            self._reads(url)
            self._rotation(url)
            self._audit_lines()
            self._metrics(url)
            if not self._once:
                self._stay(url)
        finally:
            self._stop(gateway)
        self._nothing_left(gateway)

    def _start_gateway(self, environ: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "vault_middleware.cli.demo_gateway:app", "--port", str(port)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("VAULT_", "BAO_"))}
        gateway = subprocess.Popen([*command, "--log-level", "warning"], env={**clean, **environ})
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            if gateway.poll() is not None:
                raise Failed("the gateway did not start; its own words are above")
            try:
                return httpx.get(f"{url}/metrics", trust_env=False).status_code == 200
            except httpx.HTTPError:
                return False

        self._wait(answers, "the gateway to answer")
        login = self._event("login")
        self._done(f"Log-in with the service-account token at {login['auth_path']}, as role {login['role']}")
        return gateway, url

    def _reads(self, url: str) -> None:
        self._say("\nReading secrets:")
        answer = httpx.get(f"{url}/key", trust_env=False)
        if answer.status_code != 200:
            raise Failed(f"the first read was answered with {answer.status_code}")
        first = answer.json()
        again = min(httpx.get(f"{url}/key", trust_env=False).json()["microseconds"] for _ in range(20))
        outcomes = [line["outcome"] for line in self._lines("secret_access") if line["kind"] == "static"]
        if outcomes[:1] != ["miss"] or set(outcomes[1:]) != {"hit"}:
            raise Failed(f"one miss and then hits were to come, and it was {outcomes}")
        self._done(f"First read of api-gateway/api-key: a miss, {first['microseconds'] / 1000:.1f} ms from OpenBao")
        self._done(f"{len(outcomes) - 1} more: all hits, {again:.1f} µs from the cache, each with its audit line")

    def _rotation(self, url: str) -> None:
        self._say(f"\nA stream of requests logs in to PostgreSQL (lease {LEASE_TTL} s, max TTL {LEASE_MAX_TTL} s):")
        stream = Stream(url)
        try:
            self._wait(lambda: stream.users, "the first database user")
            self._done(f"Dynamic user {stream.users[0]}")
            renewed = self._event("lease_renewed")
            self._done(f"Renewed in the background: good for {renewed['ttl']:.0f} s more")
            rotated = self._event("lease_rotated")
            self._wait(lambda: len(stream.users) > 1, "the next database user")
            self._done(f"Rotated, because {rotated['reason']}: new user {stream.users[1]}")
            self._event("lease_revoked")
            self._wait(lambda: stream.users[0] not in self._stack.postgres.users(), "the old user to go")
            self._done("The old user was revoked after its last request, and is gone from PostgreSQL")
        finally:
            stream.stop()
        if stream.failures:
            raise Failed(f"{len(stream.failures)} of {stream.requests} requests failed: {stream.failures[:3]}")
        self._done(f"{stream.requests} requests meanwhile, 0 failed")

    def _audit_lines(self) -> None:
        self._say("\nThe audit log (no value, no token, leases as salted hashes):")
        shown: set[tuple[str, str]] = set()
        for text in self._written():
            line = json.loads(text)
            kind = (line["event"], line.get("outcome", ""))
            if kind not in shown:
                shown.add(kind)
                print(f"      {text}")
        secrets = [value for value in self._stack.secret_values() if value in self._audit.read_text()]
        if secrets:
            raise Failed("a secret's value stands in the audit log")

    def _metrics(self, url: str) -> None:
        self._say("\nThe metrics:")
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        for name in CONTRACT:
            lines = [line for line in text.splitlines() if line.startswith(f"{name} ")]
            if not lines:
                raise Failed(f"the metric {name} is not there")
            print(f"      {lines[0]}")

    def _stay(self, url: str) -> None:
        self._say(f"\nThe gateway stays up. Try, from another terminal:\n\n      curl {url}/who\n      curl {url}/key")
        print(f"      curl -s {url}/metrics | grep ^vault_\n      tail -f {self._audit}")
        print(f"      kill -STOP {self._stack.bao.pid}     # an outage; -CONT ends it\n\n   Ctrl-C stops everything.")
        ended = threading.Event()
        try:
            ended.wait()
        except KeyboardInterrupt:
            return

    def _stop(self, gateway: subprocess.Popen[bytes]) -> None:
        self._say("\nStopping the gateway with SIGTERM:")
        gateway.send_signal(signal.SIGTERM)
        try:
            gateway.wait(20)
        except subprocess.TimeoutExpired:
            gateway.kill()
            gateway.wait()

    def _nothing_left(self, gateway: subprocess.Popen[bytes]) -> None:
        if gateway.returncode not in (0, -signal.SIGTERM):
            raise Failed(f"the gateway ended with {gateway.returncode}")
        self._wait(lambda: not self._stack.leases(), "the leases to be revoked", 5)
        self._wait(lambda: not self._stack.postgres.users(), "the database users to go", 5)
        stopped = self._event("stop")
        self._done(f"Closed by its {stopped['hook']}: no lease left in OpenBao, no user of ours in PostgreSQL")

    # -- helpers

    def _say(self, text: str) -> None:
        print(text, flush=True)

    def _done(self, text: str) -> None:
        print(f"  ✓ {time.monotonic() - self._began:5.1f} s  {text}", flush=True)

    def _lines(self, event: str | None = None) -> Iterator[dict[str, Any]]:
        for text in self._written():
            line = json.loads(text)
            if event is None or line["event"] == event:
                yield line

    def _written(self) -> list[str]:
        """The audit lines so far; of one that is being written, a reader may see a part."""
        whole, _, _ = (self._audit.read_text() if self._audit.exists() else "").rpartition("\n")
        return whole.splitlines()

    def _event(self, event: str) -> dict[str, Any]:
        self._wait(lambda: next(self._lines(event), None), f"the audit line {event!r}")
        return next(self._lines(event))

    @staticmethod
    def _wait(happened: Callable[[], object], what: str, seconds: float | None = None) -> None:
        seconds = PATIENCE if seconds is None else seconds
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while not happened():
            if time.monotonic() > deadline:
                raise Failed(f"waited {seconds:.0f} s for {what} in vain")
            pause.wait(0.05)
