"""Django: a middleware for WSGI and ASGI, and checks of its settings.

::

    MIDDLEWARE = ["vault_middleware.integrations.django.VaultMiddleware", ...]
    INSTALLED_APPS = ["vault_middleware.integrations.django.VaultConfig", ...]      # for the checks; may be left out
    VAULT_MIDDLEWARE = {"VAULT_ROLE": "api-gateway"}                # over the environment; may be left out

Beside the variables, ``VAULT_MIDDLEWARE`` knows ``HANDLE_ERRORS`` (answer our errors that a view let through: 503 with
``Retry-After`` where trying again can help, else 500), ``TRIPWIRE`` (``alarm`` or ``block``: look for live values in
responses; see :mod:`vault_middleware.tripwire`) and ``MANAGER`` (a manager of the project's own, who closes it too).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import Token
from typing import Any, NamedTuple

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.signals import setting_changed
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from ..accessor import RequestSecrets, activate, current_secrets, deactivate
from ..errors import ConfigurationError, VaultMiddlewareError
from ..manager import SecretsManager
from ..tripwire import Tripwire, Watch, checked
from ..web import asgi_identity, error_response, wsgi_identity
from ._settings import config_from

__all__ = ["VaultConfig", "VaultMiddleware", "current_secrets", "secrets_manager"]

_log = logging.getLogger("vault_middleware")

_SETTING = "VAULT_MIDDLEWARE"

#: What it knows beside the variables.
_OWN = ("HANDLE_ERRORS", "TRIPWIRE", "MANAGER")


class _Made(NamedTuple):
    """What this process has made of its settings."""

    manager: SecretsManager
    #: Whether the manager is not the project's own.
    ours: bool
    handle_errors: bool
    tripwire: Tripwire | None


_lock = threading.Lock()
_made: _Made | None = None


def _options() -> dict[str, Any]:
    options = getattr(settings, _SETTING, None) or {}
    if not isinstance(options, Mapping):
        raise ConfigurationError(
            f"{_SETTING} must be a dictionary of settings, such as {{'VAULT_ROLE': 'api-gateway'}}"
        )
    return dict(options)


def _made_once() -> _Made:
    global _made  # noqa: PLW0603 (Django has one configuration a process, and builds its middleware more than once)
    made = _made
    if made is None:
        options = _options()
        handle_errors, mode, given = (options.pop(name, None) for name in _OWN)
        if mode is not None:
            checked(mode)
        with _lock:
            made = _made
            if made is None:
                manager = SecretsManager(config_from(options)) if given is None else given
                tripwire = None if mode is None else Tripwire(manager, mode)
                made = _made = _Made(manager, given is None, bool(handle_errors), tripwire)
    return made


def secrets_manager() -> SecretsManager:
    """The manager of this process, for ``on_rotate``, ``health`` and reads outside of requests (management commands).

    Raises
    ------
    ConfigurationError
        A setting is wrong.
    """
    return _made_once().manager


def _settings_changed(*, setting: str, **_rest: object) -> None:
    """In a test with other settings: another manager. One of ours is closed, so that nothing of it is left."""
    global _made
    if setting == _SETTING:
        with _lock:
            made, _made = _made, None
        if made is not None and made.ours:
            made.manager.close("settings changed")


setting_changed.connect(_settings_changed, dispatch_uid="vault_middleware")


class VaultMiddleware:
    """Gives each request ``request.state.secrets``; the manager starts at the first use, and stops with the process.

    It works in sync and in async stacks. Put it first, so that the middlewares after it may read secrets too.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        _made_once()  # a wrong setting fails here, and SIGTERM is taken on the main thread
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._acall(request)
        handling = _Handling(request)
        try:
            return handling.until_sent(self._get_response(request))
        except BaseException:
            handling.end()
            raise

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        handling = _Handling(request)
        # Django closes no response that it fails to send; but then the task of the request ends.
        task = asyncio.current_task()
        try:
            response = handling.until_sent(await self._get_response(request))
        except BaseException:
            handling.end()
            raise
        if task is not None:
            task.add_done_callback(lambda _task: handling.end())
        return response

    def process_exception(self, _request: HttpRequest, error: Exception) -> HttpResponse | None:
        """The answer to an error of ours that a view let through, where that is wanted."""
        if not _made_once().handle_errors or not isinstance(error, VaultMiddlewareError):
            return None
        _log.error("a request failed: %s", error)
        return _answer(error)


