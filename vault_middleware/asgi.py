"""VaultMiddleware: the pure ASGI class, for http, websocket and lifespan."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .accessor import RequestSecrets, activate, deactivate
from .config import SecretConfig
from .errors import ConfigurationError, VaultMiddlewareError
from .manager import SecretsManager
from .web import asgi_identity, error_response

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["VaultMiddleware"]

_log = logging.getLogger("vault_middleware")


class VaultMiddleware:
    """Gives each request ``request.state.secrets``, and starts and stops the manager with the application's lifespan.

    Parameters
    ----------
    app
        The application inside.
    manager
        A manager of the caller's: started if it is not yet, and closed only by the caller.
    config
        Settings for a manager of the middleware's own; without either, those of the environment.
    handle_errors
        Answer an error of this package that the application let through: 503 with ``Retry-After`` where trying again
        can help, else 500.
    tripwire
        ``alarm`` or ``block``: look for live values in responses; see :mod:`vault_middleware.tripwire`.

    Raises
    ------
    ConfigurationError
        A setting is wrong. Where the framework builds its middleware only within the lifespan, as Starlette does, the
        lifespan's start fails instead: an exception there would make some servers serve without it.
    """

    def __init__(
        self,
        app: ASGIApp,
        manager: SecretsManager | None = None,
        config: SecretConfig | None = None,
        *,
        handle_errors: bool = False,
        tripwire: str | None = None,
    ) -> None:
        self.app = app
        if tripwire is not None:
            from .guards import ASGIGuard  # noqa: PLC0415 (of no use to most)

            self.app = ASGIGuard(app, tripwire, lambda: self.manager)
        self._handle_errors = handle_errors
        self._owns_manager = manager is None
        self._manager = manager
        self._broken: ConfigurationError | None = None
        if manager is None:
            try:
                self._manager = SecretsManager(config)
            except ConfigurationError as error:
                if not _inside_lifespan(sys._getframe(1)):
                    raise
                self._broken = error.with_traceback(None)

    @property
    def manager(self) -> SecretsManager:
        """The manager behind the middleware, for ``on_rotate`` and ``health``."""
        if self._manager is None:
            assert self._broken is not None
            raise self._broken.again()
        return self._manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await (self._lifespan if kind == "lifespan" else self.app)(scope, receive, send)
            return
        manager = self._manager or self.manager
        secrets = RequestSecrets(manager, scope, asgi_identity)
        state = scope.get("state")
        if state is None:
            state = scope["state"] = {}
        # A middleware around this one, whose state this is too, finds its own there again.
        outer = (state["secrets"], state.get("secrets_manager")) if "secrets" in state else None
        state["secrets"], state["secrets_manager"] = secrets, manager
        token = activate(secrets)
        try:
            if self._handle_errors and kind == "http":
                await self._answering_errors(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            deactivate(token)
            secrets.close()
            if outer is not None:
                state["secrets"], state["secrets_manager"] = outer

    async def _answering_errors(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        failure: VaultMiddlewareError | None = None
        try:
            await self.app(scope, receive, sending)
        except VaultMiddlewareError as error:
            if begun:
                raise
            failure = error
        if failure is not None:
            _log.error("a request failed: %s", failure)
            status, headers, body = error_response(failure)
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": body})

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start before the inner application starts, and stop after it has stopped."""
        failure: VaultMiddlewareError | None = self._broken
        if failure is None:
            try:
                await _off_the_loop(self.manager.start)
            except VaultMiddlewareError as error:
                failure = error.with_traceback(None)
        if failure is not None:
            _log.critical("%s: %s", type(failure).__name__, failure)
            await receive()
            await send({"type": "lifespan.startup.failed", "message": f"{type(failure).__name__}: {failure}"})
            return
        scope.setdefault("state", {})["secrets_manager"] = self.manager
        received = 0
        begun = ended = False

        async def receiving() -> Message:
            nonlocal received
            message = await receive()
            received += 1
            return message

        async def sending(message: Message) -> None:
            nonlocal begun, ended
            if message["type"] == "lifespan.startup.complete":
                begun = True
            else:  # the manager is closed before the server hears of the end: it may end the process then
                ended = True
                await self._stop()
            await send(message)

        try:
            await self.app(scope, receiving, sending)
        except Exception:
            if begun:
                await self._stop()
            # Where the start ended in a mere exception, some servers go on without a lifespan, and so do we.
            if received:
                raise
        except BaseException:
            await self._stop()
            raise
        if ended:
            return
        # The application inside knows no lifespan, or not all of it: what is left of it is ours.
        if received == 0:
            await receive()
        if not begun:
            await send({"type": "lifespan.startup.complete"})
        if received < 2:
            await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _stop(self) -> None:
        if self._owns_manager and self.manager.started:
            await _off_the_loop(self.manager.close, "lifespan")


async def _off_the_loop(function: Callable[..., object], *args: object) -> None:
    from starlette.concurrency import run_in_threadpool  # noqa: PLC0415 (it imports anyio, of no use to WSGI)

    await run_in_threadpool(function, *args)


def _inside_lifespan(frame: FrameType | None) -> bool:
    """Whether the caller runs within an application's lifespan, where only its own messages stop the server."""
    while frame is not None:
        scope = frame.f_locals.get("scope")
        if isinstance(scope, dict) and scope.get("type") == "lifespan":
            return True
        frame = frame.f_back
    return False
