"""Tools that look into a process: error reporters, debug pages, debug logging, and the heap after the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

import pytest
import sentry_sdk
from django.test import RequestFactory
from django.views.debug import technical_500_response
from prometheus_client import CollectorRegistry
from sentry_sdk.envelope import Envelope
from sentry_sdk.scrubber import EventScrubber
from sentry_sdk.transport import Transport

from tests.frameworks.django_project import project
from tests.scripted import ScriptedServer, answer, cut, page
from vault_middleware import (
    RequestSecrets,
    SecretConfig,
    SecretsManager,
    VaultMiddleware,
    VaultWSGIMiddleware,
    current_secrets,
)
from vault_middleware.errors import SecretError, VaultMiddlewareError

TOKEN = "hvs.canary-of-the-token"
VALUE = "canary-of-the-value"
PASSWORD = "canary-of-the-password"
SERVER_TEXT = "canary-of-the-servers-body"
LEASE_ID = "lotabots/db/creds/app/canary-of-the-lease"
CANARIES = (TOKEN, VALUE, PASSWORD, SERVER_TEXT, "canary-of")

MOUNTS = "/v1/sys/internal/ui/mounts/lotabots"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.on(
            "/v1/auth/token/lookup-self", answer({"data": {"ttl": 3600, "creation_ttl": 3600, "renewable": False}})
        )
        server.on("/v1/sys/health", answer({"sealed": False}))
        for name in ("key", "cut", "page", "none", "denied"):
            server.on(
                f"{MOUNTS}/app/{name}", answer({"data": {"path": "lotabots/app/", "type": "kv", "options": None}})
            )
        server.on(f"{MOUNTS}/db/creds/app", answer({"data": {"path": "lotabots/db/", "type": "database"}}))
        server.on(
            "/v1/lotabots/app/key", answer({"data": {"value": VALUE, "nested": {"list": [VALUE, {"deep": VALUE}]}}})
        )
        lease = {"lease_id": LEASE_ID, "lease_duration": 3600, "renewable": True}
        server.on("/v1/lotabots/db/creds/app", answer({**lease, "data": {"username": "u", "password": PASSWORD}}))
        server.on("/v1/lotabots/app/cut", cut({"data": {"value": VALUE, "more": SERVER_TEXT}}, 30))
        server.on("/v1/lotabots/app/page", page(f"<html>{SERVER_TEXT}".encode(), 502))
        server.on("/v1/lotabots/app/none", answer({"errors": [SERVER_TEXT]}, 404))
        server.on("/v1/lotabots/app/denied", answer({"errors": [SERVER_TEXT, "permission denied"]}, 403))
        server.on("/v1/sys/leases/revoke", answer(None, 204))
        yield server


def settings(server: ScriptedServer, **more: Any) -> SecretConfig:
    more.setdefault("audit_log", "off")
    return SecretConfig(
        vault_addr=server.url,
        auth_method="token",
        token=TOKEN,
        auth_namespace="",
        startup="lazy",
        max_retries=0,
        **more,
    )


@pytest.fixture
def manager(server: ScriptedServer) -> Iterator[SecretsManager]:
    with SecretsManager(settings(server), registry=CollectorRegistry()) as manager:
        yield manager


class Boom(Exception):
    """The application's own fault."""


def handler(secrets: RequestSecrets) -> None:
    """Raises with everything in its locals that a careful handler may have there."""
    static = secrets.get_secret("app/key")
    database = secrets.get_dynamic_secret("db/creds/app")
    nested, inner = static["nested"], static["nested"]["list"]
    both = {"static": static, "database": database, "list": [static, nested, inner]}
    lease = database.lease
    accessor = current_secrets()
    raise Boom(len(both), bool(lease), bool(accessor))


def failing(path: str) -> Callable[[RequestSecrets], None]:
    """A handler that fails of an error of ours."""

    def handle(secrets: RequestSecrets) -> None:
        secrets.get_secret(path)

    return handle


HANDLERS = [handler, *(failing(f"app/{name}") for name in ("cut", "page", "none", "denied")), failing("../x")]


