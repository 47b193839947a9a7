"""The operational log: what an operator is told, how loudly, and that it holds no lease id and no forged line."""

from __future__ import annotations

import logging

import pytest

from vault_middleware.events import (
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
from vault_middleware.telemetry.log import OperationalLog

LEASE = "database/creds/app/canary-of-a-lease"
PATH = "database/creds/app"


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "vault_middleware")


def told(caplog: pytest.LogCaptureFixture, *events: Event) -> list[tuple[str, str]]:
    """Level and message of what *events* are logged as."""
    log = OperationalLog()
    for event in events:
        log(event)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize(
    ("event", "level", "message"),
    [
        (Started(7), "INFO", "started in process 7"),
        (Stopped("atexit", 7), "INFO", "stopped in process 7, by atexit"),
        (
            LoggedIn("kubernetes", "api-gateway", "lotabots", 3600.0),
            "INFO",
            "logged in as role api-gateway by kubernetes in lotabots; the token is good for 3600 s",
        ),
        (
            LoggedIn("token", "api-gateway", "", float("inf")),
            "INFO",
            "logged in as role api-gateway by token; the token is good for ever",
        ),
        (
            LoginFailed("kubernetes", "api-gateway", "403", 1.5),
            "WARNING",
            (
                "the log-in as role api-gateway by kubernetes failed: 403; the next try is in 1.5 s. "
                "`vault-middleware doctor` finds out why"
            ),
        ),
        (TokenRenewed(60.0), "DEBUG", "the token was renewed for 60 s"),
        (
            TokenRenewalFailed("403", 9.0),
            "WARNING",
            "the token was not renewed: 403. It is good for 9.0 s more; a new log-in follows in time",
        ),
        (TokenRevoked(), "DEBUG", "a token of ours was revoked"),
        (LeaseRenewed(PATH, LEASE, 60.0), "DEBUG", "the lease of database/creds/app was renewed for 60 s"),
        (
            LeaseRenewalFailed(PATH, LEASE, "500", 9.0, 2.0),
            "WARNING",
            (
                "the lease of database/creds/app was not renewed or replaced: 500. It is served for 9.0 s more; "
                "the next try is in 2.0 s"
            ),
        ),
        (
            LeaseRotated(PATH, LEASE, LEASE, "its max TTL is near", 60.0),
            "INFO",
            (
                "database/creds/app has a new lease (its max TTL is near), good for 60 s; "
                "requests that hold the old one keep it to their end"
            ),
        ),
        (LeaseRevoked(PATH, LEASE), "DEBUG", "a lease of database/creds/app was revoked"),
        (
            LeaseRevocationFailed(PATH, LEASE, "403", 9.0),
            "WARNING",
            (
                "a lease of database/creds/app was not revoked: 403. It ends by itself within 9.0 s; "
                "nothing needs to be done for this one"
            ),
        ),
        (
            LeasesLeft(3, "Vault does not answer (refused)", 50.0),
            "WARNING",
            "the stop did not come to 3 of our leases: Vault does not answer (refused); they end by themselves within 50 s",
        ),
        (
            LeasesLeft(3, "our token takes them along", 0.0),
            "INFO",
            "the stop did not come to 3 of our leases: our token takes them along; nothing is to be done",
        ),
        (
            TokenRevocationFailed("403", 50.0),
            "WARNING",
            "a token of ours was not revoked: 403. It ends by itself within 50 s",
        ),
        (
            ServerDown("connection refused"),
            "WARNING",
            (
                "Vault does not answer: connection refused. Cached secrets go on being served within "
                "VAULT_CACHE_STALE_TTL, leased ones until they end; see that the server runs, is unsealed and can be reached"
            ),
        ),
        (ServerUp(12.0), "WARNING", "Vault answers again, after 12 s; nothing needs to be done"),
    ],
)
def test_an_event_is_told_once(event: Event, level: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, event) == [(level, message)]
    assert "canary" not in caplog.text


def test_a_log_in_that_goes_on_failing_is_told_aloud_once_and_again_when_it_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fails = LoginFailed("kubernetes", "r", "403", 1.0)
    levels = [level for level, _ in told(caplog, fails, fails, fails, LoggedIn("kubernetes", "r", "", 60.0))]
    assert levels == ["WARNING", "DEBUG", "DEBUG", "WARNING"]
    assert caplog.records[-1].getMessage().startswith("logged in again as")


def test_a_log_in_that_fails_for_another_reason_is_told_aloud_again(caplog: pytest.LogCaptureFixture) -> None:
    first, then = LoginFailed("kubernetes", "r", "403", 1.0), LoginFailed("kubernetes", "r", "time-out", 2.0)
    assert [level for level, _ in told(caplog, first, then)] == ["WARNING", "WARNING"]


def test_a_text_from_outside_can_neither_forge_nor_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ((_, message),) = told(caplog, ServerDown("x\nERROR root: forged\u2028" + "y" * 5000))
    assert message.isprintable()
    assert len(message) < 1000
