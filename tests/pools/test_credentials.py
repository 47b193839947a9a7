"""What all pools have in common: a hold for each connection, one new try, and which credential is the current one."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from collections.abc import Iterator

import pytest

from vault_middleware import RequestSecrets, Secret
from vault_middleware.accessor import activate, deactivate
from vault_middleware.errors import SecretNotFound
from vault_middleware.integrations.credentials import Credentials, refused, user_and_password
from vault_middleware.testing import StubManager
from vault_middleware.web import wsgi_identity

CREDS = "database/creds/app"
STATIC = "app/database"


@pytest.fixture
def manager() -> Iterator[StubManager]:
    pair = {"username": "app", "password": "pw"}
    with StubManager({CREDS: pair, STATIC: pair}) as stub:
        yield stub


class Refusal(Exception):
    """What a database says of a password that is wrong."""

    sqlstate = "28P01"


def test_each_connection_has_a_hold_of_its_own_and_the_last_one_lets_the_lease_go(manager: StubManager) -> None:
    credentials = Credentials(manager, CREDS)
    one, other = credentials.take(), credentials.take()
    manager.rotate(CREDS)
    assert len(manager.leases) == 2
    one.close()
    one.close()
    assert len(manager.leases) == 2
    other.close()
    assert len(manager.leases) == 1


def test_a_rotation_is_known_before_idle_connections_are_looked_for(manager: StubManager) -> None:
    seen: list[bool] = []
    credentials = Credentials(manager, CREDS, retire=lambda: seen.append(credentials.is_current(held)))
    held = credentials.take()
    assert credentials.is_current(held)
    manager.rotate(CREDS)
    assert seen == [False]
    assert credentials.is_current(credentials.take())


def test_a_renewal_leaves_the_credential_the_current_one(manager: StubManager) -> None:
    credentials = Credentials(manager, CREDS)
    manager.rotate(CREDS)
    held = credentials.take()
    manager.advance(3 * 3600)
    assert credentials.is_current(held)


@pytest.mark.parametrize("path", [CREDS, STATIC])
def test_a_credential_that_was_read_between_its_publication_and_the_news_of_it_is_current(
    manager: StubManager, path: str
) -> None:
    seen: list[bool] = []
    manager.on_rotate(path, lambda _secret: seen.append(credentials.is_current(credentials.take())))
    credentials = Credentials(manager, path)  # told after the one above
    before = credentials.take()
    manager.rotate(path)
    manager.rotate(path)
    assert seen == [True, True]
    assert not credentials.is_current(before)


def test_a_static_password_is_followed_as_a_leased_one(manager: StubManager) -> None:
    credentials = Credentials(manager, STATIC)
    before = credentials.take()
    manager.rotate(STATIC, {"username": "app", "password": "new"})
    assert not credentials.is_current(before)
    assert user_and_password(credentials.take().secret) == {"user": "app", "password": "new"}


def test_what_the_database_refuses_is_replaced_for_one_new_try_and_no_more(manager: StubManager) -> None:
    credentials = Credentials(manager, CREDS)
    tried: list[str] = []

    def make(secret: Secret) -> str:
        tried.append(secret["username"])
        if len(tried) in (1, 3, 4):
            raise Refusal
        return str(secret["username"])

    connection, held = credentials.connect(make)
    assert (connection, tried) == ("app-2", ["app", "app-2"])
    held.close()
    with pytest.raises(Refusal):
        credentials.connect(make)
    assert len(tried) == 4
    assert len(manager.leases) == 1, "the refused ones are held by nobody"


def test_in_a_coroutine_too(manager: StubManager) -> None:
    credentials = Credentials(manager, CREDS)
    tried: list[str] = []

    async def make(secret: Secret) -> str:
        await asyncio.sleep(0)
        tried.append(secret["username"])
        if len(tried) == 1:
            raise Refusal
        return str(secret["username"])

    assert asyncio.run(credentials.aconnect(make))[0] == "app-2"
    assert len(manager.leases) == 1


def test_another_failure_is_not_the_credentials_fault(manager: StubManager) -> None:
    credentials = Credentials(manager, CREDS)
    tried = []

    def make(secret: Secret) -> str:
        tried.append(secret)
        raise OSError("connection refused")

    with pytest.raises(OSError, match="connection refused"):
        credentials.connect(make)
    assert len(tried) == 1
    manager.rotate(CREDS)
    assert len(manager.leases) == 1, "nobody holds the lease of a connection that was never made"


def test_what_cannot_be_read_is_the_getters_error(manager: StubManager) -> None:
    with pytest.raises(SecretNotFound):
        Credentials(manager, "app/none").take()
    with pytest.raises(SecretNotFound):
        asyncio.run(Credentials(manager, "app/none").atake())


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (Refusal(), True),
        (Exception('connection failed: FATAL:  password authentication failed for user "v-app"'), True),
        (Exception('FATAL:  role "v-app" does not exist'), True),
        (Exception(1045, "Access denied for user 'v-app'@'localhost'"), True),
        (Exception('FATAL:  database "app" does not exist'), False),
        (Exception("FATAL:  sorry, too many clients already"), False),
        (Exception(2003, "Can't connect to MySQL server"), False),
        (Exception(), False),
    ],
)
def test_a_refusal_is_told_from_other_failures(error: Exception, is_refusal: bool) -> None:
    assert refused(error) is is_refusal


def test_the_audit_line_of_a_connection_names_the_request_that_opened_it(manager: StubManager) -> None:
    environ = {"HTTP_X_REQUEST_ID": "asked-for-it", "REQUEST_METHOD": "GET", "PATH_INFO": "/x"}
    with RequestSecrets(manager, environ, wsgi_identity) as request:
        token = activate(request)
        held = Credentials(manager, CREDS).take()
        deactivate(token)
    line = manager.audit_lines[-1]
    assert (line["request_id"], line["path"]) == ("asked-for-it", "/x")
    manager.rotate(CREDS)
    assert len(manager.leases) == 2, "the connection outlives the request, and so does its hold"
    held.close()


def test_a_forked_child_gives_back_nothing_of_its_parents_and_takes_its_connections_for_old(
    manager: StubManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = Credentials(manager, CREDS)
    held = credentials.take()
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert held.inherited
    assert not credentials.is_current(held)
    held.close()
    monkeypatch.undo()
    manager.rotate(CREDS)
    assert len(manager.leases) == 2


def test_credentials_that_nobody_has_any_more_are_forgotten(manager: StubManager) -> None:
    credentials = Credentials(manager, CREDS, retire=lambda: None)
    gone = weakref.ref(credentials)
    del credentials
    gc.collect()
    assert gone() is None
    assert manager._callbacks[CREDS] == []


def test_a_hold_prints_no_value(manager: StubManager) -> None:
    assert "pw" not in repr(Credentials(manager, CREDS).take())
