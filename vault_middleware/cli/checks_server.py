"""The way to the server and its state: its name, the connection, TLS, whether it can answer, and its clock."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from ..config import SecretConfig
from ..errors import VaultSealed, VaultUnavailable
from ..vault.inspection import Inspector
from ..vault.transport import Answer
from .checks_pod import LEEWAY, Claims
from .findings import Findings

__all__ = ["check_clock", "check_server", "check_way"]

#: A difference of clocks from which we speak of it, in seconds; the header counts whole ones.
_NOTICED: Final = 5.0

#: What our own messages say, and the cause's name.
_CAUSES: Final = (
    ("signed by nobody", "tls-unknown-authority"),
    ("for another name", "tls-wrong-name"),
    ("certificate of", "tls-certificate-expired"),
    ("does not speak TLS", "https-to-http"),
    ("speaks TLS", "http-to-https"),
    ("client certificate", "tls-client-certificate"),
    ("TLS files", "tls-files"),
    ("TLS", "tls-failed"),
    ("HTTP proxy", "http-proxy"),
    ("does not resolve", "name-not-resolving"),
    ("refuses the connection", "connection-refused"),
    ("did not answer in time", "server-hangs"),
    ("the socket", "socket-missing"),
    ("is not Vault's", "not-vault"),
    ("redirects", "redirected"),
)

_NOTHING: Final = (
    "nothing works without the server; what is cached serves for VAULT_CACHE_STALE_TTL, leases to their end"
)


def check_way(config: SecretConfig, findings: Findings) -> bool:
    """Whether the server's port can be reached; a unix socket and a proxy on the way are left to the next step."""
    parts = urlsplit(config.vault_addr)
    if config.vault_addr.startswith("unix://") or config.proxy_addr:
        return True
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    step = "name"
    found: list[tuple[object, ...]] = []
    problem: list[OSError] = []

    def resolve() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
        except OSError as error:
            problem.append(error)

    # The system's resolver knows no time-out of ours.
    asking = threading.Thread(target=resolve, daemon=True)
    asking.start()
    asking.join(config.client_timeout)
    if not found:
        said = "does not resolve" if problem else f"was not resolved within {config.client_timeout:g} s"
        findings.fail(
            step,
            "name-not-resolving",
            f"the name {host!r} {said}",
            why=_NOTHING,
            mend=f"check VAULT_ADDR; a service of another namespace of the cluster needs it in its name "
            f"(vault.NAMESPACE.svc); kubectl get service -A | grep {host.split('.')[0]}; and the cluster's DNS: "
            f"nslookup {host}",
        )
        return False
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))  # type: ignore[index]
    if addresses != [host]:
        findings.ok(step, f"{host} is {', '.join(addresses[:4])}")
    return _connects(host, port, config.client_timeout, findings)


def _connects(host: str, port: int, timeout: float, findings: Findings) -> bool:
    step = "connection"
    before = time.monotonic()
    failure: OSError
    try:
        socket.create_connection((host, port), timeout).close()
        findings.ok(step, f"{host}:{port} takes it, in {(time.monotonic() - before) * 1000:.0f} ms")
        return True
    except OSError as error:
        failure = error
    if isinstance(failure, ConnectionRefusedError):
        code, found = "connection-refused", f"{host}:{port} refuses the connection: nothing listens there"
        mend = "check VAULT_ADDR and its port (8200 by default), and that the server runs: kubectl get pods, endpoints"
    elif isinstance(failure, TimeoutError):
        code, found = "connection-times-out", f"{host}:{port} answered nothing for {timeout:g} s"
        mend = (
            "a firewall or network policy swallows it: let this pod out to that port (egress) and the server's pod take "
            "it (ingress): kubectl get networkpolicy -A"
        )
    else:
        code, found = "connection-failed", f"{host}:{port} cannot be reached ({failure.strerror})"
        mend = "check VAULT_ADDR, and the network between this pod and the server"
    findings.fail(step, code, found, why=_NOTHING, mend=mend)
    return False


def check_server(inspector: Inspector, config: SecretConfig, findings: Findings) -> Answer | None:
    """The server's health, where it can answer."""
    step, answer = "server", None
    failure: VaultUnavailable | None = None
    try:
        answer = inspector.health()
    except VaultUnavailable as error:
        failure = error
    if answer is None:
        text = str(failure)
        if isinstance(failure, VaultSealed):
            code = "server-not-initialised" if "initialised" in text else "server-sealed"
        else:
            code = next((code for words, code in _CAUSES if words in text), "server-unreachable")
        found, _, mend = text.partition("; ")
        findings.fail(step, code, found, why=_NOTHING, mend=mend)
        return None
    if answer.status == 200:
        findings.ok(step, f"{config.vault_addr} is unsealed and active{_version(answer)}")
    elif answer.status == 473:
        findings.ok(step, f"{config.vault_addr} is a performance standby, which answers reads{_version(answer)}")
    elif answer.status == 429:
        findings.warn(
            step,
            "server-standby",
            f"{config.vault_addr} is a standby{_version(answer)}",
            why="it passes on what it cannot answer to the active node, which costs time, and fails while there is none",
            mend="set VAULT_ADDR to a service or balancer that knows the active node (vault-active in the Helm chart)",
        )
    elif answer.status == 472:
        findings.fail(
            step,
            "server-standby",
            f"{config.vault_addr} is a standby for disaster recovery, and answers nothing",
            why=_NOTHING,
            mend="set VAULT_ADDR to the primary cluster's active node or its balancer",
        )
        return None
    else:
        findings.fail(
            step,
            "server-unhealthy",
            f"{config.vault_addr} answered {answer.status} to the question for its health",
            why=_NOTHING,
            mend="look into the server's log, and at any proxy on the way",
        )
        return None
    return answer


def _version(answer: Answer) -> str:
    version = answer.body.get("version")
    return f", version {version[:40]}" if isinstance(version, str) and version.isprintable() else ""


def check_clock(answer: Answer, claims: Claims | None, findings: Findings, wall: Callable[[], float]) -> float:
    """The server's time now, by its ``Date`` header; ours, where it sends none."""
    step, here = "clock", wall()
    there: float | None = None
    with contextlib.suppress(TypeError, ValueError):
        there = parsedate_to_datetime(str(answer.headers.get("Date"))).timestamp() + 0.5
    if there is None:
        findings.ok(step, "the server tells no time to compare with")
        return here
    ahead = here - there
    if abs(ahead) <= _NOTICED:
        findings.ok(step, "ours and the server's agree")
        return there
    found = f"ours is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if claims is not None and claims.issued is not None and claims.issued > here + _NOTICED:
        found += ", and the token was made in our future: it is our clock that is behind"
    report = findings.fail if abs(ahead) > LEEWAY else findings.warn
    report(
        step,
        "clock-skew",
        found,
        why="a token's begin and end, and those of certificates, are judged by clocks: past a minute log-ins fail",
        mend="set both by NTP: timedatectl status (or chronyc tracking) on this pod's node and on the server's",
    )
    return there
