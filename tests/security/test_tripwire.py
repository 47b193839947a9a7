"""The tripwire: a live value in a response or a log record raises an alarm, and is held back where that is wanted."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.fakes import FakeVault, audit_lines
from tests.fakes import manager_over as over
from vault_middleware import RequestSecrets, SecretsManager, VaultMiddleware, VaultWSGIMiddleware
from vault_middleware.cache import Entry
from vault_middleware.errors import ConfigurationError, VaultMiddlewareError
from vault_middleware.secret import Secret
from vault_middleware.telemetry.metrics import Metrics
from vault_middleware.tripwire import LONGEST, SHORTEST, Tripwire, TripwireFilter

VALUE = 's3cr3t-of-"the"-gateway/+é'
LONG = "-----BEGIN KEY-----\n" + "A7f/" * 300


def keep(manager: SecretsManager, path: str, data: dict[str, Any]) -> None:
    """Put a secret into the cache."""
    manager._engine.cache.put(path, Entry(Secret(path, data), fetched=0.0, fresh_until=1e18, stale_until=1e18))


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def manager(audit: Path) -> Iterator[SecretsManager]:
    with over(FakeVault(), audit=audit) as manager:
        manager.start()
        keep(
            manager,
            "app/long",
            {"value": VALUE, "deep": [{"key": LONG}], "short": "tiny", "username": "a-user-of-the-base"},
        )
        yield manager


@pytest.fixture
def registry(manager: SecretsManager) -> CollectorRegistry:
    """The manager's metrics, which the helper that made it does not keep."""
    registry = CollectorRegistry()
    manager._metrics = Metrics.for_registry(registry)
    return registry


def counted(registry: CollectorRegistry, where: str) -> float:
    return registry.get_sample_value("vault_secret_leaks_total", {"where": where}) or 0.0


# -- what is found


@pytest.mark.parametrize(
    "text",
    [
        VALUE.encode(),
        json.dumps({"password": VALUE}).encode(),
        quote(VALUE, safe="").encode(),
        base64.b64encode(VALUE.encode()),
        LONG.encode(),
        json.dumps(LONG).encode(),
        b"canary-token",
    ],
)
def test_a_value_is_found_however_it_is_written_and_wherever_it_stands(manager: SecretsManager, text: bytes) -> None:
    manager._engine.session.get(1.0)
    tripwire = Tripwire(manager)
    tripwire.refresh()
    for before in range(9):
        for after in (0, 5):
            assert tripwire.find(b"x" * before + text + b"y" * after), before


def test_what_is_too_short_public_or_no_value_any_more_is_not_found(manager: SecretsManager) -> None:
    tripwire = Tripwire(manager)
    tripwire.refresh()
    for text in (b"tiny", b"a-user-of-the-base", VALUE[:-1].encode(), VALUE[1:].encode(), b"app/long", b""):
        assert tripwire.find(b"<" + text + b">") is None
    manager._engine.cache.clear()
    tripwire.refresh()
    assert tripwire.find(VALUE.encode()) is None


@settings(max_examples=60, deadline=None)
@given(
    st.binary(min_size=SHORTEST, max_size=LONGEST), st.binary(max_size=40), st.binary(max_size=40), st.integers(1, 30)
)
def test_a_value_is_found_in_whatever_pieces_it_is_sent(value: bytes, before: bytes, after: bytes, size: int) -> None:
    with over(FakeVault()) as manager:
        keep(manager, "app/x", {"value": (text := value.decode("latin-1"))})
        watch = Tripwire(manager).watch()
        watch.headers([])
        body = before + text.encode() + after
        found = [watch.body(body[at : at + size]) for at in range(0, len(body), size)]
        assert found[-1]
        clean = Tripwire(manager).watch()
        clean.headers([])
        assert not clean.body(b"?" * len(body))


def test_it_keeps_hashes_and_no_copies(manager: SecretsManager) -> None:
    tripwire = Tripwire(manager)
    tripwire.refresh()
    shown = repr([tripwire._prints, tripwire._known, tripwire._hashes, tripwire._token])
    for part in (VALUE[4:12], LONG[:12], LONG[-8:]):
        assert part not in shown
    assert tripwire._prints


def test_a_mode_that_is_none_fails_where_the_middleware_is_built(manager: SecretsManager) -> None:
    for build in (VaultMiddleware, VaultWSGIMiddleware):
        with pytest.raises(ConfigurationError, match="'alarm' nor 'block'"):
            build(None, manager, tripwire="loud")  # type: ignore[arg-type]


# -- ASGI

Messages = list[dict[str, Any]]


def start(**headers: str) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


