"""``python -m benchmarks.tripwire``: what the tripwire costs a response, in parts and whole; a table of docs/security.md."""

from __future__ import annotations

import itertools
import json
import random
import string
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vault_middleware import SecretsManager, VaultMiddleware
from vault_middleware.cache import Entry
from vault_middleware.secret import Secret
from vault_middleware.tripwire import Tripwire

from .measure import costs
from .reads import opened
from .requests import _asgi

#: Secrets that are live, with a value each.
SECRETS = 100

_KIB = 1024


def _keep(manager: SecretsManager, path: str, value: str) -> None:
    """Put a secret into the cache."""
    secret = Secret(path, {"value": value})
    manager._engine.cache.put(path, Entry(secret, fetched=0.0, fresh_until=1e18, stale_until=1e18))


def _document(size: int) -> dict[str, str]:
    """What an API answers, of about so many bytes; no secret in it."""
    draw = random.Random(size)  # the same each time
    words = ("".join(draw.choices(string.ascii_lowercase, k=16)) for _ in itertools.count())
    return dict(zip((f"field{number:04}" for number in range(size // 33)), words, strict=False))


def _application(body: bytes, manager: SecretsManager | None, mode: str | None = None) -> Starlette:
    async def endpoint(_request: Request) -> Response:
        return Response(body, media_type="application/json")

    middleware = [] if manager is None else [Middleware(VaultMiddleware, manager=manager, tripwire=mode)]
    return Starlette(routes=[Route("/orders/{id}", endpoint)], middleware=middleware)


def _looking(tripwire: Tripwire, body: bytes) -> Callable[[], object]:
    def look() -> None:
        assert tripwire.find(body) is None

    return look


def measured(manager: SecretsManager, rounds: int) -> list[tuple[str, float, float, str]]:
    """What, microseconds, how many times what it is beside, and what that is."""
    for number in range(SECRETS):
        _keep(manager, f"app/{number}", f"the-value-of-secret-{number:05}-{'x' * 8}")
    tripwire = Tripwire(manager)
    tripwire.refresh()
    numbers = itertools.count()

    def learn() -> None:
        _keep(manager, "app/0", f"the-value-of-secret-{next(numbers):05}-{'y' * 8}")
        tripwire.refresh()

    works: dict[str, tuple[Callable[[], object], int]] = {
        "new": (learn, 200),
        "known": (tripwire.refresh, 1000),
    }
    for size, times in ((1, 400), (16, 20)):
        document = _document(size * _KIB)
        body = json.dumps(document).encode()
        works[f"{size} dumps"] = (lambda document=document: json.dumps(document).encode()), times  # type: ignore[misc]
        works[f"{size} find"] = _looking(tripwire, body), times
        works[f"{size} bare"] = _asgi(_application(body, None)), times
        for mode in (None, "alarm", "block"):
            works[f"{size} {mode}"] = _asgi(_application(body, manager, mode)), times
    found = {name: value / 1000 for name, value in costs(works, rounds=rounds).items()}
    bare = found["1 bare"]
    table = [
        (f"one new value among {SECRETS} secrets", found["new"], found["new"] / bare, "a bare request"),
        (f"the look at {SECRETS} known secrets", found["known"], found["known"] / bare, "a bare request"),
    ]
    for size in (1, 16):
        name = f"{size} KiB of body"
        took, dumps, bare = (found[f"{size} {kind}"] for kind in ("find", "dumps", "bare"))
        table.append((f"the search of {name}", took, took / dumps, "json.dumps of the same"))
        for mode, text in (("None", "without a tripwire"), ("alarm", "alarm"), ("block", "block")):
            took = found[f"{size} {mode}"]
            table.append((f"a whole request, {name}, {text}", took, took / bare, "the same, bare"))
    return table


def main() -> int:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), "off") as manager:
        for what, took, times, beside in measured(manager, rounds):
            print(f"{what:56}{took:8.1f} µs {times:7.2f} of {beside}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
