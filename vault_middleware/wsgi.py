"""VaultWSGIMiddleware: the WSGI wrapper; the accessor ends when the body has been sent."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING

from .accessor import RequestSecrets, activate, deactivate
from .config import SecretConfig
from .errors import VaultMiddlewareError
from .manager import SecretsManager
from .web import error_response, wsgi_identity

if TYPE_CHECKING:
    from contextvars import Token
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["VaultWSGIMiddleware"]

_log = logging.getLogger("vault_middleware")


class VaultWSGIMiddleware:
    """Gives each request ``environ["vault_middleware.secrets"]``; the manager starts at the first use.

    The manager itself is ``environ["vault_middleware.manager"]``. Parameters and errors are those of
    :class:`~vault_middleware.asgi.VaultMiddleware`.
    """

    def __init__(
        self,
        app: WSGIApplication,
        manager: SecretsManager | None = None,
        config: SecretConfig | None = None,
        *,
        handle_errors: bool = False,
        tripwire: str | None = None,
    ) -> None:
        self.app = app
        if tripwire is not None:
            from .guards import WSGIGuard  # noqa: PLC0415 (of no use to most)

            self.app = WSGIGuard(app, tripwire, lambda: self.manager)
        self.manager = SecretsManager(config) if manager is None else manager
        self._handle_errors = handle_errors

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        manager = self.manager
        secrets = RequestSecrets(manager, environ, wsgi_identity)
        outer = None
        if "vault_middleware.secrets" in environ:
            outer = environ["vault_middleware.secrets"], environ.get("vault_middleware.manager")
        environ["vault_middleware.secrets"] = secrets
        environ["vault_middleware.manager"] = manager
        body = _Body(secrets, activate(secrets), environ, outer, start_response if self._handle_errors else None)
        failure: VaultMiddlewareError
        try:
            body.inner = self.app(environ, start_response)
            return body
        except VaultMiddlewareError as error:
            body.close()
            if not self._handle_errors:
                raise
            failure = error
        except BaseException:
            body.close()
            raise
        return [_answer(failure, start_response)]


def _answer(failure: VaultMiddlewareError, start_response: StartResponse) -> bytes:
    """Begin the response that *failure* becomes, and give its body; where another one has been sent, the server raises."""
    _log.error("a request failed: %s", failure)
    status, headers, body = error_response(failure)
    assert failure.__traceback__ is not None  # it was caught
    raised = type(failure), failure, failure.__traceback__
    start_response(f"{status} {HTTPStatus(status).phrase}", headers, raised)
    return body


class _Body:
    """The response's body, whose end is the end of the request: the server calls ``close`` when it has been sent."""

    __slots__ = ("_environ", "_outer", "_secrets", "_start_response", "_token", "inner")

    def __init__(
        self,
        secrets: RequestSecrets,
        token: Token[RequestSecrets],
        environ: WSGIEnvironment,
        outer: tuple[object, object] | None,
        start_response: StartResponse | None,
    ) -> None:
        self._secrets = secrets
        self._token = token
        self._environ = environ
        # What a middleware around this one, whose environ this is too, has put there.
        self._outer = outer
        self._start_response = start_response
        #: The application's own body.
        self.inner: Iterable[bytes] = ()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.inner) if self._start_response is None else self._answering_errors(self._start_response)

    def _answering_errors(self, start_response: StartResponse) -> Iterator[bytes]:
        """The body; an error of ours in it becomes the response, unless the server has sent something already."""
        failure: VaultMiddlewareError
        try:
            yield from self.inner
            return
        except VaultMiddlewareError as error:
            failure = error
        yield _answer(failure, start_response)

    def close(self) -> None:
        """Close the body, and then the accessor, whatever the body's own close does."""
        try:
            close = getattr(self.inner, "close", None)
            if close is not None:
                close()
        finally:
            deactivate(self._token)
            self._secrets.close()
            if self._outer is not None:
                self._environ["vault_middleware.secrets"], self._environ["vault_middleware.manager"] = self._outer
