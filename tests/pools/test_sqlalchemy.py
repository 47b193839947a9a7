"""The pools of SQLAlchemy on SQLite, which needs no server: idle and busy connections, overflow, and other pools."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from tests.waiting import in_threads
from vault_middleware.errors import ConfigurationError
from vault_middleware.integrations.sqlalchemy import create_engine
from vault_middleware.testing import StubManager

CREDS = "database/creds/app"

Make = Callable[..., sa.Engine]


@pytest.fixture
def manager() -> Iterator[StubManager]:
    with StubManager({CREDS: {"username": "app", "password": "pw"}}) as stub:
        yield stub


@pytest.fixture
def make(manager: StubManager) -> Iterator[Make]:
    made: list[sa.Engine] = []

    def engine(**options: Any) -> sa.Engine:
        options = {"poolclass": QueuePool, "connect_args": {"check_same_thread": False}, **options}
        made.append(create_engine("sqlite://", secrets=manager, path=CREDS, arguments=lambda _secret: {}, **options))
        return made[-1]

    yield engine
    for each in made:
        each.dispose()


def dbapi(connection: sa.Connection) -> object:
    return connection.connection.dbapi_connection


def test_a_rotation_closes_what_is_idle_and_keeps_its_places(manager: StubManager, make: Make) -> None:
    engine = make(pool_size=3, max_overflow=0)
    opened = [engine.connect() for _ in range(3)]
    before = {dbapi(each) for each in opened}
    for each in opened:
        each.close()
    manager.rotate(CREDS)
    assert len(manager.leases) == 1, "nothing of the old credential is open"
    assert engine.pool.checkedin() == 3  # type: ignore[attr-defined]
    again = [engine.connect() for _ in range(3)]
    assert before.isdisjoint(dbapi(each) for each in again)
    for each in again:
        each.close()


def test_what_is_busy_at_a_rotation_is_closed_when_it_comes_back(manager: StubManager, make: Make) -> None:
    engine = make(pool_size=1)
    with engine.connect() as connection:
        manager.rotate(CREDS)
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1
        assert len(manager.leases) == 2, "the old lease is held"
    assert len(manager.leases) == 1


def test_a_connection_that_is_current_stays(manager: StubManager, make: Make) -> None:
    engine = make()
    manager.rotate(CREDS)
    with engine.connect() as connection:
        first = dbapi(connection)
    manager.advance(3600)  # renewals
    with engine.connect() as connection:
        assert dbapi(connection) is first


def test_a_connection_that_comes_back_while_the_rotation_is_being_told_does_not_stay(
    manager: StubManager, make: Make
) -> None:
    """Put back after the look at the credential and before the search for idle ones: the second look finds it."""
    engine = make(pool_size=1)
    pool: Any = engine.pool
    connection = engine.connect()
    put, once = pool._pool.put, [True]

    def late(*args: Any) -> None:
        if once.pop() if once else False:
            pool._pool.put = put
            manager.rotate(CREDS)  # its search comes before the connection is there
        put(*args)

    pool._pool.put = late
    connection.close()
    assert len(manager.leases) == 1


def test_overflow_and_places_are_counted_right_after_rotations_under_threads(manager: StubManager, make: Make) -> None:
    engine = make(pool_size=2, max_overflow=2, pool_timeout=20)
    at_work = set(range(1, 6))

    def work(index: int) -> bool:
        """The first one rotates for as long as one of the others goes through it."""
        rotations = 0
        while index == 0 and at_work:
            manager.rotate(CREDS)
            rotations += 1
        if index == 0:
            return rotations > 0
        try:
            for _ in range(20):
                with engine.connect() as connection:
                    connection.execute(sa.text("SELECT 1"))
        finally:
            at_work.remove(index)
        return True

    assert all(in_threads(6, work))
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    opened = [engine.connect() for _ in range(4)]
    for each in opened:
        each.close()
    engine.dispose()
    manager.rotate(CREDS)
    assert len(manager.leases) == 1


def test_dispose_gives_the_lease_back_and_the_pool_after_it_follows_too(manager: StubManager, make: Make) -> None:
    engine = make()
    with engine.connect():
        pass
    engine.dispose()
    manager.rotate(CREDS)
    assert len(manager.leases) == 1
    with engine.connect():
        pass
    manager.rotate(CREDS)
    assert len(manager.leases) == 1


def test_a_detached_and_an_invalidated_connection_give_the_lease_back_when_they_are_closed(
    manager: StubManager, make: Make
) -> None:
    engine = make()
    with engine.connect() as connection:
        connection.detach()
        manager.rotate(CREDS)
        assert len(manager.leases) == 2
    assert len(manager.leases) == 1
    with engine.connect() as connection:
        connection.invalidate()
        manager.rotate(CREDS)
        assert len(manager.leases) == 1


def test_without_a_pool_each_connection_has_the_current_credential_and_holds_its_lease(
    manager: StubManager, make: Make
) -> None:
    engine = make(poolclass=NullPool)
    with engine.connect():
        manager.rotate(CREDS)
        assert len(manager.leases) == 2
    assert len(manager.leases) == 1


def test_a_pool_of_another_kind_is_refused_with_what_to_use(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="use QueuePool or NullPool"):
        make(poolclass=StaticPool)


def test_a_forked_child_makes_connections_of_its_own(
    manager: StubManager, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(pool_size=1)
    with engine.connect() as connection:
        parents: Any = dbapi(connection)
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with engine.connect() as connection:
        assert dbapi(connection) is not parents
    parents.execute("SELECT 1")  # still open
    parents.close()
