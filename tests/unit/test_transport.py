"""The transport: one request within its time, and an error of ours for whatever is not Vault's."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.calling import LONG, PATH, SHORT, TOKEN, Make, ask, bare, failure, transports
from tests.scripted import (
    Recorded,
    Reply,
    ScriptedServer,
    answer,
    cut,
    drip,
    endless,
    page,
    raw,
    redirect,
    reset,
    silence,
)
from vault_middleware.errors import VaultSealed, VaultUnavailable
from vault_middleware.vault import transport as module
from vault_middleware.vault.transport import Answer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def make() -> Iterator[Make]:
    with transports() as make:
        yield make


# -- what is sent, what comes back


def test_an_answer_has_its_status_its_body_and_its_headers(server: ScriptedServer, make: Make) -> None:
    server.on(PATH, answer({"data": {"a": 1}}, 200, {"Age": "7", "Retry-After": "3"}))
    got = ask(make(server))
    assert (got.status, got.body, got.age, got.retry_after) == (200, {"data": {"a": 1}}, 7.0, 3.0)


def test_an_answer_prints_neither_its_body_nor_its_headers(server: ScriptedServer, make: Make) -> None:
    server.on(PATH, answer({"data": "canary"}, 200, {"X-Any": "canary"}))
    assert "canary" not in repr(ask(make(server)))


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "1e308", "٣", "9" * 400, ""])
def test_a_retry_after_or_age_that_is_no_number_of_seconds_counts_for_nothing(value: str) -> None:
    got = Answer(429, {}, 0.0, {"Retry-After": value, "Age": value})
    assert got.retry_after is None
    assert got.age == 0.0


@pytest.mark.parametrize(
    "errors", [None, "text", [1, None, {"a": 1}, "Permission Denied"], [[["x"]], "permission denied"]]
)
def test_the_errors_of_an_answer_are_its_texts_in_lower_case(errors: object) -> None:
    text = Answer(403, {"errors": errors}, 0.0, {}).errors
    assert text == ("permission denied" if isinstance(errors, list) else "")


def test_the_token_the_vault_header_and_the_body_are_sent_and_nothing_of_the_environment(
    server: ScriptedServer, make: Make
) -> None:
    server.on(PATH, answer({}))
    make(server).request(
        "any", "POST", PATH, timeout=LONG, token=TOKEN, body={"a": 1}, params={"version": 3}, headers={"X-One": "1"}
    )
    (request,) = server.requests
    assert (request.method, request.target, request.json) == ("POST", f"{PATH}?version=3", {"a": 1})
    assert request.headers["x-vault-token"] == TOKEN
    assert request.headers["x-vault-request"] == "true"
    assert request.headers["x-one"] == "1"
    assert request.headers["accept-encoding"] == "identity"
    assert "x-vault-namespace" not in request.headers
    assert "authorization" not in request.headers


def test_a_call_without_a_token_sends_none(server: ScriptedServer, make: Make) -> None:
    make(server).request("any", "GET", PATH, timeout=LONG)
    assert "x-vault-token" not in server.requests[0].headers


def test_a_connection_is_used_again(server: ScriptedServer, make: Make) -> None:
    server.on(PATH, answer({}))
    transport = make(server)
    for _ in range(3):
        ask(transport)
    assert server.connections == 1


def test_a_connection_that_the_server_has_closed_meanwhile_is_replaced(server: ScriptedServer, make: Make) -> None:
    server.on(PATH, raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), answer({}))  # closes without saying so
    transport = make(server)
    ask(transport)
    server.wait_until_idle()
    assert ask(transport).status == 200
    assert server.connections == 2


def test_cookies_are_not_kept(server: ScriptedServer, make: Make) -> None:
    server.on(PATH, answer({}, 200, {"Set-Cookie": "a=b; Path=/"}))
    transport = make(server)
    ask(transport)
    ask(transport)
    assert "cookie" not in server.requests[1].headers


def test_no_content_is_an_empty_answer(server: ScriptedServer, make: Make) -> None:
    server.on(PATH, answer(None, 204))
    got = ask(make(server))
    assert (got.status, got.body) == (204, {})


@pytest.mark.parametrize("status", [400, 403, 404, 405, 412, 429, 472, 473, 500, 502, 503])
def test_an_error_status_with_json_is_an_answer(server: ScriptedServer, make: Make, status: int) -> None:
    server.on(PATH, answer({"errors": ["Permission Denied"]}, status))
    got = ask(make(server))
    assert (got.status, got.errors) == (status, "permission denied")


def test_each_call_is_reported_with_its_operation_and_its_time(server: ScriptedServer, make: Make) -> None:
    calls: list[tuple[str, float]] = []
    server.on(PATH, answer({}), reset)
    transport = make(server, on_call=lambda operation, seconds: calls.append((operation, seconds)))
    ask(transport)
    failure(transport)
    assert [operation for operation, _ in calls] == ["read", "read"]
    assert all(0 <= seconds < LONG for _, seconds in calls)


def test_after_a_close_a_call_opens_a_connection_again(server: ScriptedServer, make: Make) -> None:
    server.on(PATH, answer({}))
    transport = make(server)
    ask(transport)
    transport.close()
    assert ask(transport).status == 200
    assert server.connections == 2


# -- time

DRIPPING = {
    "headers": drip(b"HTTP/1.1 200 OK\r\n", b"X-Filler: 1\r\n"),
    "one header": drip(b"HTTP/1.1 200 OK\r\nX-Filler: ", b"a"),
    "status line": drip(b"HTTP/1.1 200 ", b"O"),
    "interim answers": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n", every=0.001),
    "body": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{", b" "),
    "body without a length": drip(b"HTTP/1.1 200 OK\r\n\r\n{", b" "),
    "chunked body": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "chunk size": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a"),
    "nothing": silence,
}


@pytest.mark.parametrize("reply", DRIPPING.values(), ids=DRIPPING.keys())
def test_a_server_that_never_finishes_cannot_hold_a_call_beyond_its_time(
    server: ScriptedServer, make: Make, reply: Reply
) -> None:
    server.on(PATH, reply)
    message = failure(make(server), SHORT)
    assert "did not answer in time" in message
    assert "VAULT_CLIENT_TIMEOUT" in message
    assert len(server.requests) == 1


def test_the_client_timeout_bounds_a_call_that_was_given_more(server: ScriptedServer, make: Make) -> None:
    server.on(PATH, silence)
    assert "in time" in failure(make(server, client_timeout=SHORT), LONG)


def test_a_peer_that_accepts_and_never_shakes_hands_cannot_hold_a_call(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert "in time" in failure(make(f"https://127.0.0.1:{mute.getsockname()[1]}"), SHORT)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_a_call_without_time_left_is_not_sent(server: ScriptedServer, make: Make, timeout: float) -> None:
    assert "in time" in failure(make(server), timeout)
    assert server.requests == []


def test_redirects_share_the_time_of_one_call(server: ScriptedServer, make: Make) -> None:
    now = [0.0]

    def slow_redirect(exchange: Any) -> None:
        now[0] += 6.0
        redirect("/v1/elsewhere")(exchange)

    server.on(PATH, slow_redirect)
    server.on("/v1/elsewhere", answer({}))
    assert "in time" in failure(make(server, clock=lambda: now[0]), 5.0)
    assert server.to("/v1/elsewhere") == []


def test_one_slow_call_does_not_hold_up_another(server: ScriptedServer, make: Make) -> None:
    seen = threading.Event()

    def slow(exchange: Any) -> None:
        seen.set()
        silence(exchange)

    server.on("/v1/slow", slow)
    server.on(PATH, answer({}))
    transport = make(server)
    ends: list[BaseException] = []

    def wait() -> None:
        try:
            transport.request("slow", "GET", "/v1/slow", timeout=LONG)
        except VaultUnavailable as error:
            ends.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert seen.wait(LONG)
    assert ask(transport).status == 200
    server.release()
    thread.join(LONG)
    assert len(ends) == 1


# -- answers that are none of Vault's

NOT_VAULT = {
    "an HTML page": (page(b"<!DOCTYPE html><h1>502</h1>", 502), "HTML page"),
    "an HTML page behind white space": (page(b"\n\n <html>", 200), "HTML page"),
    "truncated JSON": (page(b'{"data": {"a"'), "cut off or malformed"),
    "no body": (page(b""), "without a body"),
    "an answer cut in the headers": (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), "cut off before it"),
    "two objects": (page(b"{}{}"), "cut off or malformed"),
    "a list": (page(b"[1]"), "without a JSON object"),
    "a text": (page(b'"text"'), "without a JSON object"),
    "null": (page(b"null"), "without a JSON object"),
    "plain text": (page(b"no healthy upstream", 503), "without a JSON object"),
    "no UTF-8": (page(b"\xff\xfe{}\x80"), "without a JSON object"),
    "gzip": (page(b"\x1f\x8b\x08\x00", 200, {"Content-Encoding": "gzip"}), "compressed"),
    "deflate": (page(b"\x78\x9c", 200, {"Content-Encoding": "deflate"}), "compressed"),
    "an encoding by no name": (page(b"{}", 200, {"Content-Encoding": "x-any"}), "compressed"),
    "a number of too many digits": (page(b'{"a": ' + b"9" * 5000 + b"}"), "malformed"),
    "deep nesting": (page(b'{"a":' * 200_000 + b"1" + b"}" * 200_000), "malformed"),
}


@pytest.mark.parametrize(("reply", "words"), NOT_VAULT.values(), ids=NOT_VAULT.keys())
def test_an_answer_that_is_not_vaults_is_refused_and_says_what_it_was(
    server: ScriptedServer, make: Make, reply: Reply, words: str
) -> None:
    server.on(PATH, reply)
    message = failure(make(server))
    assert words in message
    assert "check VAULT_ADDR" in message


BROKEN = {
    "closed at once": raw(b""),
    "reset": reset,
    "cut in the status line": raw(b"HTTP/1.1 20"),
    "cut in the body": cut({"data": {"a": "b" * 100}}, after=20),
    "cut before the body": cut({"data": {}}, after=0),
    "cut in a chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a chunk of no size": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "too many headers": raw(b"HTTP/1.1 200 OK\r\n" + b"X-Any: 1\r\n" * 200 + b"\r\n{}"),
    "a header too long": raw(b"HTTP/1.1 200 OK\r\nX-Any: " + b"a" * 100_000 + b"\r\n\r\n{}"),
    "a status that is none": raw(b"HTTP/1.1 999999 OK\r\n\r\n{}"),
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN.keys())
def test_a_connection_that_breaks_off_says_what_to_check(server: ScriptedServer, make: Make, reply: Reply) -> None:
    server.on(PATH, reply)
    assert "broke off; check" in failure(make(server))
    assert len(server.requests) == 1  # and is not tried again by anything below


def test_a_body_without_end_is_refused_at_the_bound(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BODY", 1_000_000)
    server.on(PATH, endless)
    assert "longer than 1000000 bytes" in failure(make(server))


def test_a_body_at_the_bound_is_read(server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"a": "' + b"b" * 100_000 + b'"}'
    monkeypatch.setattr(module, "MAX_BODY", len(body))
    server.on(PATH, page(body))
    transport = make(server)
    assert len(ask(transport).body["a"]) == 100_000
    monkeypatch.setattr(module, "MAX_BODY", len(body) - 1)
    assert "longer than" in failure(transport)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (503, {"errors": ["Vault is sealed"]}, "is sealed"),
        (503, {"errors": ["error performing operation: Vault is sealed"]}, "is sealed"),
        (503, {"initialized": True, "sealed": True}, "is sealed"),
        (501, {"initialized": False, "sealed": True}, "is not initialised"),
        (501, {"initialized": False, "sealed": False}, "is not initialised"),
        (503, {"errors": ["server is not initialized"]}, "is not initialised"),
    ],
)
def test_a_server_that_is_sealed_or_not_initialised_is_named_so(
    server: ScriptedServer, make: Make, status: int, body: dict[str, Any], words: str
) -> None:
    server.on(PATH, answer(body, status))
    with pytest.raises(VaultSealed, match=words) as caught:
        ask(make(server))
    bare(caught.value)
    assert "vault operator" in str(caught.value)


# -- the rate limit


class Waits(threading.Event):
    """Notes how long was waited, and lets the clock pass instead."""

    def __init__(self, now: list[float]) -> None:
        super().__init__()
        self.waited: list[float] = []
        self._now = now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(round(timeout, 6))
        self._now[0] += timeout
        return False


def test_the_rate_limit_lets_a_burst_through_and_spaces_the_rest(server: ScriptedServer, make: Make) -> None:
    now = [100.0]
    closing = Waits(now)
    server.on(PATH, answer({}))
    transport = make(server, rate_limit="2:3", clock=lambda: now[0], closing=closing)
    for _ in range(5):
        ask(transport)
    assert closing.waited == [0.5, 0.5]
    now[0] += 100.0  # an idle time saves up a burst, and no more
    for _ in range(4):
        ask(transport)
    assert closing.waited == [0.5, 0.5, 0.5]


def test_a_request_whose_turn_comes_too_late_is_refused_and_takes_no_turn_from_others(
    server: ScriptedServer, make: Make
) -> None:
    now = [100.0]
    closing = Waits(now)
    server.on(PATH, answer({}))
    transport = make(server, rate_limit="0.1:1", clock=lambda: now[0], closing=closing)
    ask(transport)
    for _ in range(50):
        assert "VAULT_RATE_LIMIT" in failure(transport, 5.0)
    assert closing.waited == []
    now[0] += 10.0
    assert ask(transport, 5.0).status == 200
    assert len(server.requests) == 2


def test_the_question_for_the_health_is_not_bound_by_the_rate_limit_and_takes_no_turn_from_others(
    server: ScriptedServer, make: Make
) -> None:
    now = [100.0]
    closing = Waits(now)
    server.on("*", answer({}))
    transport = make(server, rate_limit="0.1:1", clock=lambda: now[0], closing=closing)
    for _ in range(2):
        assert transport.request("health", "GET", "/v1/sys/health", timeout=0.6).status == 200
    assert ask(transport, 5.0).status == 200
    assert transport.request("health", "GET", "/v1/sys/health", timeout=0.6).status == 200
    assert closing.waited == []


# -- what is logged


def test_no_log_record_holds_the_token_even_at_debug(
    server: ScriptedServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    replies: list[Reply] = [answer({}), redirect("/v1/there"), answer({}, 403), reset, page(b"<html>")]
    server.on(PATH, *replies)
    transport = make(server)
    for _ in range(3):
        ask(transport)
    for _ in range(2):
        failure(transport)
    assert caplog.records  # urllib3 does log at this level
    for record in caplog.records:
        assert TOKEN not in repr(record.__dict__)


def test_what_was_recorded_is_what_was_sent(server: ScriptedServer) -> None:
    """The scripted server itself: a request in pieces, and two on one connection."""
    server.on("*", answer({}))
    with socket.create_connection(("127.0.0.1", server.port), timeout=LONG) as client:
        client.sendall(b"PUT /a?b=c HTTP/1.1\r\nX-One: 1\r\nContent-Le")
        client.sendall(b"ngth: 4\r\n\r\nbo")
        client.sendall(b"dyGET /d HTTP/1.1\r\n\r\n")
        got = b""
        while got.count(b"{}") < 2:
            got += client.recv(65536)
    first, second = server.requests
    assert first == Recorded("PUT", "/a?b=c", {"x-one": "1", "content-length": "4"}, b"body", 1)
    assert (second.method, second.path, second.connection) == ("GET", "/d", 1)
