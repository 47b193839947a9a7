"""One cell of the matrix: a real server process, 200 requests across a rotation, SIGTERM, and what is left."""

from __future__ import annotations

import collections
import itertools
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.integration.support import Running, answers, eventually, serve
from vault_middleware.devstack import DevStack

from .cells import Cell
from .ledger import ledger

__all__ = ["REQUESTS", "Outcome", "make_stack", "run"]

ROOT = Path(__file__).parents[2]

#: At least so many requests a cell, from so many threads, so long between two of one thread (seconds).
REQUESTS, THREADS, PACE = 200, 4, 0.02

#: Leases of the cells, in seconds: rotated at their first or second renewal, so within five seconds, with three to spare
#: for requests that still hold the old one on a machine that is busy.
TTL, MAX_TTL = 6, 8

PATIENCE = 60.0


@dataclass
class Outcome:
    """What came of a cell."""

    cell: Cell
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    rotations: int = 0
    workers: int = 0
    hooks: set[str] = field(default_factory=set)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    log: str = ""

    def require(self, holds: object, what: str) -> None:
        """Note *what* as a problem unless it holds."""
        if not holds:
            self.problems.append(what)

    def __str__(self) -> str:
        text = (
            f"{'✗' if self.problems else '✓'} {self.cell}: {self.requests} requests, {len(self.failures)} failed, "
            f"{self.rotations} rotations, {self.workers} processes, closed by {', '.join(sorted(self.hooks)) or '-'}, "
            f"{self.seconds:.0f} s"
        )
        return "\n".join([text, *(f"    ✗ {problem}" for problem in self.problems), *self.failures[:3]])


def make_stack() -> DevStack:
    """The servers behind every cell."""
    return DevStack(lease_ttl=TTL, lease_max_ttl=MAX_TTL, token_ttl=60, token_max_ttl=300)


class _Load:
    """Requests with an id each, from several threads, until they are told to end."""

    def __init__(self, url: str, outcome: Outcome) -> None:
        self.sent: list[str] = []
        self._url = url
        self._outcome = outcome
        self._number = itertools.count()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            with httpx.Client(
                trust_env=False, timeout=20
            ) as client:  # a few on one connection, and then another worker
                for _ in range(5):
                    if self._ended.wait(PACE):
                        return
                    request_id = f"matrix-{next(self._number)}"
                    self.sent.append(request_id)
                    self._ask(client, request_id)

    def _ask(self, client: httpx.Client, request_id: str) -> None:
        try:
            answer = client.get(f"{self._url}/who", headers={"X-Request-ID": request_id})
        except httpx.TransportError as error:
            self._outcome.failures.append(repr(error))
            return
        if answer.status_code != 200 or not answer.json()["database_user"].startswith("v-"):
            self._outcome.failures.append(f"{answer.status_code} {answer.text[:200]}")

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def run(cell: Cell, stack: DevStack, folder: Path) -> Outcome:
    """Run *cell*; what is wrong is among the outcome's problems."""
    outcome = Outcome(cell)
    earlier = len(stack.bao.audit_log())
    began = time.monotonic()
    with serve(cell.command, stack, folder, root=ROOT) as running:
        try:
            eventually(lambda: answers(running, "/none"), "the server to answer", PATIENCE)
            sent = _under_load(running, outcome)
            running.process.send_signal(signal.SIGTERM)
            outcome.require(running.process.wait(PATIENCE) is not None, "it does not stop")
            _judge(running, outcome, sent)
            _nothing_is_left(stack, outcome, earlier)
        except AssertionError as error:
            outcome.problems.append(str(error))
        outcome.log = running.log.read_text()
    outcome.seconds = time.monotonic() - began
    stack.revoke_all_leases()  # of a cell that has failed
    return outcome


def _under_load(running: Running, outcome: Outcome) -> list[str]:
    """The ids of the requests that were sent until one lease had been rotated under them."""
    load = _Load(running.url, outcome)
    try:
        eventually(lambda: running.lines("lease_rotated"), "a rotation", PATIENCE)
        before = len(load.sent)
        eventually(lambda: len(load.sent) >= max(REQUESTS, before + 20), "the requests", PATIENCE)
    finally:
        load.end()
    outcome.requests = len(load.sent)
    return load.sent


def _judge(running: Running, outcome: Outcome, sent: list[str]) -> None:
    outcome.require(not outcome.failures, f"{len(outcome.failures)} requests failed")
    lines = running.lines("secret_access")
    audited = collections.Counter(line["request_id"] for line in lines if line["kind"] == "dynamic")
    outcome.require(audited == collections.Counter(sent), "the audit lines have other request ids than the requests")
    outcome.require({line["method"] for line in lines} == {"GET"}, "an audit line has no method")
    outcome.rotations = len(running.lines("lease_rotated"))
    started = {line["pid"] for line in running.lines("start")}
    stopped = running.lines("stop")
    outcome.workers = len(started)
    outcome.hooks = {line["hook"] for line in stopped}
    outcome.require(started == {line["pid"] for line in stopped}, "a process has not closed its manager")
    outcome.require(outcome.hooks <= outcome.cell.hooks, f"closed by {outcome.hooks}, not by {set(outcome.cell.hooks)}")
    left = running.log.read_text()
    outcome.require("Traceback" not in left, "there is a traceback in the server's log")


def _nothing_is_left(stack: DevStack, outcome: Outcome, earlier: int) -> None:
    """Each process has revoked its token, which takes its leases along: none has just come to the end of its time."""
    log = ledger(stack, earlier)
    outcome.require(len(log.tokens) >= outcome.workers > 0, f"{len(log.tokens)} tokens for {outcome.workers} processes")
    outcome.require(not log.kept, f"{len(log.kept)} of {len(log.tokens)} tokens were not revoked")
    outcome.require(set(log.leases.values()) <= log.revoked, "a lease's token was not revoked")
    eventually(lambda: not stack.leases(), "the leases to be revoked", 5)
    eventually(lambda: not stack.postgres.users(), "the database users to go", 5)
