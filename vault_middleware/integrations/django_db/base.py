"""The database backend that Django looks for here.

::

    DATABASES = {
        "default": {
            "ENGINE": "vault_middleware.integrations.django_db",
            "NAME": "app",
            "HOST": "db",
            "CONN_MAX_AGE": None,                                          # persistent connections are welcome
            "OPTIONS": {"vault_path": "database/creds/api-gateway"},       # the rest is psycopg's
        }
    }

The manager is that of ``vault_middleware.integrations.django``, or ``OPTIONS["vault_manager"]``. A connection is idle from
the end of its request to the begin of the next one: a rotation closes it then, at once. One that is in use is replaced
before its next query outside of a transaction, or at its request's end; until then its lease is held.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import base

from ...manager import SecretsManager
from ..credentials import Credentials, Held

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]  # Django has no types
    """One thread's connection to the database; see the module's text."""

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **options: Any) -> None:
        super().__init__(settings_dict, *args, **options)
        # Its owner's thread and that of a rotation agree here on who has the connection.
        self._turn = threading.RLock()
        self._idle = False
        self._held: Held | None = None
        self._credentials: Credentials | None = None
        self._named: weakref.WeakSet[Any] = weakref.WeakSet()

    # -- a new connection

    def get_connection_params(self) -> dict[str, Any]:
        """What psycopg takes, without the user and the password."""
        parameters: dict[str, Any] = super().get_connection_params()
        for name in ("vault_path", "vault_manager", "user", "password"):
            parameters.pop(name, None)
        return parameters

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection with the current credential; one that is refused is replaced, once."""
        if self.settings_dict["OPTIONS"].get("pool"):
            raise ImproperlyConfigured(
                "vault_middleware.integrations.django_db has no use for OPTIONS['pool']; use CONN_MAX_AGE"
            )
        make = super().get_new_connection
        connection, held = self._follow().connect(
            lambda secret: make({**conn_params, "user": secret["username"], "password": secret["password"]})
        )
        self._held = held
        weakref.finalize(connection, held.close).atexit = False
        return connection

    def _follow(self) -> Credentials:
        """The credentials, after a rotation of which this connection is told."""
        if self._credentials is None:
            path = self.settings_dict["OPTIONS"].get("vault_path")
            if not path:
                raise ImproperlyConfigured(
                    "DATABASES has no OPTIONS['vault_path']; name the secret, such as 'database/creds/api-gateway'"
                )
            manager = self.settings_dict["OPTIONS"].get("vault_manager") or _manager()
            self._credentials = Credentials(manager, path, retire=self._rotated)
        return self._credentials

    # -- its end

    def _is_old(self) -> bool:
        held, credentials = self._held, self._credentials
        return held is not None and credentials is not None and not credentials.is_current(held)

    def _rotated(self) -> None:
        """There is a new credential: an idle connection is closed now, on the thread of the rotation."""
        with self._turn:
            if self._idle and self.connection is not None and self._is_old():
                self._close_now()

    def _close_now(self) -> None:
        try:
            self._close()
        finally:
            self.connection = None

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            held, self._held = self._held, None
            if held is not None:
                held.close()

    def _in_use(self) -> None:
        """Before each use: it is not idle any more, and replaced if it is old and nothing hangs on it.

        Django looks after the connection's health at the same moments: before each cursor, and before a transaction.
        """
        with self._turn:
            self._idle = False
            if self.connection is None or not self._is_old():
                return
            if self._held is not None and self._held.inherited:
                self.connection = self._held = None  # a parent's: not ours to close
            elif not self.in_atomic_block and self.autocommit and not self._has_named_cursor():
                self._close_now()

    def _has_named_cursor(self) -> bool:
        return any(not cursor.closed for cursor in list(self._named))

    # -- where Django uses it, and where a request begins and ends

    def close_if_health_check_failed(self) -> None:
        self._in_use()
        super().close_if_health_check_failed()

    def ensure_connection(self) -> None:
        with self._turn:
            self._idle = False
        super().ensure_connection()

    def create_cursor(self, name: str | None = None) -> Any:
        cursor = super().create_cursor(name)
        if name:
            self._named.add(cursor)
        return cursor

    def close_if_unusable_or_obsolete(self) -> None:
        super().close_if_unusable_or_obsolete()
        with self._turn:
            if self.connection is None or self.in_atomic_block:
                return
            if self._is_old():
                self.close()
            else:
                self._idle = True


def _manager() -> SecretsManager:
    from ..django import secrets_manager  # noqa: PLC0415 (it is a middleware, of no use to who names a manager)

    return secrets_manager()
