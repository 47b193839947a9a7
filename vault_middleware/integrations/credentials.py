"""The credentials of connections that outlive requests: what the connection pools of this folder have in common.

Each connection has a hold of its own on the lease it was made with, and so a rotation leaves the lease alone until the
last of its connections is closed. For a pool of your own::

    credentials = Credentials(manager, "database/creds/api-gateway", retire=pool.close_idle)

    connection, held = credentials.connect(lambda secret: driver.connect(secret["username"], secret["password"]))
    ...                                    # when it comes back: credentials.is_current(held), else close it
    connection.close()
    held.close()
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..accessor import RequestSecrets, current_secrets
from ..errors import AccessorClosed
from ..manager import SecretsManager
from ..secret import DynamicSecret, Secret
from ..telemetry.lines import NOBODY, Identity, copied

__all__ = ["Credentials", "Held", "refused", "user_and_password"]

C = TypeVar("C")

#: What the databases say of a credential that they do not take: SQLSTATE, the numbers of MySQL, and PostgreSQL's words,
#: for drivers on libpq know no more of a log-in that failed.
_STATES = frozenset({"28P01", "28000"})
_NUMBERS = frozenset({1045, 1698})
_WORDS = re.compile(r"password authentication failed|role \"[^\"]*\" (does not exist|is not permitted to log in)")


def refused(error: BaseException) -> bool:
    """Whether a connection could not be made because of its credential."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is not None:
        return state in _STATES
    number = error.args[0] if error.args else None
    return (isinstance(number, int) and number in _NUMBERS) or _WORDS.search(str(error)) is not None


def user_and_password(secret: Secret) -> dict[str, str]:
    """The arguments of most drivers, from the ``username`` and ``password`` of a database secret."""
    return {"user": secret["username"], "password": secret["password"]}


class Held:
    """The credential of one connection, and its hold on the lease until :meth:`close`."""

    __slots__ = ("__weakref__", "_accessor", "_pid", "rotations", "secret")

    def __init__(self, accessor: RequestSecrets, secret: Secret, rotations: int) -> None:
        self._accessor = accessor
        self._pid = os.getpid()
        self.secret = secret
        #: How many rotations were known of when it was read.
        self.rotations = rotations

    @property
    def inherited(self) -> bool:
        """Whether it belongs to the process that this one was forked from."""
        return self._pid != os.getpid()

    def close(self) -> None:
        """The connection is closed: give the lease back; idempotent. A parent's lease is left to the parent."""
        if not self.inherited:
            self._accessor.close()

    def __repr__(self) -> str:
        return f"<Held {self.secret!r}>"


class Credentials:
    """The secret at *path*, for connections.

    Parameters
    ----------
    manager
        Where it is read.
    path
        A database role with leases, or any secret with a user and a password in it.
    retire
        Called after each rotation, on a thread of the manager's: close what is idle and not :meth:`is_current`.
        Referred to weakly if it is a method.
    """

    def __init__(self, manager: SecretsManager, path: str, retire: Callable[[], object] | None = None) -> None:
        self.manager = manager
        self.path = path
        self._newest: Secret | None = None
        self._rotations = 0
        self._retire: list[Callable[[], Callable[[], object] | None]] = []
        if retire is not None:
            self.follow(retire)
        this = weakref.ref(self)

        def rotated(secret: Secret) -> None:
            if (found := this()) is not None:
                found._rotated(secret)

        weakref.finalize(self, manager.on_rotate(path, rotated)).atexit = False

    def follow(self, retire: Callable[[], object]) -> None:
        """Call *retire* too after each rotation."""
        self._retire.append(weakref.WeakMethod(retire) if hasattr(retire, "__self__") else lambda: retire)

    def _rotated(self, secret: Secret) -> None:
        self._newest = secret
        self._rotations += 1
        self._retire = [each for each in self._retire if each() is not None]
        for each in self._retire:
            if (retire := each()) is not None:
                retire()

    def is_current(self, held: Held) -> bool:
        """Whether *held* is still the newest credential; of this process."""
        if held.inherited:
            return False
        newest = self._newest
        return held.rotations == self._rotations or newest is None or _same(newest, held.secret)

    def take(self) -> Held:
        """The current credential, held until it is given back; raises as ``get_secret`` does."""
        accessor, rotations = self._accessor(), self._rotations
        try:
            return Held(accessor, accessor.get_secret(self.path), rotations)
        except BaseException:
            accessor.close()
            raise

    async def atake(self) -> Held:
        """As :meth:`take`, for the event loop."""
        accessor, rotations = self._accessor(), self._rotations
        try:
            return Held(accessor, await accessor.aget_secret(self.path), rotations)
        except BaseException:
            accessor.close()
            raise

    def connect(self, make: Callable[[Secret], C], take: Callable[[], Held] | None = None) -> tuple[C, Held]:
        """What *make* makes of the current credential; of another one, once, where the database refuses the first."""
        take = take or self.take
        held = take()
        try:
            return make(held.secret), held
        except Exception as error:
            if not self._reject(held, error):
                raise
        except BaseException:
            held.close()
            raise
        held = take()
        try:
            return make(held.secret), held
        except BaseException:
            held.close()
            raise

    async def aconnect(self, make: Callable[[Secret], Awaitable[C]]) -> tuple[C, Held]:
        """As :meth:`connect`, for the event loop."""
        held = await self.atake()
        try:
            return await make(held.secret), held
        except Exception as error:
            if not self._reject(held, error):
                raise
        except BaseException:
            held.close()
            raise
        held = await self.atake()
        try:
            return await make(held.secret), held
        except BaseException:
            held.close()
            raise

    def _reject(self, held: Held, error: Exception) -> bool:
        """A connection could not be made: whether another credential may help."""
        try:
            if not refused(error):
                return False
            self.manager.reject(held.secret)
            return True
        finally:
            held.close()

    def _accessor(self) -> RequestSecrets:
        return RequestSecrets(self.manager, _asking())


def _asking() -> Identity:
    """The request that opens the connection, for its audit lines, if there is one; the connection outlives it."""
    try:
        return copied(current_secrets().identity)
    except AccessorClosed:
        return NOBODY


def _same(newest: Secret, other: Secret) -> bool:
    if isinstance(newest, DynamicSecret) and isinstance(other, DynamicSecret):
        return newest.lease.lease_id == other.lease.lease_id
    return dict(newest) == dict(other)