def body(text: str, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


def sent(manager: SecretsManager, mode: str | None, messages: Messages) -> Messages:
    """What reaches the server of *messages*."""
    seen: Messages = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def keeping(message: Any) -> None:
        seen.append(message)

    scope = {"type": "http", "path": "/", "headers": [(b"x-request-id", b"the-request")]}
    asyncio.run(VaultMiddleware(app, manager, tripwire=mode)(scope, None, keeping))  # type: ignore[arg-type]
    return seen


LEAKS: list[tuple[Messages, str]] = [
    ([start(), body(f"<{VALUE}>")], "body"),
    ([start(), body("", True), body(VALUE[:9], True), body(VALUE[9:])], "body"),
    ([start(location=f"/x?key={quote(VALUE, safe='')}"), body("fine")], "header"),
]


@pytest.mark.parametrize(("messages", "where"), LEAKS)
def test_an_alarm_is_counted_audited_and_logged_and_the_response_goes_out(
    registry: CollectorRegistry,
    manager: SecretsManager,
    audit: Path,
    caplog: pytest.LogCaptureFixture,
    messages: Messages,
    where: str,
) -> None:
    assert sent(manager, "alarm", messages) == messages
    assert counted(registry, where) == 1.0
    (line,) = audit_lines(audit, "leak_found")
    assert (line["secret_path"], line["where"], line["action"]) == ("app/long", where, "let through")
    assert line["request_id"] == "the-request"
    assert "a live value of 'app/long' was found" in caplog.text
    assert VALUE not in caplog.text + audit.read_text()


def test_an_alarm_names_the_request_as_the_lines_of_its_reads_do(manager: SecretsManager, audit: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        read = scope["state"]["secrets"].get_secret("app/long")
        await send(start())
        await send(body(read["value"]))

    async def dropping(_message: Any) -> None:
        return

    scope = {"type": "http", "path": "/", "headers": []}  # so that an id is made up
    asyncio.run(VaultMiddleware(app, manager, tripwire="alarm")(scope, None, dropping))  # type: ignore[arg-type]
    assert audit_lines(audit, "leak_found")[-1]["request_id"] == audit_lines(audit, "secret_access")[-1]["request_id"]


@pytest.mark.parametrize(("messages", "where"), [LEAKS[0], LEAKS[2]])
def test_what_is_held_back_becomes_a_500_without_it(manager: SecretsManager, messages: Messages, where: str) -> None:
    first, second = sent(manager, "block", messages)
    assert first["status"] == 500
    assert second["body"] == b"Internal Server Error\n"
    assert VALUE not in repr((first, second))


def test_a_response_that_has_begun_ends_before_the_piece_that_completes_the_value(manager: SecretsManager) -> None:
    messages = [start(), body("begun", True), body(VALUE[:9], True), body(VALUE[9:], True), body("the end")]
    assert sent(manager, "block", messages) == messages[:3]


@pytest.mark.parametrize("mode", [None, "alarm", "block"])
def test_a_response_without_a_value_goes_out_as_it_is(
    registry: CollectorRegistry, manager: SecretsManager, mode: str | None
) -> None:
    for messages in ([start(), body("a", True), body("b")], [start(x="y"), body("")], [start(), body("z" * 99)]):
        assert sent(manager, mode, messages) == messages
    assert counted(registry, "body") == 0.0


def test_only_the_first_part_of_a_body_is_looked_at(manager: SecretsManager) -> None:
    tripwire = Tripwire(manager, max_body=100)
    watch = tripwire.watch()
    watch.headers([])
    assert not watch.body(b"x" * 90)
    assert not watch.body(VALUE.encode())
    assert not watch.body(VALUE.encode())


def test_other_kinds_of_connections_pass_through(manager: SecretsManager) -> None:
    seen: Messages = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.send", "text": VALUE})

    async def keeping(message: Any) -> None:
        seen.append(message)

    scope = {"type": "websocket", "path": "/", "headers": []}
    asyncio.run(VaultMiddleware(app, manager, tripwire="block")(scope, None, keeping))  # type: ignore[arg-type]
    assert len(seen) == 1


# -- WSGI


def answered(
    manager: SecretsManager, mode: str, pieces: list[bytes], *headers: tuple[str, str], write: bool = False
) -> Any:
    """Status and body as a server gets them."""
    got: list[Any] = []
    closed: list[bool] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([] if write else pieces)

        def close(self) -> None:
            closed.append(True)

    def app(environ: Any, start_response: Any) -> Any:
        written = start_response("200 OK", list(headers))
        if write:
            for piece in pieces:
                written(piece)
        return Body()

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        got.append(status)
        return got.append

    response = VaultWSGIMiddleware(app, manager, tripwire=mode)({"HTTP_X_REQUEST_ID": "r"}, start_response)
    try:
        for piece in response:
            assert got, "a body before its start"
            got.append(piece)
    finally:
        response.close()  # type: ignore[attr-defined]
        assert closed
    return got


def test_under_wsgi_too(registry: CollectorRegistry, manager: SecretsManager) -> None:
    leak = VALUE.encode()
    assert answered(manager, "alarm", [b"<", leak]) == ["200 OK", b"<", leak]
    assert counted(registry, "body") == 1.0
    refused = ["500 Internal Server Error", b"Internal Server Error\n"]
    assert answered(manager, "block", [leak, b">"]) == refused
    assert answered(manager, "block", [leak], write=True) == refused
    assert answered(manager, "block", [b"x"], ("X-Key", VALUE)) == refused
    assert answered(manager, "block", [], ("X-Key", base64.b64encode(VALUE.encode()).decode())) == refused
    for pieces in ([], [b"a", b"b"], [b""]):
        assert answered(manager, "block", pieces) == ["200 OK", *pieces]
    assert answered(manager, "block", [b"a", b"b"], write=True) == ["200 OK", b"a", b"b"]
    with pytest.raises(VaultMiddlewareError, match="held back"):
        answered(manager, "block", [b"begun", leak])


# -- log records


@pytest.fixture
def logger() -> Iterator[tuple[logging.Logger, io.StringIO, logging.Handler]]:
    logger, stream = logging.getLogger("tests.tripwire"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logging.getLogger("vault_middleware").addHandler(handler)
    yield logger, stream, handler
    logger.removeHandler(handler)
    logging.getLogger("vault_middleware").removeHandler(handler)


def test_a_log_record_with_a_value_raises_an_alarm_and_is_held_back(
    registry: CollectorRegistry,
    manager: SecretsManager,
    audit: Path,
    logger: tuple[logging.Logger, io.StringIO, logging.Handler],
) -> None:
    log, stream, handler = logger
    handler.addFilter(TripwireFilter(manager, "block"))
    log.error("the password is %s", VALUE)
    log.error("fine %d", 1)
    try:
        raise ValueError(VALUE)
    except ValueError:
        log.exception("it failed")
    text = stream.getvalue()
    assert VALUE not in text
    assert "fine 1" in text
    assert text.count("a record of tests.tripwire was held back") == 2
    assert text.count("a live value of 'app/long' was found in a log") == 2
    assert counted(registry, "log") == 2.0
    assert len(audit_lines(audit, "leak_found")) == 2


def test_with_alarm_alone_the_record_is_written(
    registry: CollectorRegistry, manager: SecretsManager, logger: tuple[logging.Logger, io.StringIO, logging.Handler]
) -> None:
    log, stream, handler = logger
    handler.addFilter(TripwireFilter(manager))
    log.error("the password is %s", VALUE)
    assert VALUE in stream.getvalue()
    assert counted(registry, "log") == 1.0


def test_what_a_request_reads_is_known_when_its_response_begins(audit: Path) -> None:
    with over(FakeVault(), audit=audit) as manager:
        manager.start()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            secrets: RequestSecrets = scope["state"]["secrets"]
            leased = await secrets.aget_dynamic_secret("db/creds/longer-than-the-others")
            await send(start())
            await send(body(leased.lease.lease_id))  # no value
            await send(body(manager._engine.session.current.token.value))  # type: ignore[union-attr]

        async def nothing(_message: Any) -> None:
            """Nothing."""

        middleware = VaultMiddleware(app, manager, tripwire="alarm")
        asyncio.run(middleware({"type": "http", "path": "/", "headers": []}, None, nothing))  # type: ignore[arg-type]
        (line,) = audit_lines(audit, "leak_found")
        assert line["secret_path"] == "the token"


def test_the_table_of_what_it_costs_has_the_lines_that_the_benchmark_prints() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.tripwire", "1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    printed = dict(re.findall(r"^(.+?) +[\d.]+ µs +[\d.]+ of (.+)$", done.stdout, re.MULTILINE))
    page = (root / "docs" / "security.md").read_text()
    table = re.findall(r"^\| (.+) \| \d+ µs \| [\d.]+ of ([^;|]+?)(?:;.*)? \|$", page, re.MULTILINE)
    assert len(table) == 8
    for what, beside in table:
        assert printed[what] == beside.replace("`", "")


def test_a_secret_that_has_the_place_in_memory_of_one_that_is_gone_is_known_too(
    manager: SecretsManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vault_middleware.tripwire.id", lambda _secret: 7, raising=False)
    tripwire = Tripwire(manager)
    tripwire.refresh()
    manager._engine.cache.clear()
    keep(manager, "app/next", {"value": "the-value-of-the-next"})
    tripwire.refresh()
    assert tripwire.find(b"the-value-of-the-next") == "app/next"