def asgi(handle: Callable[[RequestSecrets], None], manager: SecretsManager) -> VaultMiddleware:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        handle(scope["state"]["secrets"])

    return VaultMiddleware(app, manager)


def wsgi(handle: Callable[[RequestSecrets], None], manager: SecretsManager) -> VaultWSGIMiddleware:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        handle(environ["vault_middleware.secrets"])
        return []

    return VaultWSGIMiddleware(app, manager)


async def nothing(*_: Any) -> Any:
    """No message."""


def raised_by(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def through_asgi(handle: Callable[[RequestSecrets], None], manager: SecretsManager) -> BaseException:
    scope = {"type": "http", "path": "/", "headers": [], "method": "GET", "client": ("127.0.0.1", 1)}
    return raised_by(lambda: asyncio.run(asgi(handle, manager)(scope, nothing, nothing)))


def through_wsgi(handle: Callable[[RequestSecrets], None], manager: SecretsManager) -> BaseException:
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    return raised_by(lambda: wsgi(handle, manager)(environ, nothing))  # type: ignore[arg-type]


THROUGH = [through_asgi, through_wsgi]


def clean(text: str) -> None:
    for canary in CANARIES:
        at = text.find(canary)
        assert at == -1, text[max(0, at - 300) : at + 100]


def frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


# -- error reporters


class Unscrubbed(EventScrubber):
    """Hides nothing."""

    def scrub_event(self, event: Any) -> None:
        """Leave it as it is."""


class Dummy(Transport):
    """Keeps what would have been sent."""

    def __init__(self) -> None:
        super().__init__({})
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.events += [item.payload.json for item in envelope.items]


@pytest.fixture
def sentry() -> Iterator[Dummy]:
    dummy = Dummy()
    client = sentry_sdk.Client(
        dsn="http://key@sentry.invalid/1",
        transport=dummy,
        include_local_variables=True,
        max_value_length=100_000,
        default_integrations=False,
        # The SDK's own list of names would hide what the values give away.
        event_scrubber=Unscrubbed(),
        add_full_stack=True,
    )
    with sentry_sdk.isolation_scope() as scope:
        scope.set_client(client)
        yield dummy
    client.close()


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("handle", HANDLERS)
def test_sentry_gets_no_value_and_no_token_from_the_locals_of_any_frame(
    sentry: Dummy, manager: SecretsManager, handle: Any, through: Any
) -> None:
    error = through(handle, manager)
    with sentry_sdk.isolation_scope() as scope:
        scope.set_extra("manager", manager)
        scope.set_extra("config", manager.config)
        scope.set_extra("vars of the manager", vars(manager))
        scope.set_extra("vars of the middleware", vars(asgi(handle, manager)))
        sentry_sdk.capture_exception(error)
    (event,) = sentry.events
    shown = json.dumps(event)
    assert '"vars": {' in shown
    assert "handler" in shown or "handle" in shown
    clean(shown)


def test_sentry_shows_which_secret_it_was(sentry: Dummy, manager: SecretsManager) -> None:
    sentry_sdk.capture_exception(through_asgi(handler, manager))
    assert "Secret('app/key', keys=['nested', 'value'])" in json.dumps(sentry.events)


@pytest.fixture
def django_debug() -> Iterator[None]:
    with project(DEBUG=True):
        yield


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("handle", HANDLERS)
def test_djangos_debug_page_shows_no_value_and_no_token(
    django_debug: None, manager: SecretsManager, handle: Any, through: Any
) -> None:
    error = through(handle, manager)
    request = RequestFactory().get("/")
    request.META["vault_middleware.manager"] = manager
    with RequestSecrets(manager) as accessor:
        accessor.get_secret("app/key")
        request.META["vault_middleware.secrets"] = accessor
        request.state = type("State", (), {"secrets": accessor})
        for accept in ("text/html", "text/plain"):
            request.META["HTTP_ACCEPT"] = accept
            response = technical_500_response(request, type(error), error, error.__traceback__)
            text = response.content.decode()
            assert "handle" in text
            clean(text)


@pytest.mark.parametrize("handle", HANDLERS[1:])
def test_no_frame_of_the_transport_hangs_on_an_error_of_ours(manager: SecretsManager, handle: Any) -> None:
    """Those frames hold the token; errors cross from thread to thread as copies, without them."""
    error = through_wsgi(handle, manager)
    assert isinstance(error, VaultMiddlewareError)
    modules = {frame.f_globals.get("__name__", "") for frame in frames(error.__traceback__)}
    assert not {name for name in modules if name.startswith(("vault_middleware.vault", "requests", "urllib3", "http"))}
    for frame in frames(error.__traceback__):
        clean(repr(frame.f_locals))
    assert error.__cause__ is error.__context__ is None
    clean("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))


def test_the_eager_starts_error_carries_no_frame_with_a_token(server: ScriptedServer) -> None:
    server.on("/v1/auth/token/lookup-self", answer({"errors": [SERVER_TEXT]}, 403))
    config = SecretConfig(vault_addr=server.url, auth_method="token", token=TOKEN, auth_namespace="", audit_log="off")
    error = raised_by(SecretsManager(config, registry=CollectorRegistry()).start)
    clean("".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))


# -- vars() and the like


def dumped(one: object, depth: int = 4, seen: set[int] | None = None) -> str:
    """What a naive dump shows: attributes and items, down to *depth*, strings in full; no private name is spared.

    Our values of a secret are looked at through their ``repr``, as every dump does that knows no better.
    """
    seen = set() if seen is None else seen
    if id(one) in seen or depth < 0:
        return ""
    seen.add(id(one))
    parts = [repr(one)]
    if isinstance(one, dict):
        if type(one) is dict:
            parts += [dumped(each, depth - 1, seen) for pair in one.items() for each in pair]
    elif type(one) in (list, tuple, set, frozenset):
        parts += [dumped(each, depth - 1, seen) for each in one]  # type: ignore[attr-defined]
    with contextlib.suppress(TypeError):
        parts += [dumped(each, depth - 1, seen) for each in vars(one).values() if not isinstance(one, type)]
    return "\n".join(parts)


def test_no_dump_of_what_a_request_can_reach_shows_a_value(manager: SecretsManager) -> None:
    scope: dict[str, Any] = {"type": "http", "path": "/", "headers": []}
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET"}
    with RequestSecrets(manager) as accessor:
        accessor.get_secret("app/key")
        accessor.get_dynamic_secret("db/creds/app")
        for _ in range(3):
            accessor.get_secret("app/key")
        scope["state"] = {"secrets": accessor, "secrets_manager": manager}
        environ |= {"vault_middleware.secrets": accessor, "vault_middleware.manager": manager}
        for one in (
            manager,
            vars(manager),
            accessor,
            scope,
            environ,
            vars(asgi(handler, manager)),
            vars(wsgi(handler, manager)),
            {name: getattr(accessor, name, None) for name in type(accessor).__slots__},
            manager.config,
            manager._engine.session,
            manager._engine.cache,
        ):
            clean(repr(one))
            clean(str(one))
            clean(dumped(one, 3))


# -- debug logging


class Kept(logging.Handler):
    """Every record of every logger, with all that it carries."""

    def __init__(self) -> None:
        super().__init__(0)
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.text.append(f"{record.getMessage()} {record.__dict__!r}")


@pytest.fixture
def debug_log() -> Iterator[Kept]:
    kept, root = Kept(), logging.getLogger()
    names = ("urllib3", "urllib3.connectionpool", "requests", "hvac", "http.client", "vault_middleware")
    levels = {logger: logger.level for logger in (root, *map(logging.getLogger, names))}
    for logger in levels:
        logger.setLevel(1)
    root.addHandler(kept)
    yield kept
    root.removeHandler(kept)
    for logger, level in levels.items():
        logger.setLevel(level)


def test_at_debug_no_library_logs_a_token_or_a_value(
    server: ScriptedServer, debug_log: Kept, capfd: pytest.CaptureFixture[str]
) -> None:
    with SecretsManager(settings(server, audit_log="stderr"), registry=CollectorRegistry()) as manager:
        for handle in HANDLERS:
            with pytest.raises((SecretError, Boom)):
                through_wsgi_reraised(handle, manager)
    text = "\n".join(debug_log.text)
    assert "urllib3" in text, "the test looks at nothing"
    clean(text.replace("canary-of-the-lease", ""))
    out, err = capfd.readouterr()
    assert "secret_access" in err
    clean(out + err)


def through_wsgi_reraised(handle: Any, manager: SecretsManager) -> None:
    error = through_wsgi(handle, manager)
    raise error.with_traceback(None)


# -- the heap after the end


def holders(canary: str) -> list[str]:
    """Who still refers to a string with *canary* in it, among all that the collector knows."""
    found: list[str] = []
    wanted = canary, canary.encode()
    own = {id(CANARIES), id(globals()), id(wanted)}
    for one in gc.get_objects():
        if id(one) in own or (type(one) is FrameType and one.f_code.co_filename == __file__):
            continue
        if type(one) is ModuleType:
            # What it holds is in its dict, which comes by itself; asked for its referents, _asyncio of Python 3.12 hands out
            # freed memory, and the next collection never ends (gh-122695).
            continue
        inside = gc.get_referents(one)
        # By type: to ask a lazy object for its class would wake it.
        if any(type(each) in (str, bytes) and wanted[type(each) is bytes] in each for each in inside):
            found.append(f"{type(one).__module__}.{type(one).__qualname__}")
    return found


def secret_free(text: str) -> str:
    """A token that no module constant of this test holds."""
    return "".join([text, "-", format(id(object()), "x")])


def test_after_close_nothing_of_the_package_refers_to_a_token_or_a_secret(tmp_path: Path) -> None:
    """A sweep over the heap: values made up at run time, so that only what came from the server could hold them."""
    mark = secret_free("heap-mark")
    file = tmp_path / "token"
    file.write_text(f"{mark}-token")
    with ScriptedServer() as server:

        def reply(exchange: Any) -> None:
            path = exchange.request.path
            text = file.read_text().removesuffix("-token")
            body: dict[str, Any] = {"sealed": False}
            if "lookup-self" in path:
                body = {"data": {"ttl": 3600, "creation_ttl": 3600, "renewable": False}}
            elif "/mounts/" in path:
                name = "db" if "db" in path else "app"
                body = {"data": {"path": f"lotabots/{name}/", "type": "database" if name == "db" else "kv"}}
            elif "creds" in path:
                body = {"lease_id": f"lotabots/x/{text}", "lease_duration": 60, "renewable": True}
                body["data"] = {"password": f"{text}-password"}
            elif "app" in path:
                body = {"data": {"value": f"{text}-value", "deep": [{"x": f"{text}-deep"}]}}
            answer(body)(exchange)

        server.on("*", reply)
        config = SecretConfig(
            vault_addr=server.url, auth_method="token", token_file=str(file), auth_namespace="", startup="lazy",
            audit_log=str(tmp_path / "audit"), audit_mode="buffered",
        )  # fmt: skip
        manager = SecretsManager(config, registry=CollectorRegistry())
        manager.start()
        with RequestSecrets(manager) as request:
            request.get_secret("app/key")
            request.get_dynamic_secret("db/creds/app")
            for _ in range(3):
                request.get_secret("app/key")
            with request.scope() as scope:
                scope.get_secret("app/key")
            with contextlib.suppress(SecretError):
                request.get_secret("app/none/../x")
        asyncio.run(manager.aget_secret("app/key"))
        manager.on_rotate("db/creds/app", lambda _secret: None)
        manager.get_secret("db/creds/app", fresh=True)
        middleware = VaultMiddleware(nothing, manager)
        assert holders(mark), "the sweep finds nothing at all"
        manager.close()
        del request, scope
        server.requests.clear()
    del reply
    gc.collect()
    left = [name for name in holders(mark) if not name.startswith(("_pytest", "pluggy"))]
    assert middleware.manager is manager
    del mark
    assert not left
    assert "heap-mark" not in (tmp_path / "audit").read_text()
