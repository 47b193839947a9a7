"""``python -m benchmarks.fleet``: 50 managers with the same settings, started at one instant, before one real server.

Counted are the requests that arrive, by the server's own audit log: a fleet that started together must not come back
together. Every manager reads three static keys and a dynamic one all the time, and each of their tokens and leases meets
its max TTL within the default time. The exit status is 1 where, after the first log-ins, one bin has more than twice the
mean, a read failed, or a lease was left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry

from vault_middleware import RequestSecrets, SecretConfig, SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.errors import VaultMiddlewareError

STATICS = ("api-gateway/api-key", "api-gateway/second-key", "shared/jwt")
DYNAMIC = "database/creds/api-gateway"

#: The most that any bin may have, in means.
PEAK = 2.0

WIDTH = 60


class Readers:
    """Requests to every manager in turn, one a second each; what failed is kept."""

    def __init__(self, managers: list[SecretsManager], every: float) -> None:
        self._managers = managers
        self._pause = every / len(managers)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.requests = 0
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._stopping.is_set():
            for manager in self._managers:
                self.read(manager)
                if self._stopping.wait(self._pause):
                    return

    def read(self, manager: SecretsManager) -> None:
        """One request, which reads everything."""
        self.requests += 1
        try:
            with RequestSecrets(manager) as secrets:
                for path in STATICS:
                    secrets.get_secret(path)
                secrets.get_dynamic_secret(DYNAMIC)
        except VaultMiddlewareError as error:
            self.failures.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Readers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)


def arrived(stack: DevStack, since: float) -> Iterator[tuple[float, str]]:
    """When each request of ours came, in seconds after the Unix time *since*, and of which kind it was."""
    with stack.bao.audit_path.open(encoding="utf-8") as log:
        for text in log:
            with contextlib.suppress(ValueError):  # a line that is being written
                line = json.loads(text)
                at = datetime.fromisoformat(line["time"]).timestamp() - since
                if line["type"] == "request" and at >= 0 and "root" not in line["auth"].get("policies", []):
                    yield at, _kind(line["request"])


def _kind(request: dict[str, Any]) -> str:
    path: str = request["path"]
    kinds = {
        "auth/kubernetes/login": "log-ins",
        "auth/token/": "token calls",
        "sys/leases/renew": "lease renewals",
        "sys/leases/revoke": "lease revocations",
        "sys/internal/": "questions for mounts",
        "database/creds/": "new leases",
    }
    return next((kind for prefix, kind in kinds.items() if path.startswith(prefix)), "static reads")


def histogram(bins: list[int], width: float, first: int) -> str:
    """The bins as lines of text; those before *first* are the start."""
    scale = WIDTH / max(*bins, 1)
    return "\n".join(
        f"{number * width:5.0f} s {count:5d} {('▒' if number < first else '█') * round(count * scale)}"
        for number, count in enumerate(bins)
    )


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> list[str]:
    """Do it all; what was promised and did not hold."""
    ttls = {
        "lease_ttl": options.lease,
        "lease_max_ttl": 3 * options.lease,
        "token_ttl": options.token,
        "token_max_ttl": 2 * options.token,
    }
    with DevStack(**ttls) as stack:
        stack.put_secret("api-gateway/second-key", {"value": "two"})
        environ = {
            **stack.environ,
            "VAULT_AUDIT_LOG": "off",
            "VAULT_CACHE_TTL": str(options.static),
            "VAULT_PREFETCH": ",".join((*STATICS, DYNAMIC)),
        }
        config = SecretConfig.from_env(environ)
        managers = [SecretsManager(config, registry=CollectorRegistry()) for _ in range(options.managers)]
        readers = Readers(managers, every=1.0)
        with ThreadPoolExecutor(len(managers)) as pool:
            since, began = time.time(), time.monotonic()
            try:
                list(pool.map(SecretsManager.start, managers))
                warm = time.monotonic() - began
                say(f"{len(managers)} managers, started at one instant, warm after {warm:.1f} s")
                with readers:
                    threading.Event().wait(options.seconds - warm)
            finally:
                list(pool.map(SecretsManager.close, managers))
        threading.Event().wait(1.0)  # the server ends leases of a revoked token in the background
        left = len(stack.leases())
        found = [(at, kind) for at, kind in arrived(stack, since) if at < options.seconds]
    problems = _judge(found, options, first=int(warm / options.bin) + 1, say=say)
    say(
        f"{readers.requests} requests read {len(STATICS) + 1} secrets each, {len(readers.failures)} failed; {left} leases left"
    )
    problems += [f"a read failed: {failure}" for failure in sorted(set(readers.failures))[:5]]
    return problems + ([f"{left} leases are left after the stop"] if left else [])


def _judge(
    found: list[tuple[float, str]], options: argparse.Namespace, *, first: int, say: Callable[[str], None]
) -> list[str]:
    """Print what arrived, and say what is wrong with it."""
    bins = [0] * int(options.seconds / options.bin)
    for at, _ in found:
        if at < len(bins) * options.bin:
            bins[int(at / options.bin)] += 1
    say(f"requests at the server, in bins of {options.bin:g} s (▒: with the first log-ins):")
    say(histogram(bins, options.bin, first))
    rest = bins[first:]
    mean = sum(rest) / max(len(rest), 1)
    if not mean:
        return ["no request arrived after the first log-ins"]
    peak = max(rest) / mean
    say(f"peak {max(rest)}, mean {mean:.1f} a bin ({mean / options.bin:.2f}/s): peak/mean {peak:.2f}")
    kinds = Counter(kind for at, kind in found if at >= first * options.bin)
    say("of these " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    return [f"the peak is {peak:.2f} means, more than {PEAK:g}"] if peak > PEAK else []


def main() -> int:
    """Run it; 1 where a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--managers", type=int, default=50, help="how many; %(default)s")
    parser.add_argument("--seconds", type=float, default=300, help="measured; %(default)s")
    parser.add_argument("--bin", type=float, default=10, help="width of a bin, in seconds; %(default)s")
    parser.add_argument("--lease", type=float, default=60, help="a lease's TTL (its max is 3 of it); %(default)s s")
    parser.add_argument("--token", type=float, default=120, help="a token's TTL (its max is 2 of it); %(default)s s")
    parser.add_argument("--static", type=float, default=30, help="VAULT_CACHE_TTL; %(default)s s")
    problems = measure(parser.parse_args(), lambda line: print(line, flush=True))
    for problem in problems:
        print(f"✗ {problem}")
    print("a promise is broken" if problems else "✓ the fleet stays spread out")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
