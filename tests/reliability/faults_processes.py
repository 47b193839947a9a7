"""Faults around requests that last and processes that fork."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.integration.support import DYNAMIC, STATIC, answers, eventually, serve
from tests.servers.ledger import ledger
from vault_middleware import SecretsManager, VaultMiddleware
from vault_middleware.devstack import DevStack
from vault_middleware.devstack.process import wait_until
from vault_middleware.errors import SecretUnavailable

from .load import Load, Report, watched
from .table import fault, settle, wait

APPS = Path(__file__).parent.parent / "integration"
LEASED = "leased/one"


# -- holders that last


class Holder:
    """One long connection: the credential that it has read first must work to its own max TTL."""

    def __init__(self, report: Report, stack: DevStack, kind: str, max_ttl: float, seconds: float) -> None:
        self._report = report
        self._stack = stack
        self._kind = kind
        self._max_ttl = max_ttl
        self._seconds = seconds
        self.paused = threading.Event()
        self.users: list[str] = []
        self.uses = 0

    async def app(self, scope: dict[str, Any], _receive: object, send: Callable[[dict[str, Any]], Any]) -> None:
        """An ASGI application that lasts: a streaming body, or a websocket."""
        secrets = scope["state"]["secrets"]
        first = await secrets.aget_dynamic_secret(DYNAMIC)
        began = time.monotonic()
        self.users.append(first["username"])
        if self._kind == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        else:
            await send({"type": "websocket.accept"})
        while (now := time.monotonic() - began) < self._seconds:
            await asyncio.sleep(0.2)
            if self.paused.is_set():
                continue
            credential = first
            if now > self._max_ttl - 1.5:  # its own max TTL is over: the current one from here on
                try:
                    with secrets.scope():
                        credential = await secrets.aget_dynamic_secret(DYNAMIC)
                except SecretUnavailable:
                    continue  # PostgreSQL has only just come back
            if self.paused.is_set():
                continue
            works = await asyncio.to_thread(
                self._stack.postgres.can_log_in, credential["username"], credential["password"]
            )
            if self.paused.is_set():
                continue
            self.uses += 1
            if credential["username"] not in self.users:
                self.users.append(credential["username"])
            self._report.require(works, f"{self._kind}: the credential of a holder failed after {now:.1f} s")
            if self._kind == "http":
                await send({"type": "http.response.body", "body": b".", "more_body": True})
            else:
                await send({"type": "websocket.send", "text": "."})

    def run(self, manager: SecretsManager) -> threading.Thread:
        """Run one connection through the middleware, on an event loop of its own."""
        middleware = VaultMiddleware(self.app, manager=manager)  # type: ignore[arg-type]

        async def connection() -> None:
            async def receive() -> dict[str, Any]:
                return {"type": f"{self._kind}.connect"}

            async def send(_message: dict[str, Any]) -> None:
                return

            scope = {"type": self._kind, "headers": [], "path": "/"}
            await middleware(scope, receive, send)  # type: ignore[arg-type]

        thread = threading.Thread(target=lambda: asyncio.run(connection()), daemon=True)
        thread.start()
        return thread


@fault
def holders_that_last(short: bool) -> Report:
    ttl, max_ttl, long, body, pause = (3, 9, 20, 7, 4) if short else (5, 20, 60, 20, 10)
    report = Report(
        "holders that last",
        f"a {long} s websocket and a {body} s streaming body, lease {ttl} s (max {max_ttl} s), "
        f"PostgreSQL silent (SIGSTOP) for {pause} s in the middle, a leased key of 4 s beside it",
    )
    with DevStack(lease_ttl=ttl, lease_max_ttl=max_ttl) as stack:
        stack.mount_kv("leased", version=1, leased=True)
        stack.put_secret(LEASED, {"value": "x", "ttl": "4s"})
        stack.permit("leased/*", "read")
        with (
            watched(report, stack) as manager,
            Load(manager, stack, report, dynamics=(LEASED, DYNAMIC)) as load,
        ):
            holders = [Holder(report, stack, "websocket", max_ttl, long), Holder(report, stack, "http", max_ttl, body)]
            threads = [holder.run(manager) for holder in holders]
            wait(max_ttl + 1.5)  # past the first one's end: the websocket has been given the next by now
            load.accept = lambda error: isinstance(error, SecretUnavailable) and error.path == DYNAMIC
            load.log_in = False
            for holder in holders:
                holder.paused.set()
            wait(0.3)
            stack.postgres.pause()
            wait(pause)
            stack.postgres.resume()
            eventually(lambda: _logs_in(manager, stack), "a credential that works", 20)
            load.accept = lambda _error: False
            load.log_in = True
            for holder in holders:
                holder.paused.clear()
            for thread in threads:
                thread.join(long + 30)
            report.require(not any(thread.is_alive() for thread in threads), "a holder hangs")
    for holder in holders:
        report.notes.append(f"{holder._kind}: {holder.uses} uses of {len(holder.users)} credentials")
    report.notes.append(f"{load.accepted} reads of the database's role refused while it was silent and its lease over")
    report.require(len(holders[0].users) >= 2, "the websocket was never given the next credential")
    settle(report)
    return report


def _logs_in(manager: SecretsManager, stack: DevStack) -> bool:
    try:
        credential = manager.get_dynamic_secret(DYNAMIC)
    except SecretUnavailable:
        return False
    return stack.postgres.can_log_in(credential["username"], credential["password"])


# -- fork


def _in_child(work: Callable[[], object]) -> str:
    """What *work* gives in a forked child, as text; the child never returns."""
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what this is about
        pid = os.fork()
    if pid == 0:
        said = "nothing"
        try:
            said = json.dumps(work())
        except BaseException as error:
            said = repr(error)
        finally:
            os.write(writes, said.encode())
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@fault
def fork_with_a_live_manager(short: bool) -> Report:
    times = 4 if short else 20
    report = Report("fork with a live manager", f"{times} children under load; each reads, and closes in order")
    with DevStack() as stack:
        with watched(report, stack) as manager, Load(manager, stack, report):
            before = manager.get_dynamic_secret(DYNAMIC)["username"]

            def child() -> list[str]:
                with manager:
                    static = manager.get_secret(STATIC)["value"]
                    user = manager.get_dynamic_secret(DYNAMIC)
                    if not stack.postgres.can_log_in(user["username"], user["password"]):
                        raise AssertionError("the child's credential does not work")
                    return [static, user["username"]]

            users = set()
            for _ in range(times):
                said = _in_child(child)
                try:
                    static, user = json.loads(said)
                except ValueError:
                    report.problems.append(f"a child failed: {said}")
                    continue
                report.require(static == manager.get_secret(STATIC)["value"], "a child read something else")
                users.add(user)
            report.require(before not in users, "a child used its parent's lease")
            report.require(len(users) == times, "two children shared a lease")
            eventually(lambda: stack.postgres.users() == [before], "the children's users to go", 5)
            after = manager.get_dynamic_secret(DYNAMIC)
            report.require(after["username"] == before, "the parent's lease did not stay")
            report.require(
                stack.postgres.can_log_in(before, after["password"]), "the parent's credential does not work"
            )
        log = ledger(stack)
        report.calls = log.requests  # the children's too
        report.require(len(log.tokens) == times + 1, f"{len(log.tokens)} log-ins for {times} children and their parent")
        report.require(not log.kept, f"{len(log.kept)} tokens were not revoked")
        report.notes.append(f"{len(log.tokens)} log-ins with the children's, {len(log.revoked)} tokens revoked")
    settle(report)
    return report


@fault
def preloaded_workers_one_killed(short: bool) -> Report:
    ttl = 4 if short else 10
    report = Report(
        "gunicorn --preload, 4 workers, one killed", f"SIGKILL for one of them; lease {ttl} s; then SIGTERM"
    )
    command = (
        "gunicorn",
        "--bind",
        "127.0.0.1:{port}",
        "--workers",
        "4",
        "--preload",
        "--log-level",
        "warning",
        "gateways:wsgi",
    )
    began = time.monotonic()
    with DevStack(lease_ttl=ttl, lease_max_ttl=60) as stack, tempfile.TemporaryDirectory() as folder:
        with serve(command, stack, Path(folder), root=APPS) as running:
            eventually(lambda: answers(running), "gunicorn to answer", 30)
            workers: set[str] = set()

            def ask() -> None:
                answer = httpx.get(f"{running.url}/who", trust_env=False, timeout=20)
                report.requests += 1
                report.logins += 1
                if answer.status_code != 200:
                    report.failures.append(f"status {answer.status_code}: {running.log.read_text()[-300:]}")

            def all_have_answered() -> bool:
                ask()
                workers.add(httpx.get(f"{running.url}/pid", trust_env=False).text)
                return len(workers) == 4 and len(set(ledger(stack).leases.values())) >= 4

            eventually(all_have_answered, "all four workers to have a lease", 30)
            killed = int(workers.pop())
            held = set(stack.leases())
            os.kill(killed, signal.SIGKILL)
            ended = eventually(
                lambda: held - set(stack.leases()), "the killed worker's lease to end by its TTL", 3 * ttl + 10
            )
            for _ in range(50):
                try:
                    ask()
                except httpx.TransportError as error:
                    report.failures.append(repr(error))
            running.process.send_signal(signal.SIGTERM)
            running.process.wait(30)
            stopped = {line["pid"] for line in running.lines("stop")}
            started = {line["pid"] for line in running.lines("start")}
            report.require(started - stopped == {killed}, f"not closed in order: {started - stopped}")
        wait_until(lambda: not stack.leases(), 15)  # the server tries again after 10 s where the database was busy
        report.leases_left = len(stack.leases())
        for name in ("lease_renewed", "lease_rotated", "login", "token_renewed"):
            report.events[name] = len(running.lines(name))
        log = ledger(stack)
        report.calls = log.requests
        # Whoever was told to stop has given its token back, and its leases with it; the killed one alone could not.
        report.require(len(ended) == 1, f"{len(ended)} leases ended, not the killed worker's alone")
        report.require(len(log.tokens) == len(started), f"{len(log.tokens)} tokens for {len(started)} workers")
        kept = {log.leases[lease] for lease in ended}
        report.require(log.kept == kept, f"{len(log.kept - kept)} tokens were not revoked by the stop")
        report.notes.append(
            f"{len(started)} workers started, {len(stopped)} closed in order with {len(log.revoked)} tokens revoked, 1 killed"
        )
    report.seconds = time.monotonic() - began
    settle(report)
    return report
