"""psycopg's pool, whose connections follow the rotation of their credential.

::

    with ConnectionPool("host=db dbname=app", secrets=manager, path="database/creds/api-gateway") as pool:
        with pool.connection() as connection:
            ...

A new connection is made with the current credential. On a rotation the idle connections of the old one are replaced at once,
and the busy ones when they come back; until then their lease is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Self

import psycopg_pool
from psycopg import AsyncConnection, Connection

from ..manager import SecretsManager
from .credentials import Credentials, Held

__all__ = ["AsyncConnectionPool", "ConnectionPool"]


class ConnectionPool(psycopg_pool.ConnectionPool[Connection[Any]]):
    """As psycopg's class of that name; close it before the manager, which revokes the credentials.

    Parameters
    ----------
    conninfo
        Where the database is, without a user and a password.
    secrets, path
        The manager, and where the credential is: a database role, or any secret with ``username`` and ``password``.
    connection_class
        psycopg's, or a class made from it.
    open
        Whether to open the pool at once; else use it as a context manager, or call ``open()``.
    options
        All else that psycopg's class takes.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        secrets: SecretsManager,
        path: str,
        connection_class: type[Connection[Any]] = Connection,
        open: bool = False,  # noqa: A002 (psycopg's name)
        **options: Any,
    ) -> None:
        self._credentials = Credentials(secrets, path, retire=self.drain)
        kind = type(connection_class.__name__, (_Following, connection_class), {"credentials": self._credentials})
        super().__init__(conninfo, connection_class=kind, open=open, **options)

    def putconn(self, conn: Connection[Any]) -> None:
        """As psycopg's; a connection that was lost holds its lease no longer."""
        super().putconn(conn)
        _give_back_if_closed(conn)

    def _add_to_pool(self, conn: Connection[Any]) -> None:
        # First put it there, and then look: a rotation first is known, and then drains. One of the two sees the other.
        super()._add_to_pool(conn)
        if _is_old(self._credentials, conn):
            self.drain()


class AsyncConnectionPool(psycopg_pool.AsyncConnectionPool[AsyncConnection[Any]]):
    """As :class:`ConnectionPool`, for asyncio."""

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        secrets: SecretsManager,
        path: str,
        connection_class: type[AsyncConnection[Any]] = AsyncConnection,
        **options: Any,
    ) -> None:
        self._credentials = Credentials(secrets, path, retire=self._rotated)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: set[asyncio.Task[None]] = set()
        kind = type(connection_class.__name__, (_AsyncFollowing, connection_class), {"credentials": self._credentials})
        super().__init__(conninfo, connection_class=kind, open=False, **options)

    async def putconn(self, conn: AsyncConnection[Any]) -> None:
        """See :meth:`ConnectionPool.putconn`."""
        await super().putconn(conn)
        _give_back_if_closed(conn)

    async def _add_to_pool(self, conn: AsyncConnection[Any]) -> None:
        self._loop = asyncio.get_running_loop()
        await super()._add_to_pool(conn)
        if _is_old(self._credentials, conn):
            await self.drain()

    def _rotated(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
                self._loop.call_soon_threadsafe(self._spawn)

    def _spawn(self) -> None:
        task = asyncio.ensure_future(self.drain())
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)


def _is_old(credentials: Credentials, connection: object) -> bool:
    held: Held | None = getattr(connection, "held", None)
    return held is not None and not credentials.is_current(held)


def _give_back_if_closed(connection: Any) -> None:
    """Nobody closes what was lost, and psycopg only forgets it."""
    if connection.closed:
        connection.held.close()


def _hold(connection: Any, held: Held) -> None:
    """*held* ends with *connection*, also where that is forgotten without being closed."""
    connection.held = held
    weakref.finalize(connection, held.close).atexit = False


class _Following(Connection[Any]):
    """A connection that holds the lease of its credential until it is closed."""

    credentials: ClassVar[Credentials]
    held: Held

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Self:
        make = super().connect
        connection, held = cls.credentials.connect(
            lambda secret: make(conninfo, **{**options, "user": secret["username"], "password": secret["password"]})
        )
        _hold(connection, held)
        return connection

    def close(self) -> None:
        """Close it, unless psycopg gives it back to its pool instead; then the lease may go."""
        try:
            super().close()
        finally:
            if self.closed:
                self.held.close()


class _AsyncFollowing(AsyncConnection[Any]):
    """As :class:`_Following`, for asyncio."""

    credentials: ClassVar[Credentials]
    held: Held

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        make = super().connect
        connection, held = await cls.credentials.aconnect(
            lambda secret: make(conninfo, **{**options, "user": secret["username"], "password": secret["password"]})
        )
        _hold(connection, held)
        return connection

    async def close(self) -> None:
        """See :meth:`_Following.close`."""
        try:
            await super().close()
        finally:
            if self.closed:
                self.held.close()
