"""VaultWSGIMiddleware: each request its accessor, which ends when the body has been sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from tests.fakes import DYNAMIC, STATIC, FakeVault, audit_lines, manager_over
from vault_middleware import RequestSecrets, SecretConfig, SecretsManager, VaultWSGIMiddleware, current_secrets
from vault_middleware.errors import AccessorClosed, ConfigurationError, SecretNotFound, SecretUnavailable

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


@pytest.fixture
def vault() -> FakeVault:
    return FakeVault()


@pytest.fixture
def manager(vault: FakeVault) -> Iterator[SecretsManager]:
    with manager_over(vault) as manager:
        yield manager


class Server:
    """A server's side of PEP 3333 for one request: headers go out with the first piece of the body that is not empty."""

    def __init__(self, app: WSGIApplication, **environ: Any) -> None:
        self.environ: WSGIEnvironment = {"QUERY_STRING": "", **environ}
        setup_testing_defaults(self.environ)
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.sent = b""
        self._app = app
        self._began = False

    def write(self, data: bytes) -> None:
        assert self.status
        if data:
            self._began = True
            self.sent += data

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], None]:
        if exc_info is None:
            assert not self.status, "start_response was called twice"
        elif self._began and exc_info[1] is not None:
            raise exc_info[1].with_traceback(exc_info[2])
        self.status, self.headers = status, headers
        return self.write

    def body(self) -> Iterable[bytes]:
        """What the application returns."""
        return self._app(self.environ, self.start_response)

    def run(self) -> bytes:
        """Serve the request to its end."""
        body = self.body()
        try:
            for piece in body:
                self.write(piece)
        finally:
            if hasattr(body, "close"):
                body.close()
        return self.sent

    @property
    def secrets(self) -> RequestSecrets:
        secrets: RequestSecrets = self.environ["vault_middleware.secrets"]
        return secrets

    @property
    def closed(self) -> bool:
        return repr(self.secrets) == "<RequestSecrets closed>"


def respond(start_response: StartResponse) -> Callable[[bytes], object]:
    return start_response("200 OK", [("Content-Type", "text/plain")])


def as_list(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    respond(start_response)
    return [environ["vault_middleware.secrets"].get_dynamic_secret(DYNAMIC)["username"].encode()]


# -- one request


def test_a_request_finds_its_accessor_and_the_manager_in_the_environ(manager: SecretsManager) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        assert current_secrets() is environ["vault_middleware.secrets"]
        assert environ["vault_middleware.manager"] is manager
        return as_list(environ, start_response)

    assert Server(VaultWSGIMiddleware(app, manager)).run() == b"user-1"


def test_it_keeps_to_the_letter_of_the_protocol(manager: SecretsManager) -> None:
    """Between two validators of the standard library, as a server and as an application see it."""
    assert Server(validator(VaultWSGIMiddleware(validator(as_list), manager))).run() == b"user-1"


def test_two_requests_have_two_accessors(manager: SecretsManager) -> None:
    middleware = VaultWSGIMiddleware(as_list, manager)
    one, two = Server(middleware), Server(middleware)
    one.run()
    two.run()
    assert one.secrets is not two.secrets


def test_the_accessor_is_open_until_the_body_has_been_sent(manager: SecretsManager) -> None:
    server = Server(VaultWSGIMiddleware(as_list, manager))
    body = server.body()
    assert list(body) == [b"user-1"]
    holds = manager._engine.cache.entries[DYNAMIC].holds
    assert holds
    assert not server.closed
    body.close()  # type: ignore[attr-defined]
    assert server.closed
    assert not holds


def test_a_generator_reads_secrets_while_it_is_sent(manager: SecretsManager) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        respond(start_response)
        for _ in range(3):
            yield current_secrets().get_secret(STATIC)["value"].encode()

    server = Server(VaultWSGIMiddleware(app, manager))
    assert server.run() == b"value-1" * 3
    assert server.closed


def test_a_body_that_is_given_up_half_way_ends_the_request_and_the_generator(manager: SecretsManager) -> None:
    ended = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        respond(start_response)
        try:
            while True:
                yield b"x"
        finally:
            ended.append(environ["vault_middleware.secrets"].get_secret(STATIC)["value"])

    server = Server(VaultWSGIMiddleware(app, manager))
    body = server.body()
    assert next(iter(body)) == b"x"
    body.close()  # type: ignore[attr-defined]
    assert ended == ["value-1"]
    assert server.closed


def test_an_empty_body_ends_the_request_too(manager: SecretsManager) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        respond(start_response)
        return []

    server = Server(VaultWSGIMiddleware(app, manager))
    assert server.run() == b""
    assert server.closed


def test_a_body_whose_close_raises_ends_the_request_all_the_same(manager: SecretsManager) -> None:
    class Body(list[bytes]):
        def close(self) -> None:
            raise LookupError("the body's own")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        respond(start_response)
        return Body([b"x"])

    server = Server(VaultWSGIMiddleware(app, manager))
    with pytest.raises(LookupError, match="the body's own"):
        server.run()
    assert server.closed
    with pytest.raises(AccessorClosed):
        current_secrets()


def test_the_bodys_own_close_is_called_once_and_before_the_accessor_ends(manager: SecretsManager) -> None:
    closed = []

    class Body(list[bytes]):
        def close(self) -> None:
            closed.append(current_secrets().get_secret(STATIC)["value"])

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        respond(start_response)
        return Body([b"x"])

    Server(VaultWSGIMiddleware(app, manager)).run()
    assert closed == ["value-1"]


def test_an_application_that_raises_ends_its_request(manager: SecretsManager) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["vault_middleware.secrets"].get_dynamic_secret(DYNAMIC)
        raise LookupError("the application's own")

    server = Server(VaultWSGIMiddleware(app, manager))
    with pytest.raises(LookupError, match="the application's own"):
        server.run()
    assert server.closed
    assert not manager._engine.cache.entries[DYNAMIC].holds
    with pytest.raises(AccessorClosed):
        current_secrets()


def test_a_generator_that_raises_ends_its_request(manager: SecretsManager) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        respond(start_response)
        yield b"x"
        raise LookupError("the generator's own")

    server = Server(VaultWSGIMiddleware(app, manager))
    with pytest.raises(LookupError, match="the generator's own"):
        server.run()
    assert server.closed


def test_what_start_response_returns_reaches_the_application(manager: SecretsManager) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = respond(start_response)
        write(environ["vault_middleware.secrets"].get_secret(STATIC)["value"].encode())
        return [b"!"]

    server = Server(VaultWSGIMiddleware(app, manager))
    assert server.run() == b"value-1!"
    assert server.closed


def test_after_the_request_there_is_no_current_accessor(manager: SecretsManager) -> None:
    Server(VaultWSGIMiddleware(as_list, manager)).run()
    with pytest.raises(AccessorClosed):
        current_secrets()


def test_the_manager_starts_at_the_first_use_and_not_before(manager: SecretsManager) -> None:
    middleware = VaultWSGIMiddleware(as_list, manager)
    assert not manager.started
    Server(middleware).run()
    assert manager.started


def test_the_audit_line_names_the_request_and_its_id_travels_to_vault(vault: FakeVault, tmp_path: Path) -> None:
    with manager_over(vault, audit=tmp_path / "audit") as manager:
        environ = {"HTTP_X_REQUEST_ID": "r-7", "REMOTE_ADDR": "10.0.0.7", "PATH_INFO": "/items/7"}
        Server(VaultWSGIMiddleware(as_list, manager), REQUEST_METHOD="PUT", **environ).run()
        (line,) = audit_lines(tmp_path / "audit", "secret_access")
    assert (line["request_id"], line["client"], line["method"], line["path"]) == ("r-7", "10.0.0.7", "PUT", "/items/7")
    assert vault.correlation_ids == ["r-7"]


# -- settings


def test_a_wrong_variable_fails_when_the_middleware_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_CLIENT_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="VAULT_CLIENT_TIMEOUT"):
        VaultWSGIMiddleware(as_list)


