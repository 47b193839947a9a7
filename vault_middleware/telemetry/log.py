"""The operational log: what an operator should know, each thing once, and what to do about it.

Independent of the audit, and without secrets, tokens and lease ids.
"""

from __future__ import annotations

import logging

from ..events import (
    Event,
    LeaseRenewalFailed,
    LeaseRenewed,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRotated,
    LeasesLeft,
    LoggedIn,
    LoginFailed,
    ServerDown,
    ServerUp,
    Started,
    Stopped,
    TokenRenewalFailed,
    TokenRenewed,
    TokenRevocationFailed,
    TokenRevoked,
)

__all__ = ["OperationalLog"]

#: The longest text of another's making in a message, in characters.
TEXT = 500


class OperationalLog:
    """Tells facts to the logger ``vault_middleware``: beginnings and ends at WARNING, the daily round at DEBUG."""

    def __init__(self, name: str = "vault_middleware") -> None:
        self._log = logging.getLogger(name)
        #: Why the last log-in failed; a failure that only repeats is not told again.
        self._login_failure: str | None = None

    def __call__(self, event: Event) -> None:
        """Log *event*."""
        log = self._log
        match event:
            case LoginFailed():
                self._login_failed(event)
            case LoggedIn():
                again = self._login_failure is not None
                self._login_failure = None
                log.log(
                    logging.WARNING if again else logging.INFO,
                    "logged in%s as role %s by %s%s; the token is good for %s",
                    " again" if again else "",
                    _plain(event.role),
                    event.method,
                    f" in {_plain(event.auth_path)}" if event.auth_path else "",
                    _seconds(event.ttl),
                )
            case ServerDown():
                log.warning(
                    "Vault does not answer: %s. Cached secrets go on being served within VAULT_CACHE_STALE_TTL, leased ones "
                    "until they end; see that the server runs, is unsealed and can be reached",
                    _plain(event.reason),
                )
            case ServerUp():
                # As loud as the beginning: who was told of an outage must be told of its end.
                log.warning("Vault answers again, after %s; nothing needs to be done", _seconds(event.seconds))
            case TokenRenewalFailed():
                log.warning(
                    "the token was not renewed: %s. It is good for %s more; a new log-in follows in time",
                    _plain(event.reason),
                    _seconds(event.ttl_left),
                )
            case LeaseRenewalFailed():
                log.warning(
                    "the lease of %s was not renewed or replaced: %s. It is served for %s more%s",
                    _plain(event.secret_path),
                    _plain(event.reason),
                    _seconds(event.ttl_left),
                    _next(event.retry_in),
                )
            case LeaseRevocationFailed():
                log.warning(
                    "a lease of %s was not revoked: %s. It ends by itself within %s; nothing needs to be done for this one",
                    _plain(event.secret_path),
                    _plain(event.reason),
                    _seconds(event.ttl_left),
                )
            case TokenRevocationFailed():
                log.warning(
                    "a token of ours was not revoked: %s. It ends by itself within %s",
                    _plain(event.reason),
                    _seconds(event.ttl_left),
                )
            case LeasesLeft():
                ends = (
                    f"they end by themselves within {_seconds(event.ttl_left)}"
                    if event.ttl_left
                    else "nothing is to be done"
                )
                log.log(
                    logging.WARNING if event.ttl_left else logging.INFO,
                    "the stop did not come to %d of our leases: %s; %s",
                    event.count,
                    _plain(event.reason),
                    ends,
                )
            case LeaseRotated():
                log.info(
                    "%s has a new lease (%s), good for %s; requests that hold the old one keep it to their end",
                    _plain(event.secret_path),
                    _plain(event.reason),
                    _seconds(event.ttl),
                )
            case LeaseRenewed():
                log.debug("the lease of %s was renewed for %s", _plain(event.secret_path), _seconds(event.ttl))
            case LeaseRevoked():
                log.debug("a lease of %s was revoked", _plain(event.secret_path))
            case TokenRenewed():
                log.debug("the token was renewed for %s", _seconds(event.ttl))
            case TokenRevoked():
                log.debug("a token of ours was revoked")
            case Started():
                log.info("started in process %d", event.pid)
            case Stopped():
                log.info("stopped in process %d, by %s", event.pid, _plain(event.hook))

    def _login_failed(self, event: LoginFailed) -> None:
        news = event.reason != self._login_failure
        self._login_failure = event.reason
        self._log.log(
            logging.WARNING if news else logging.DEBUG,
            "the log-in as role %s by %s failed: %s%s. `vault-middleware doctor` finds out why",
            _plain(event.role),
            event.method,
            _plain(event.reason),
            _next(event.retry_in),
        )


def _next(retry_in: float | None) -> str:
    return "" if retry_in is None else f"; the next try is in {_seconds(retry_in)}"


def _seconds(seconds: float) -> str:
    return "ever" if seconds == float("inf") else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _plain(text: str) -> str:
    """*text* on one line, within bounds."""
    text = text[:TEXT]
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
