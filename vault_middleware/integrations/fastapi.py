"""FastAPI: the secrets of the request as a dependency.

::

    app = FastAPI()
    app.add_middleware(VaultMiddleware)

    @app.get("/")
    def endpoint(secrets: SecretsDep):                  # or async def, with secrets.aget_secret
        return len(secrets.get_secret("shared/jwt"))

In a test, ``app.dependency_overrides[request_secrets]`` replaces them.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from ..accessor import RequestSecrets, current_secrets
from ..asgi import VaultMiddleware
from ..manager import SecretsManager
from .starlette import manager_of, secrets_of

__all__ = ["ManagerDep", "SecretsDep", "VaultMiddleware", "current_secrets", "request_secrets", "secrets_manager"]


# Coroutines both, though they wait for nothing: FastAPI sends plain functions to a thread, for each request.
async def request_secrets(connection: HTTPConnection) -> RequestSecrets:
    """The dependency behind ``SecretsDep``: the accessor of the request or websocket."""
    return secrets_of(connection)


async def secrets_manager(connection: HTTPConnection) -> SecretsManager:
    """The dependency behind ``ManagerDep``: the manager behind the middleware."""
    return manager_of(connection)


#: The secrets of the request, as the type of an endpoint's parameter.
SecretsDep = Annotated[RequestSecrets, Depends(request_secrets)]

#: The manager, for ``on_rotate`` and ``health``.
ManagerDep = Annotated[SecretsManager, Depends(secrets_manager)]