def test_the_settings_may_be_passed_in() -> None:
    config = SecretConfig(vault_addr="http://127.0.0.1:1", vault_role="other")
    assert VaultWSGIMiddleware(as_list, config=config).manager.config is config


# -- errors as responses


def failing(error: Exception, *, begin: bool = False) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if begin:
            respond(start_response)
        raise error

    return app


def failing_generator(error: Exception, *, begin: bool = False) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        if begin:
            respond(start_response)
        raise error
        yield b""

    return app


@pytest.mark.parametrize("make", [failing, failing_generator])
@pytest.mark.parametrize("begin", [False, True], ids=["before start_response", "after it"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SecretUnavailable("canary/path", "canary"), "503 Service Unavailable"),
        (SecretNotFound("canary/path", "canary"), "500 Internal Server Error"),
    ],
)
def test_an_error_that_is_let_through_becomes_a_response_where_that_is_wanted(
    manager: SecretsManager,
    make: Callable[..., WSGIApplication],
    begin: bool,
    error: Exception,
    status: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(VaultWSGIMiddleware(make(error, begin=begin), manager, handle_errors=True))
    body = server.run()
    assert server.status == status
    assert ("retry-after" in dict(server.headers)) is status.startswith("503")
    assert "canary" not in f"{server.headers}{body!r}"
    assert dict(server.headers)["content-length"] == str(len(body))
    assert server.closed
    assert "a request failed: canary" in caplog.text


@pytest.mark.parametrize("make", [failing, failing_generator])
def test_unless_it_is_wanted_an_error_passes_through_as_it_is(
    manager: SecretsManager, make: Callable[..., WSGIApplication]
) -> None:
    server = Server(VaultWSGIMiddleware(make(SecretNotFound("a/b", "not there")), manager))
    with pytest.raises(SecretNotFound, match="not there"):
        server.run()
    assert server.closed


def test_an_error_after_a_piece_of_the_body_makes_no_second_response(manager: SecretsManager) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        respond(start_response)
        yield b"half"
        raise SecretUnavailable("a/b", "not now")

    server = Server(VaultWSGIMiddleware(app, manager, handle_errors=True))
    with pytest.raises(SecretUnavailable):
        server.run()
    assert (server.status, server.sent) == ("200 OK", b"half")
    assert server.closed


def test_an_error_after_something_was_written_makes_no_second_response(manager: SecretsManager) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        respond(start_response)(b"half")
        raise SecretUnavailable("a/b", "not now")

    server = Server(VaultWSGIMiddleware(app, manager, handle_errors=True))
    with pytest.raises(SecretUnavailable):
        server.run()
    assert (server.status, server.sent) == ("200 OK", b"half")
    assert server.closed


def test_an_error_of_somebody_else_is_never_answered(manager: SecretsManager) -> None:
    for make in (failing, failing_generator):
        server = Server(VaultWSGIMiddleware(make(LookupError()), manager, handle_errors=True))
        with pytest.raises(LookupError):
            server.run()
        assert server.closed


def test_a_response_without_an_error_is_the_same_where_errors_are_answered(manager: SecretsManager) -> None:
    server = Server(VaultWSGIMiddleware(as_list, manager, handle_errors=True))
    assert (server.run(), server.status) == (b"user-1", "200 OK")
