"""Each kind of pool behind one face: a transaction on a connection of it, from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import django
import sqlalchemy as sa
from django.apps import apps
from django.conf import settings as django_settings
from django.db.utils import ConnectionHandler

from vault_middleware import SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.integrations.psycopg import AsyncConnectionPool, ConnectionPool
from vault_middleware.integrations.sqlalchemy import create_async_engine, create_engine

__all__ = ["KINDS", "Transaction", "django_databases"]

#: Runs statements in one transaction; what the first of them gives.
Transaction = Callable[[list[str]], Any]

SIZE = 6


@contextlib.contextmanager
def _sqlalchemy(stack: DevStack, manager: SecretsManager, path: str) -> Iterator[Transaction]:
    url = f"postgresql+psycopg://{stack.postgres.host}:{stack.postgres.port}/postgres"
    engine = create_engine(url, secrets=manager, path=path, pool_size=SIZE, max_overflow=SIZE)

    def run(statements: list[str]) -> Any:
        with engine.begin() as connection:
            found = [connection.execute(sa.text(each)).scalar() for each in statements]
        return found[0]

    try:
        yield run
    finally:
        engine.dispose()


@contextlib.contextmanager
def _sqlalchemy_async(stack: DevStack, manager: SecretsManager, path: str) -> Iterator[Transaction]:
    url = f"postgresql+psycopg://{stack.postgres.host}:{stack.postgres.port}/postgres"
    with _loop() as call:
        engine = create_async_engine(url, secrets=manager, path=path, pool_size=SIZE, max_overflow=SIZE)

        async def run(statements: list[str]) -> Any:
            async with engine.begin() as connection:
                found = [(await connection.execute(sa.text(each))).scalar() for each in statements]
            return found[0]

        try:
            yield lambda statements: call(run(statements))
        finally:
            call(engine.dispose())


@contextlib.contextmanager
def _psycopg(stack: DevStack, manager: SecretsManager, path: str) -> Iterator[Transaction]:
    conninfo = f"host={stack.postgres.host} port={stack.postgres.port} dbname=postgres"
    with ConnectionPool(conninfo, secrets=manager, path=path, min_size=2, max_size=SIZE) as pool:

        def run(statements: list[str]) -> Any:
            with pool.connection() as connection:
                found = [connection.execute(each.encode()).fetchone() for each in statements]
            return found[0][0]  # type: ignore[index]

        yield run


@contextlib.contextmanager
def _psycopg_async(stack: DevStack, manager: SecretsManager, path: str) -> Iterator[Transaction]:
    conninfo = f"host={stack.postgres.host} port={stack.postgres.port} dbname=postgres"
    with _loop() as call:
        pool = AsyncConnectionPool(conninfo, secrets=manager, path=path, min_size=2, max_size=SIZE)
        call(pool.open())

        async def run(statements: list[str]) -> Any:
            async with pool.connection() as connection:
                cursors = [await connection.execute(each.encode()) for each in statements]
                return (await cursors[0].fetchone())[0]  # type: ignore[index]

        try:
            yield lambda statements: call(run(statements))
        finally:
            call(pool.close())


@contextlib.contextmanager
def _loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """An event loop on a thread of its own, and a call into it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def django_databases(stack: DevStack, manager: SecretsManager, path: str, **options: Any) -> ConnectionHandler:
    """Django's connections, persistent ones, apart from those of its settings."""
    if not django_settings.configured:
        django_settings.configure(SECRET_KEY="x" * 50)
    if not apps.ready:
        django.setup()
    database = {
        "ENGINE": "vault_middleware.integrations.django_db",
        "NAME": "postgres",
        "HOST": stack.postgres.host,
        "PORT": stack.postgres.port,
        "CONN_MAX_AGE": None,
        "OPTIONS": {"vault_path": path, "vault_manager": manager},
        **options,
    }
    return ConnectionHandler({"default": database})


@contextlib.contextmanager
def _django(stack: DevStack, manager: SecretsManager, path: str) -> Iterator[Transaction]:
    databases = django_databases(stack, manager, path)
    made: set[Any] = set()

    def run(statements: list[str]) -> Any:
        """As in a request: Django looks after its connections at both ends of one."""
        connection = databases["default"]
        made.add(connection)
        connection.close_if_unusable_or_obsolete()
        try:
            connection.set_autocommit(False)
            with connection.cursor() as cursor:
                found = []
                for each in statements:
                    cursor.execute(each)
                    found.append(cursor.fetchone()[0])
            connection.commit()
            connection.set_autocommit(True)
            return found[0]
        finally:
            connection.close_if_unusable_or_obsolete()

    try:
        yield run
    finally:
        for connection in made:
            connection.inc_thread_sharing()
            connection.close()


KINDS: dict[str, Callable[[DevStack, SecretsManager, str], contextlib.AbstractContextManager[Transaction]]] = {
    "sqlalchemy": _sqlalchemy,
    "sqlalchemy-async": _sqlalchemy_async,
    "psycopg": _psycopg,
    "psycopg-async": _psycopg_async,
    "django": _django,
}