def _answer(error: VaultMiddlewareError) -> HttpResponse:
    status, headers, body = error_response(error)
    response = HttpResponse(body, status=status)
    for name, value in headers:
        response[name] = value
    return response


class _State:
    """``request.state``, as other frameworks have it."""

    secrets: RequestSecrets
    secrets_manager: SecretsManager


class _Handling:
    """One request from its begin to the last byte of its response."""

    def __init__(self, request: HttpRequest) -> None:
        made = _made_once()
        scope: Mapping[str, Any] | None = getattr(request, "scope", None)
        self._secrets = (
            RequestSecrets(made.manager, request.META, wsgi_identity)
            if scope is None
            else RequestSecrets(made.manager, scope, asgi_identity)
        )
        state = getattr(request, "state", None)
        if state is None:
            state = request.state = _State()
        state.secrets = self._secrets
        state.secrets_manager = made.manager
        self._tripwire = made.tripwire
        self._token: Token[RequestSecrets] | None = activate(self._secrets)

    def until_sent(self, response: HttpResponseBase) -> HttpResponseBase:
        """What to send: *response*, unless it is held back; the end is when the server's side of Django closes it."""
        if self._tripwire is not None:
            response = _looked_at(response, self._tripwire.watch(self._secrets), self._tripwire.blocks)
        close = response.close

        def closing() -> None:
            try:
                close()
            finally:
                self.end()

        response.close = closing
        if not response.streaming:  # nothing of the project runs any more; and this is still the context of the request
            self._leave()
        return response

    def end(self) -> None:
        """The request has ended; idempotent."""
        self._leave()
        self._secrets.close()

    def _leave(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            deactivate(token)


def _looked_at(response: HttpResponseBase, watch: Watch, blocks: bool) -> HttpResponseBase:
    """*response*, or what is sent in its place; a streamed body is looked at as it is sent."""
    headers = [value for _, value in response.items()]
    for cookie in response.cookies.values():
        headers += cookie.value, cookie.OutputString()
    watch.headers([(b"", value.encode("latin-1", "replace")) for value in headers])
    if not response.streaming:
        watch.body(response.content)
    elif response.is_async:
        response.streaming_content = _aguarded(response.streaming_content, watch, blocks)
    else:
        response.streaming_content = _guarded(response.streaming_content, watch, blocks)
    if not (blocks and watch.found):
        return response
    refused = _answer(VaultMiddlewareError("a response was held back"))
    refused._resource_closers.extend(response._resource_closers)  # Django closes only what it sends
    return refused


def _guarded(body: Iterable[bytes], watch: Watch, blocks: bool) -> Iterator[bytes]:
    for piece in body:
        yield _passed(piece, watch, blocks)


async def _aguarded(body: AsyncIterable[bytes], watch: Watch, blocks: bool) -> AsyncIterator[bytes]:
    async for piece in body:
        yield _passed(piece, watch, blocks)


def _passed(piece: bytes, watch: Watch, blocks: bool) -> bytes:
    """*piece* of a streamed body, whose start has been sent: one that is held back ends it."""
    if watch.body(piece) and blocks:
        raise VaultMiddlewareError("the rest of a response was held back: a live value of a secret stood in it")
    return piece


class VaultConfig(AppConfig):  # type: ignore[misc]
    """The application for ``INSTALLED_APPS``: with it, ``manage.py check`` tells of bad settings."""

    name = "vault_middleware.integrations.django"
    label = "vault_middleware"
    verbose_name = "vault-middleware"

    def ready(self) -> None:
        """Register the checks."""
        checks.register(check_settings)


def check_settings(app_configs: object = None, **_rest: object) -> list[checks.CheckMessage]:
    """What is wrong with the settings: ``E001`` a bad value or name, ``W001`` the middleware is missing."""
    found: list[checks.CheckMessage] = []
    problem: ConfigurationError | None = None
    try:
        options = _options()
        _, mode, given = (options.pop(name, None) for name in _OWN)
        if mode is not None:
            checked(mode)
        if given is None:
            config_from(options)
    except ConfigurationError as error:
        problem = error
    if problem is not None:
        hint = f"Set it in {_SETTING} or in the environment."
        found.append(checks.Error(str(problem), hint=hint, id="vault_middleware.E001"))
    middleware = f"{__name__}.VaultMiddleware"
    if middleware not in getattr(settings, "MIDDLEWARE", ()):
        hint = f"Add {middleware!r} to MIDDLEWARE, first."
        found.append(checks.Warning("Requests have no secrets.", hint=hint, id="vault_middleware.W001"))
    return found
