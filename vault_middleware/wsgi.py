"""VaultWSGIMiddleware: the WSGI wrapper; the accessor ends when the body has been sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from .accessor import RequestSecrets, activate, deactivate
from .config import SecretConfig
from .errors import VaultMiddlewareError
from .guards import WSGIGuard
from .manager import SecretsManager
from .web import WSGIIdentity, error_response

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
        self.app = app if tripwire is None else WSGIGuard(app, tripwire, lambda: self.manager)
        self.manager = SecretsManager(config) if manager is None else manager
        self._handle_errors = handle_errors

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        secrets = RequestSecrets(self.manager, WSGIIdentity(environ))
        outer = environ.get("vault_middleware.secrets"), environ.get("vault_middleware.manager")
        environ["vault_middleware.secrets"] = secrets
        environ["vault_middleware.manager"] = self.manager
        end = partial(_end, secrets, activate(secrets), environ, outer)
        failure: VaultMiddlewareError
        try:
            body = self.app(environ, start_response)
            return _Body(body, end, start_response if self._handle_errors else None)
        except VaultMiddlewareError as error:
            end()
            if not self._handle_errors:
                raise
            failure = error
        except BaseException:
            end()
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


def _end(
    secrets: RequestSecrets, token: Token[RequestSecrets], environ: WSGIEnvironment, outer: tuple[object, object]
) -> None:
    deactivate(token)
    secrets.close()
    if outer[0] is not None:  # a middleware around this one, whose environ this is too
        environ["vault_middleware.secrets"], environ["vault_middleware.manager"] = outer


class _Body:
    """The response's body, whose end is the end of the request: the server calls ``close`` when it has been sent."""

    __slots__ = ("_body", "_end", "_start_response")

    def __init__(
        self, body: Iterable[bytes], end: Callable[[], None], start_response: StartResponse | None = None
    ) -> None:
        self._body = body
        self._end = end
        self._start_response = start_response

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body) if self._start_response is None else self._answering_errors(self._start_response)

    def _answering_errors(self, start_response: StartResponse) -> Iterator[bytes]:
        """The body; an error of ours in it becomes the response, unless the server has sent something already."""
        failure: VaultMiddlewareError
        try:
            yield from self._body
            return
        except VaultMiddlewareError as error:
            failure = error
        yield _answer(failure, start_response)

    def close(self) -> None:
        """Close the body, and then the accessor, whatever the body's own close does."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._end()
