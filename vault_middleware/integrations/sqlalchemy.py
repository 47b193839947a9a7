"""SQLAlchemy: an engine whose connections follow the rotation of their credential.

::

    engine = create_engine("postgresql+psycopg://db/app", secrets=manager, path="database/creds/api-gateway")

A new connection is made with the current credential. On a rotation the idle connections of the old one are closed at once,
and the busy ones when they come back; until then their lease is held. ``pool_recycle`` has no part in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy
from sqlalchemy import URL, Engine, event
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, NullPool, Pool, QueuePool
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.queue import Empty

from ..errors import ConfigurationError
from ..manager import SecretsManager
from ..secret import Secret
from .credentials import Credentials, Held, user_and_password

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["create_async_engine", "create_engine"]

Arguments = Callable[[Secret], dict[str, Any]]


def create_engine(
    url: str | URL,
    *,
    secrets: SecretsManager,
    path: str,
    arguments: Arguments = user_and_password,
    poolclass: type[Pool] = QueuePool,
    **options: Any,
) -> Engine:
    """As SQLAlchemy's function of that name.

    Dispose of the engine before the manager is closed, which revokes the credentials.

    Parameters
    ----------
    url
        Where the database is, without a user and a password.
    secrets, path
        The manager, and where the credential is: a database role, or any secret with a user and a password.
    arguments
        What the driver's ``connect`` takes, made from the secret; by default ``user`` and ``password``.
    poolclass
        ``QueuePool``, ``NullPool`` or a class made from them.
    options
        All else that SQLAlchemy's function takes.

    Raises
    ------
    ConfigurationError
        The pool is of another kind.
    """
    following = _Following(Credentials(secrets, path), arguments)
    engine = sqlalchemy.create_engine(url, poolclass=following.pool_from(poolclass), **options)
    event.listen(engine, "do_connect", following.connect)
    return engine


def create_async_engine(
    url: str | URL,
    *,
    secrets: SecretsManager,
    path: str,
    arguments: Arguments = user_and_password,
    poolclass: type[Pool] = AsyncAdaptedQueuePool,
    **options: Any,
) -> AsyncEngine:
    """As :func:`create_engine`, for asyncio: of one event loop, as every such engine."""
    from sqlalchemy.ext import asyncio as extension  # noqa: PLC0415 (who has no greenlet can use the other one)

    following = _Following(Credentials(secrets, path), arguments, is_async=True)
    engine = extension.create_async_engine(url, poolclass=following.pool_from(poolclass), **options)
    event.listen(engine.sync_engine, "do_connect", following.connect)
    return engine


class _Following:
    """What the pools of one engine share: its credentials, and which connection was made with which."""

    def __init__(self, credentials: Credentials, arguments: Arguments, *, is_async: bool = False) -> None:
        self.credentials = credentials
        self._arguments = arguments
        self._is_async = is_async
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: dict[int, Held] = {}

    def pool_from(self, base: type[Pool]) -> type[Pool]:
        """A class of pools that are ours; an attribute of the class, because SQLAlchemy makes the objects again."""
        kinds: tuple[type[Pool], ...]
        if issubclass(base, QueuePool):
            kinds = (_FollowingPool, base)
        elif issubclass(base, NullPool):
            kinds = (_HoldingPool, base)
        else:
            raise ConfigurationError(f"a {base.__name__} cannot follow a rotation; use QueuePool or NullPool")
        return type(f"Following{base.__name__}", kinds, {"following": self})

    def connect(self, dialect: Any, _record: object, cargs: list[Any], cparams: dict[str, Any]) -> Any:
        """The listener for ``do_connect``."""

        def make(secret: Secret) -> Any:
            return dialect.connect(*cargs, **{**cparams, **self._arguments(secret)})

        if self._is_async:
            self._loop = asyncio.get_running_loop()
        take = (lambda: await_only(self.credentials.atake())) if self._is_async else None
        connection, held = self.credentials.connect(make, take)
        # One of the same identity is gone, and was never closed.
        self.closed(connection)
        self._held[id(connection)] = held
        return connection

    def closed(self, connection: object) -> None:
        """*connection* is closed: its lease may go."""
        held = self._held.pop(id(connection), None)
        if held is not None:
            held.close()

    def held_by(self, record: ConnectionPoolEntry) -> Held | None:
        """The credential of the connection in *record*; None if it is closed."""
        return None if record.dbapi_connection is None else self._held.get(id(record.dbapi_connection))

    def is_old(self, record: ConnectionPoolEntry) -> bool:
        """Whether the connection in *record* is to be used no more."""
        held = self.held_by(record)
        return held is not None and not self.credentials.is_current(held)

    def aside(self, retire: Callable[[], None]) -> None:
        """Run *retire* where connections of this engine may be closed: here, or on its event loop."""
        if not self._is_async:
            retire()
        elif self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
                self._loop.call_soon_threadsafe(self._spawn, retire)

    def _spawn(self, retire: Callable[[], None]) -> None:
        task = asyncio.ensure_future(greenlet_spawn(retire))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _HoldingPool(Pool):
    """A pool whose connections hold their lease until they are closed."""

    following: ClassVar[_Following]

    def _close_connection(self, connection: Any, *args: Any, **options: Any) -> None:
        try:
            super()._close_connection(connection, *args, **options)
        finally:
            self.following.closed(connection)


class _FollowingPool(_HoldingPool, QueuePool):
    """A pool that closes the connections of an old credential.

    A connection is first put back and then looked at once more; a rotation is first known and then looks for connections.
    Whatever the interleaving, one of the two sees the other.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.following.credentials.follow(self._rotated)

    def _do_get(self) -> ConnectionPoolEntry:
        record = super()._do_get()
        held = self.following.held_by(record)
        if held is not None and held.inherited:
            record.dbapi_connection = None  # type: ignore[misc]  # a parent's: not ours to close
        elif self.following.is_old(record):
            record.close()  # who has asked makes a new one in its place
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self.following.is_old(record):
            record.close()
        super()._do_return_conn(record)
        if self.following.is_old(record):
            self._rotated()

    def _rotated(self) -> None:
        self.following.aside(self._retire)

    def _retire(self) -> None:
        """Close the idle connections of an old credential; their places in the pool stay, for new ones."""
        records: list[ConnectionPoolEntry] = []
        with contextlib.suppress(Empty):
            while True:
                records.append(self._pool.get(False))
        for record in sorted(records, key=self.following.is_old):
            if self.following.is_old(record):
                record.close()
            super()._do_return_conn(record)
