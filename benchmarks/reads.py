"""One read: the floor, ours in each form, and the peers in process; and the same against 10,000 entries and leases."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fakes import DYNAMIC, STATIC, FakeVault, manager_over
from vault_middleware import RequestSecrets, SecretsManager
from vault_middleware.telemetry.lines import access_lines, asked
from vault_middleware.web import asgi_identity

from .bare import Bare, BareRequest
from .measure import Figure, costs
from .peers import AwsCache, HandWritten, LockFree

__all__ = ["SCOPE", "flatness", "opened", "parts", "reads"]

#: A request as a server tells it.
SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/orders/7",
    "client": ("10.0.0.7", 4711),
    "headers": [
        (b"host", b"gateway.example"),
        (b"user-agent", b"curl/8.5.0"),
        (b"accept", b"*/*"),
        (b"authorization", b"Bearer abcdefghijklmnop"),
        (b"x-request-id", b"0af7651916cd43dd8448eb211c80319c"),
    ],
}


@contextmanager
def opened(folder: Path, mode: str, **settings: Any) -> Iterator[SecretsManager]:
    """A manager with one secret of each kind in its cache; *mode* is the audit's, or ``off``."""
    audit = None if mode == "off" else folder / f"{mode}.jsonl"
    given: dict[str, Any] = {"audit_mode": "strict" if mode == "off" else mode, **settings}
    with manager_over(FakeVault(), audit=audit, **given) as manager:
        manager.start()
        manager.get_secret(STATIC)
        manager.get_dynamic_secret(DYNAMIC)
        yield manager


