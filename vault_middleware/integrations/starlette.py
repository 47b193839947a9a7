"""Starlette: the ASGI middleware, and typed ways to what it puts into ``request.state``.

::

    app = Starlette(routes=routes, middleware=[Middleware(VaultMiddleware)])

    def handler(request: Request) -> Response:
        secrets = secrets_of(request)      # request.state.secrets, with its type
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..accessor import RequestSecrets, current_secrets
from ..asgi import VaultMiddleware
from ..errors import AccessorClosed, ConfigurationError
from ..manager import SecretsManager

if TYPE_CHECKING:
    from typing import TypedDict

    from starlette.requests import HTTPConnection

    class State(TypedDict):
        """What the middleware adds to the state: the keys and types for a ``TypedDict`` of the application's own."""

        secrets: RequestSecrets
        secrets_manager: SecretsManager


__all__ = ["VaultMiddleware", "current_secrets", "manager_of", "secrets_of"]


def secrets_of(connection: HTTPConnection) -> RequestSecrets:
    """``connection.state.secrets`` of a request or a websocket, with its type.

    Raises
    ------
    AccessorClosed
        The request did not come through the middleware.
    """
    secrets = (connection.scope.get("state") or {}).get("secrets")
    if secrets is None:
        raise AccessorClosed("this request has no secrets; add the middleware: app.add_middleware(VaultMiddleware)")
    return secrets  # type: ignore[no-any-return]


def manager_of(connection: HTTPConnection) -> SecretsManager:
    """The manager behind the middleware, for ``on_rotate`` and ``health``.

    Raises
    ------
    ConfigurationError
        The request did not come through the middleware.
    """
    manager = (connection.scope.get("state") or {}).get("secrets_manager")
    if manager is None:
        raise ConfigurationError("this request has no manager; add the middleware: app.add_middleware(VaultMiddleware)")
    return manager  # type: ignore[no-any-return]
