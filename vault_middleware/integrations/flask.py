"""Flask: an extension, for one application or for a factory.

::

    vault = Vault()

    def create_app():
        app = Flask(__name__)
        vault.init_app(app)                # everything from app.config["VAULT_…"] and the environment
        return app

    flask.request.state.secrets            # in a view; or current_secrets() anywhere below it
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from flask import Response, current_app
from werkzeug.utils import cached_property

from ..accessor import current_secrets
from ..config import SecretConfig
from ..errors import AccessorClosed, ConfigurationError, VaultMiddlewareError
from ..manager import SecretsManager
from ..web import error_response
from ..wsgi import VaultWSGIMiddleware
from ._settings import KNOWN, config_from

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["Vault", "current_secrets"]

_NAME = "vault_middleware"


class Vault:
    """The extension: gives each request ``request.state.secrets``.

    Parameters
    ----------
    app
        The application, if there is one already; else call :meth:`init_app`.
    manager
        A manager of the caller's, who closes it too.
    config
        Settings for a manager of the extension's own; without either, ``app.config["VAULT_…"]`` over the environment.
    handle_errors
        Answer an error of this package that a view let through: 503 with ``Retry-After`` where trying again can help,
        else 500.
    tripwire
        ``alarm`` or ``block``: look for live values in responses; see :mod:`vault_middleware.tripwire`.

    Raises
    ------
    ConfigurationError
        A setting is wrong.
    """

    def __init__(
        self,
        app: Flask | None = None,
        manager: SecretsManager | None = None,
        config: SecretConfig | None = None,
        *,
        handle_errors: bool = False,
        tripwire: str | None = None,
    ) -> None:
        self._manager = manager
        self._config = config
        self._handle_errors = handle_errors
        self._tripwire = tripwire
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put the middleware around *app*; each application has a manager of its own, unless one was passed in."""
        if _NAME in app.extensions:
            raise ConfigurationError("this application has the Vault extension already; call init_app once")
        config = self._config
        if config is None and self._manager is None:
            config = config_from({name: value for name, value in app.config.items() if name in KNOWN})
        middleware = VaultWSGIMiddleware(app.wsgi_app, self._manager, config, tripwire=self._tripwire)
        app.wsgi_app = middleware  # type: ignore[method-assign]
        app.extensions[_NAME] = middleware
        app.request_class = type("Request", (_WithState, app.request_class), {})
        if self._handle_errors:
            app.register_error_handler(VaultMiddlewareError, _answer)

    @property
    def manager(self) -> SecretsManager:
        """The manager of the current application, for ``on_rotate`` and ``health``."""
        middleware: VaultWSGIMiddleware | None = current_app.extensions.get(_NAME)
        if middleware is None:
            raise ConfigurationError("the current application has no Vault extension; call init_app(app)")
        return middleware.manager


class _WithState:
    """What a Flask request is given: ``state``, as other frameworks have it."""

    environ: dict[str, object]

    @cached_property
    def state(self) -> SimpleNamespace:
        """``secrets`` and ``secrets_manager``, and whatever the application puts there."""
        secrets = self.environ.get("vault_middleware.secrets")
        if secrets is None:
            raise AccessorClosed(
                "this request did not come through the server; in a test use app.test_client() rather than a "
                "test_request_context()"
            )
        return SimpleNamespace(secrets=secrets, secrets_manager=self.environ["vault_middleware.manager"])


def _answer(error: VaultMiddlewareError) -> Response:
    current_app.logger.error("a request failed: %s", error)
    status, headers, body = error_response(error)
    return Response(body, status, headers)