def reads() -> tuple[list[Figure], dict[str, float]]:
    """The figures, and for the chart nanoseconds of CPU a read by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with opened(folder, "off") as off, opened(folder, "buffered") as buffered, opened(folder, "strict") as strict:
            floor, aws, peer = LockFree(STATIC), AwsCache(STATIC), HandWritten(STATIC, folder / "peer.jsonl")
            file = os.open(folder / "bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            bare, bare_strict = Bare(STATIC, file, strict=False), Bare(STATIC, file, strict=True)
            repeating = BareRequest(bare, SCOPE)
            repeating.get_secret(STATIC)
            repeating.get_secret(STATIC)

            def flush() -> None:
                buffered.audit.flush()  # so that the queue never fills, and no reader is made to write
                bare.flush()

            request = RequestSecrets(buffered, SCOPE, asgi_identity)
            request.get_secret(STATIC)
            found = costs(
                {
                    "floor": (lambda: floor.get_secret(STATIC), 50_000),
                    "repeat": (lambda: request.get_secret(STATIC), 50_000),
                    "nothing": (lambda: _request(buffered), 20_000),
                    "first, off": (lambda: _first(off), 20_000),
                    "first, buffered": (lambda: _first(buffered), 5_000),
                    "first, strict": (lambda: _first(strict), 5_000),
                    "outside, buffered": (lambda: buffered.get_secret(STATIC), 5_000),
                    "outside, strict": (lambda: strict.get_secret(STATIC), 5_000),
                    "hand-written": (lambda: peer.get_secret(STATIC), 3_000),
                    "hand-written, a request": (lambda: peer.get_secret(STATIC, dict(SCOPE)), 3_000),
                    "aws cache": (lambda: aws.get_secret(STATIC), 5_000),
                    "os.write": (_writes(folder), 5_000),
                    "bare, repeat": (lambda: repeating.get_secret(STATIC), 50_000),
                    "bare, nothing": (lambda: BareRequest(bare, SCOPE).close(), 20_000),
                    "bare, buffered": (lambda: _bare_first(bare), 5_000),
                    "bare, strict": (lambda: _bare_first(bare_strict), 5_000),
                    "bare, outside": (lambda: bare_strict.get_secret(STATIC), 5_000),
                },
                between=flush,
            )
            found["in all"] = _in_all(lambda: _first(buffered), buffered.audit.flush)
            found["bare, in all"] = _in_all(lambda: _bare_first(bare), bare.flush)
            request.close()
            peer.close()
            os.close(file)
    for name in ("first, off", "first, buffered", "first, strict", "in all"):
        found[name] -= found["nothing"]
    for name in ("bare, buffered", "bare, strict", "bare, in all"):
        found[name] -= found["bare, nothing"]
    return _figures(found), found


def _request(manager: SecretsManager) -> None:
    RequestSecrets(manager, SCOPE, asgi_identity).close()


def _first(manager: SecretsManager) -> None:
    secrets = RequestSecrets(manager, SCOPE, asgi_identity)
    secrets.get_secret(STATIC)
    secrets.close()


def _bare_first(cache: Bare) -> None:
    secrets = BareRequest(cache, SCOPE)
    secrets.get_secret(STATIC)
    secrets.close()


def _writes(folder: Path) -> Callable[[], object]:
    file = (folder / "lines").open("ab", buffering=0)
    line = b"x" * 420 + b"\n"
    return lambda: file.write(line)


def _in_all(request: Callable[[], object], flush: Callable[[], object], rounds: int = 9, times: int = 5_000) -> float:
    """CPU of the whole process for a request with one buffered read, the writing included."""
    found = []
    for _ in range(rounds):
        flush()
        before = time.process_time()
        for _ in range(times):
            request()
        flush()
        found.append((time.process_time() - before) / times * 1e9)
    return statistics.median(found)


def _figures(found: dict[str, float]) -> list[Figure]:
    floor = found["floor"]
    in_floors = {name: value / floor for name, value in found.items()}
    write = f"one os.write to a file is {in_floors['os.write']:.1f} of them by itself"

    def times(name: str) -> str:
        return f"{in_floors[name]:.1f} × ({found[name]:.0f} ns)"

    repeat, buffered, strict = in_floors["repeat"], in_floors["first, buffered"], in_floors["first, strict"]
    by_hand = found["hand-written, a request"]
    faster = by_hand / found["first, strict"]
    outside, everything = in_floors["outside, strict"], in_floors["in all"]

    def bare(name: str) -> str:
        return f"{in_floors[f'bare, {name}']:.1f} ×"

    return [
        Figure("lock-free TTL read, the unit", "", f"{floor:.0f} ns", None),
        Figure(
            "repeat read in the same request",
            "≤ 1",
            times("repeat"),
            repeat <= 1,
            "a TTL read is in it (a look-up, a look at the clock); a count that no thread loses (one call into C) and "
            "keyword-only arguments come on top",
            bare("repeat"),
        ),
        Figure(
            "first read, buffered, on the reading thread",
            "≤ 4",
            times("first, buffered"),
            buffered <= 4,
            "four Python calls from getter to queue, who asks kept apart from the request, a pin; clock, count and record, "
            "one call into C each",
            bare("buffered"),
        ),
        Figure(
            "first read, buffered, CPU in all",
            "≤ 8",
            times("in all"),
            everything <= 8,
            "the request's id, client and path are found, bounded and rendered once a request, and a line for each secret; "
            f"{write}, which some 150 lines share here",
            bare("in all"),
        ),
        Figure("first read, strict, to a file", "≤ 18", times("first, strict"), strict <= 18, write, bare("strict")),
        Figure(
            "the same, times faster than written by hand",
            "≥ 6",
            f"{faster:.1f} ({by_hand:.0f} ns by hand)",
            faster >= 6,
            f"{write}, which both pay; the rest of ours is {found['first, strict'] - found['os.write']:.0f} ns. By hand "
            f"without a look at the request, its line's part about it a constant, it is {found['hand-written']:.0f} ns",
        ),
        Figure(
            "read outside a request, strict", "≤ 20", times("outside, strict"), outside <= 20, write, bare("outside")
        ),
        Figure(
            "aws-secretsmanager-caching, stub client",
            "",
            f"{found['aws cache'] / floor:.0f} × (neither counted nor audited)",
            None,
        ),
    ]


def parts() -> list[Figure]:
    """What a first read is made of, each part by itself."""
    with (
        tempfile.TemporaryDirectory() as name,
        opened(Path(name), "off") as off,
        opened(Path(name), "buffered") as buffered,
    ):
        request, identity = RequestSecrets(off, SCOPE, asgi_identity), asgi_identity(SCOPE, 1)
        who, now = asked(identity), time.monotonic()
        fragment = buffered.audit.secret_fragment(buffered.get_secret(STATIC), "static")
        render = access_lines(time.monotonic, time.time)
        found = costs(
            {
                "the accessor, made and closed": (lambda: _request(off), 20_000),
                "at the gate: look-up, clock, count": (lambda: off.gate.hit(STATIC, False, request), 20_000),
                "who asks, kept apart from the request": (lambda: asgi_identity(SCOPE, 1), 20_000),
                "a record queued (buffered)": (
                    lambda: buffered.audit.access(identity, fragment, "hit", now, now),
                    5_000,
                ),
                "who asks, rendered: id found, all bounded and escaped": (
                    lambda: asked(asgi_identity(SCOPE, 1)),
                    20_000,
                ),
                "the line, rendered": (lambda: render(who, fragment, "hit", now, now), 20_000),
                "one os.write to a file": (_writes(Path(name)), 5_000),
            },
            between=buffered.audit.flush,
        )
    found["who asks, rendered: id found, all bounded and escaped"] -= found["who asks, kept apart from the request"]
    return [Figure(what, "", f"{cost:.0f} ns", None) for what, cost in found.items()]


def flatness(many: int = 10_000) -> Figure:
    """The cost of a hit with one entry and lease, and with *many* of both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        room = {"cache_max_entries": many + 1, "max_leases": 2 * many, "lease_min_validity": 0.0}
        with opened(folder, "off", **room) as few, opened(folder, "off", **room) as full:
            for number in range(many):
                full.get_secret(f"app/{number}")
                full.get_dynamic_secret(f"db/creds/{number}")
            found = costs(
                {
                    "static, one": (lambda: few.get_secret(STATIC), 20_000),
                    "static, many": (lambda: full.get_secret(STATIC), 20_000),
                    "leased, one": (lambda: few.get_dynamic_secret(DYNAMIC), 20_000),
                    "leased, many": (lambda: full.get_dynamic_secret(DYNAMIC), 20_000),
                }
            )
    static = found["static, many"] / found["static, one"]
    leased = found["leased, many"] / found["leased, one"]
    return Figure(
        f"hit cost at {many:,} entries and leases, of that at one",
        "flat (≤ 1.1)",
        f"{static:.2f} static, {leased:.2f} leased",
        max(static, leased) <= 1.1,
        "a dictionary look-up; caches of the processor",
    )
