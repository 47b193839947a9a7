"""What a failed exchange means, in words: the cause, and what to check. Never the server's own text."""

from __future__ import annotations

import os
import socket
import ssl

from ..errors import VaultUnavailable

__all__ = ["bad_files", "explain", "fingerprint", "not_json", "not_vault", "timed_out"]


def timed_out(server: str) -> VaultUnavailable:
    """No time was left for the call."""
    return VaultUnavailable(
        f"the server at {server} did not answer in time; check that it is up and that a network policy lets this pod "
        "reach it, or raise VAULT_CLIENT_TIMEOUT"
    )


def not_vault(server: str, why: str) -> VaultUnavailable:
    """Something answered, and it was not Vault."""
    return VaultUnavailable(
        f"the answer from {server} is not Vault's: {why}; check VAULT_ADDR and any proxy on the way"
    )


def not_json(server: str, status: int, raw: bytes) -> VaultUnavailable:
    """A body that is no JSON object: the page of something in between, or an answer that was cut."""
    start = raw[:400].lstrip().lower()
    if b"http request to an https server" in start:
        return VaultUnavailable(f"the server at {server} speaks TLS; write VAULT_ADDR with https://")
    if start.startswith(b"<"):
        return not_vault(server, f"status {status} with an HTML page, as a proxy or an ingress sends it")
    if start.startswith(b"{"):
        return not_vault(server, f"status {status} with JSON that is cut off or malformed")
    if not raw:
        return not_vault(server, f"status {status} without a body, or cut off before it")
    return not_vault(server, f"status {status} without a JSON object")


def bad_files(error: OSError, server: str) -> VaultUnavailable:
    """The files of certificates and keys cannot be loaded."""
    what = "do not hold what they should" if isinstance(error, ssl.SSLError) else "cannot be opened"
    return VaultUnavailable(
        f"the TLS files for {server} {what}; check VAULT_CACERT, VAULT_CAPATH, VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"
    )


def explain(error: BaseException, server: str) -> VaultUnavailable:
    """Our error for one of requests, urllib3 or the system; made from its types and codes, not from its text."""
    chain = _chain(error)
    names = {type(cause).__name__ for cause in chain}
    if "ProxyError" in names:
        return VaultUnavailable(f"the HTTP proxy on the way to {server} cannot be reached; check VAULT_PROXY_ADDR")
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate(cause, server)
        if isinstance(cause, ssl.SSLError):
            return _tls(cause, server)
    for cause in chain:
        if isinstance(cause, socket.gaierror):
            return VaultUnavailable(
                f"the name in {server} does not resolve; check VAULT_ADDR, and the cluster's DNS if it is right"
            )
        if isinstance(cause, ConnectionRefusedError):
            return VaultUnavailable(
                f"the server at {server} refuses the connection; check VAULT_ADDR and its port, and that the server runs"
            )
        if isinstance(cause, FileNotFoundError | PermissionError):
            return VaultUnavailable(f"the socket {server} is not there, or not for us to open; check VAULT_ADDR")
    if names & {"TimeoutError", "timeout", "ConnectTimeoutError", "ReadTimeoutError", "ConnectTimeout", "ReadTimeout"}:
        return timed_out(server)
    if names & {"InvalidURL", "LocationParseError", "InvalidSchema", "MissingSchema"}:
        return VaultUnavailable(f"{server} is no address that can be asked; check VAULT_ADDR")
    return VaultUnavailable(f"the connection to {server} broke off; check the server and what lies in between")


def _certificate(error: ssl.SSLCertVerificationError, server: str) -> VaultUnavailable:
    if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
        return VaultUnavailable(
            f"the certificate of {server} is for another name; check VAULT_ADDR, or set VAULT_TLS_SERVER_NAME"
        )
    if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
        return VaultUnavailable(f"the certificate of {server} has expired; renew it, or check this machine's clock")
    return VaultUnavailable(
        f"the certificate of {server} is signed by nobody we trust; set VAULT_CACERT to the authority's certificate"
    )


def _tls(error: ssl.SSLError, server: str) -> VaultUnavailable:
    reason = error.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return VaultUnavailable(
            f"the server at {server} does not speak TLS; write VAULT_ADDR with http://, or enable TLS"
        )
    if "CERTIFICATE_REQUIRED" in reason or "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
        return VaultUnavailable(
            f"the server at {server} wants a client certificate that it trusts; "
            "set VAULT_CLIENT_CERT and VAULT_CLIENT_KEY to one"
        )
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return VaultUnavailable(
            f"the server at {server} offers no TLS that is new enough; let it, or what is in front, speak TLS 1.2 or newer"
        )
    return VaultUnavailable(f"the TLS handshake with {server} failed; check VAULT_ADDR and the TLS variables")


def _chain(error: BaseException) -> list[BaseException]:
    """*error* and what it was made from, as requests and urllib3 nest them."""
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting and len(found) < 20:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            waiting += [getattr(one, "reason", None), one.__cause__, one.__context__, *one.args]
    return found


def fingerprint(*paths: str | None) -> tuple[tuple[int, int, int] | None, ...]:
    """Something that changes when one of the files does."""
    return tuple(_stat(path) for path in paths if path)


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
