"""A steady load on a pool through rotations, and the report of what it met.

Two of the threads are always within a transaction of some length, so that each rotation finds busy connections; the
others do short ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.integration.support import running
from vault_middleware import SecretsManager
from vault_middleware.devstack import DevStack

from .kinds import KINDS, Transaction

__all__ = ["Report", "add_roles", "put_under_load"]

#: Of the database role, in seconds.
TTL, MAX_TTL = 5, 5

#: How soon after its last connection a database user is to be gone, in seconds.
GONE_WITHIN = 5.0

#: A thread's pause between two short transactions, and the length of a long one's second half, in seconds.
PACE, LONG = 0.01, 0.2

SLOW_THREADS = 2

#: The role of each kind; eight letters of it are in a user's name.
ROLES = {
    "sqlalchemy": "alchemy",
    "sqlalchemy-async": "aalchemy",
    "psycopg": "psycopg",
    "psycopg-async": "apsycopg",
    "django": "django",
}


@dataclass
class Report:
    """What one pool met."""

    kind: str
    threads: int
    seconds: float = 0.0
    transactions: int = 0
    rotations: int = 0
    straddled: int = 0
    failures: list[str] = field(default_factory=list)
    gone_after: dict[str, float] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What does not hold."""
        late = [seconds for seconds in self.gone_after.values() if seconds > GONE_WITHIN]
        found = {
            f"{len(self.failures)} transactions failed: {self.failures[:3]}": bool(self.failures),
            "nothing was done": not self.transactions,
            "no transaction lasted over a rotation": not self.straddled,
            f"{len(self.gone_after)} users are gone after {self.rotations} rotations": (
                len(self.gone_after) < self.rotations
            ),
            f"users were gone only after {late} s": bool(late),
            f"{self.left} are left after the stop": bool(self.left),
        }
        return [what for what, holds in found.items() if holds]

    def __str__(self) -> str:
        slowest = max(self.gone_after.values(), default=0.0)
        lines = [
            f"{'✗' if self.problems else '✓'} {self.kind}: {self.threads} threads, {self.rotations} rotations",
            (
                f"    {self.seconds:.0f} s, {self.transactions} transactions, {len(self.failures)} failed, "
                f"{self.straddled} lasted over a rotation"
            ),
            (
                f"    {len(self.gone_after)} users gone from pg_roles, the slowest {slowest:.1f} s after its last "
                f"connection; {len(self.left)} left after the stop"
            ),
        ]
        return "\n".join(lines + [f"    PROBLEM: {problem}" for problem in self.problems])


def add_roles(stack: DevStack) -> None:
    """A database role for each kind."""
    for role in ROLES.values():
        stack.add_database_role(role, ttl=TTL, max_ttl=MAX_TTL)


def put_under_load(kind: str, stack: DevStack, *, threads: int, rotations: int) -> Report:
    """Let *threads* threads use a pool of *kind* until its credential has been replaced *rotations* times."""
    role = ROLES[kind]
    report = Report(kind, threads)
    path, users = f"database/creds/{role}", f"v-lotabots-{role}-"
    begun = time.monotonic()
    with running(stack) as manager:
        enough, watching = threading.Event(), threading.Event()
        manager.on_rotate(path, lambda _secret: _count(report, rotations, enough))
        watcher = threading.Thread(target=_watch, args=(stack, users, report, watching), daemon=True)
        watcher.start()
        with KINDS[kind](stack, manager, path) as transaction:
            _load(transaction, report, enough, manager)
            _last_old_user_to_go(stack, users, report, rotations)
    report.seconds = time.monotonic() - begun
    watching.set()
    watcher.join(10)
    report.left = stack.postgres.users(users)
    return report


def _count(report: Report, rotations: int, enough: threading.Event) -> None:
    report.rotations += 1
    if report.rotations >= rotations:
        enough.set()


def _load(transaction: Transaction, report: Report, enough: threading.Event, manager: SecretsManager) -> None:
    counts = [0] * report.threads
    lock = threading.Lock()

    def short() -> None:
        transaction(["SELECT current_user"])
        enough.wait(PACE)

    def long() -> None:
        before = report.rotations
        transaction(["SELECT current_user", f"SELECT pg_sleep({LONG})", "SELECT count(*) FROM pg_roles"])
        with lock:
            report.straddled += report.rotations != before

    def work(index: int, what: Callable[[], None]) -> None:
        while not enough.is_set():
            try:
                what()
                counts[index] += 1
            except Exception as error:
                report.failures.append(f"{type(error).__name__}: {error}")
                enough.set()

    workers = [
        threading.Thread(target=work, args=(index, long if index < SLOW_THREADS else short), daemon=True)
        for index in range(report.threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert manager.started
    report.transactions = sum(counts)


def _last_old_user_to_go(stack: DevStack, users: str, report: Report, rotations: int) -> None:
    """Wait for the users of all rotations but the present one."""
    deadline = time.monotonic() + 2 * GONE_WITHIN
    while len(report.gone_after) < rotations and time.monotonic() < deadline:
        threading.Event().wait(0.1)


def _watch(stack: DevStack, users: str, report: Report, done: threading.Event) -> None:
    """Note of each user how long after its last connection it was gone from pg_roles."""
    last: dict[str, float] = {}
    with stack.postgres.connect() as connection:
        while not done.wait(0.05):
            rows = connection.execute(
                "SELECT rolname, (SELECT count(*) FROM pg_stat_activity WHERE usename = rolname) FROM pg_roles "
                "WHERE starts_with(rolname, %s)",
                (users,),
            ).fetchall()
            now = time.monotonic()
            for name, connected in rows:
                if connected or name not in last:
                    last[name] = now
            present = {name for name, _ in rows}
            for name in [name for name in last if name not in present]:
                report.gone_after[name] = now - last.pop(name)
