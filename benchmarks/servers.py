"""Against what asks a server each time: hvac, and OpenBao Proxy on loopback and on a unix socket."""

from __future__ import annotations

import http.client
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.devstack import DevStack, Proxy
from vault_middleware.devstack.layout import NAMESPACE

from .measure import Figure, quantile
from .peers import hvac_read

__all__ = ["servers"]

STATIC, DYNAMIC = "api-gateway/api-key", "database/creds/api-gateway"


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket, as light as the standard library makes it."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def servers(rounds: int = 400) -> tuple[list[Figure], dict[str, float]]:
    """The figures, and for the chart nanoseconds a read by name; wall time, as a caller waits."""
    with (
        DevStack() as stack,
        Proxy(stack) as proxy,
        tempfile.TemporaryDirectory() as folder,
        _opened(stack, folder, "strict") as manager,
        _opened(stack, folder, "buffered") as buffered,
    ):
        mount, _, name = STATIC.partition("/")
        found = _in_turn(
            {
                "ours": (lambda: manager.get_secret(STATIC), 50),
                "ours, leased": (lambda: manager.get_dynamic_secret(DYNAMIC), 50),
                "ours, leased, buffered": (lambda: buffered.get_dynamic_secret(DYNAMIC), 50),
                "hvac": (hvac_read(stack.bao.address, stack.log_in(), f"{NAMESPACE}/{mount}/data/{name}"), 1),
                "proxy, TCP": (_leased(http.client.HTTPConnection("127.0.0.1", proxy.port)), 1),
                "proxy, unix socket": (_leased(_Unix(proxy.unix_address.removeprefix("unix://"))), 1),
            },
            rounds,
        )
    hvac = found["hvac"] / found["ours"]
    tcp, unix = found["proxy, TCP"] / found["ours, leased"], found["proxy, unix socket"] / found["ours, leased"]
    unix_buffered = found["proxy, unix socket"] / found["ours, leased, buffered"]
    bound = (
        "what the server and the connection take; ours is a strict read outside a request, its line written to a file"
    )
    return [
        Figure("times faster than hvac a request", "≥ 400", f"{hvac:.0f} ({_us(found['hvac'])})", hvac >= 400, bound),
        Figure(
            "times faster than a cache hit of OpenBao Proxy, unix socket",
            "≥ 100",
            f"{unix:.0f} ({_us(found['proxy, unix socket'])}; ours {_us(found['ours, leased'])})",
            unix >= 100,
            bound,
        ),
        Figure(
            "the same, ours with the audit buffered",
            "≥ 100",
            f"{unix_buffered:.0f}",
            unix_buffered >= 100,
            "the line is written by another thread",
        ),
        Figure(
            "the same over loopback TCP",
            "",
            f"{tcp:.0f} ({_us(found['proxy, TCP'])})",
            None,
            "http.client, kept alive; ours strict",
        ),
    ], found


def _us(nanoseconds: float) -> str:
    return f"{nanoseconds / 1000:.0f} µs" if nanoseconds >= 10_000 else f"{nanoseconds / 1000:.1f} µs"


def _opened(stack: DevStack, folder: str, mode: str) -> SecretsManager:
    audit = {"VAULT_AUDIT_LOG": str(Path(folder, f"{mode}.jsonl")), "VAULT_AUDIT_MODE": mode}
    return SecretsManager(SecretConfig.from_env({**stack.environ, **audit}))


def _leased(connection: http.client.HTTPConnection) -> Callable[[], object]:
    """Reads the dynamic secret, which the proxy has in its cache from the second time on."""

    def read() -> None:
        connection.request("GET", f"/v1/{NAMESPACE}/{DYNAMIC}")
        with connection.getresponse() as answer:
            answer.read()
            assert answer.status == http.client.OK, answer.status

    return read


def _in_turn(works: Mapping[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Nanoseconds; each comes with how often it is called a turn.

    The lowest tenth, not the median: on a machine where others work too, a call over a socket waits for a core more often
    than not, which says nothing of either side.
    """
    for work, _ in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, times) in works.items():
            before = time.perf_counter()
            for _ in range(times):
                work()
            found[name].append((time.perf_counter() - before) / times * 1e9)
    return {name: quantile(values, 0.1) for name, values in found.items()}
