"""What a request says of itself, and what an error becomes as a response."""

from __future__ import annotations

import itertools
import json
import os
import re
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from vault_middleware.errors import (
    AccessorClosed,
    AuditError,
    InvalidSecretPath,
    LeaseLimitReached,
    SecretAccessDenied,
    SecretNotDynamic,
    SecretNotFound,
    SecretUnavailable,
    VaultMiddlewareError,
    VaultUnavailable,
)
from vault_middleware.telemetry import lines
from vault_middleware.telemetry.lines import Identity
from vault_middleware.web import RETRY_AFTER, asgi_identity, error_response, request_id, wsgi_identity

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


#: Of the accessors.
numbers = itertools.count()


class Told:
    """What an identity tells."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    @property
    def request_id(self) -> str:
        """To Vault, and the same in the line."""
        told = lines.request_id(self._identity)
        assert told is not None
        assert self.line["request_id"] == told
        return told

    @property
    def line(self) -> dict[str, Any]:
        """Its part of a line."""
        part: dict[str, Any] = json.loads(f"{{{lines.asked(self._identity)[1:]}}}")
        return part

    def described(self) -> tuple[Any, ...]:
        line = self.line
        where = "route" if "route" in line else "path"
        return line["request_id"], line["client"], line["method"], where, line[where]


def of_scope(scope: dict[str, Any]) -> Told:
    return Told(asgi_identity(scope, next(numbers)))


def of_environ(environ: dict[str, Any]) -> Told:
    return Told(wsgi_identity(environ, next(numbers)))


def asgi(headers: dict[str, str], **more: Any) -> Told:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return of_scope({"type": "http", "headers": raw, **more})


def wsgi(headers: dict[str, str], **more: Any) -> Told:
    return of_environ({f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()} | more)


both = pytest.mark.parametrize("identity", [asgi, wsgi])


# -- the request's id


@both
def test_a_request_id_that_came_is_taken(identity: Any) -> None:
    assert identity({"x-request-id": "abc-123/=+", "traceparent": TRACEPARENT}).request_id == "abc-123/=+"


@both
def test_without_one_it_is_the_trace_id(identity: Any) -> None:
    assert identity({"traceparent": TRACEPARENT}).request_id == TRACE


@both
def test_without_either_it_is_made_and_stays(identity: Any) -> None:
    one, other = identity({}), identity({})
    assert re.fullmatch(r"[0-9a-f]{32}", one.request_id)
    assert one.request_id == one.request_id
    assert one.request_id != other.request_id


@both
@pytest.mark.parametrize(
    "forged",
    [
        "",
        "with space",
        "a\nX-Vault-Token: b",
        "a\r",
        "a\n",
        "\x00",
        "\x7f",
        "caf\xe9",
        "x" * 129,
        '{"forged":\t1}',
    ],
    ids=ascii,
)
def test_a_request_id_that_no_header_may_hold_is_replaced(identity: Any, forged: str) -> None:
    assert identity({"x-request-id": forged, "traceparent": TRACEPARENT}).request_id == TRACE


def test_a_forked_child_makes_ids_of_its_own() -> None:
    def made() -> str:
        return request_id(None, None, 7)

    before = made()
    out, into = os.pipe()
    if (child := os.fork()) == 0:
        os.write(into, made().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(out, 100).decode()
    os.close(out)
    os.close(into)
    assert re.fullmatch(r"[0-9a-f]{32}", theirs)
    assert theirs != before == made()


#: A request as most are, for which a line takes the short way.
USUAL: dict[str, Any] = {"client": ("10.0.0.7", 4711), "method": "GET", "path": "/a"}


@pytest.mark.parametrize("length", [1, 128, 129, 140, 200])
def test_the_line_of_a_usual_request_has_the_id_that_travels_to_vault(length: int) -> None:
    came = "a" * length
    told = asgi({"x-request-id": came}, **USUAL)
    assert (told.request_id == came) is (length <= 128)
    assert told.described()[1:] == ("10.0.0.7", "GET", "path", "/a")


def test_the_method_of_a_usual_request_is_bounded() -> None:
    told = asgi({"x-request-id": "a"}, **(USUAL | {"method": "M" * 33}))
    assert told.line["method"] == "M" * 26 + "…"


def test_a_request_id_of_128_characters_is_the_longest() -> None:
    assert request_id("x" * 128, None, 0) == "x" * 128
    assert request_id("x" * 129, None, 0) != "x" * 129


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        TRACE,
        TRACEPARENT.upper(),
        f"{TRACEPARENT}\n",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE[:-1]}-00f067aa0ba902b7-01",
    ],
    ids=ascii,
)
def test_a_malformed_traceparent_gives_no_trace_id(traceparent: str) -> None:
    made = request_id(None, traceparent, 0)
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert made not in (TRACE, "0" * 32)


def test_the_names_of_asgi_headers_are_found_in_any_case() -> None:
    assert of_scope({"type": "http", "headers": [(b"X-Request-Id", b"abc")]}).request_id == "abc"


def test_a_scope_without_headers_gets_an_id_too() -> None:
    assert of_scope({"type": "websocket"}).request_id


# -- who asks, and for what


def test_the_client_is_the_address_that_the_server_saw() -> None:
    assert asgi({}, client=("10.0.0.7", 4711)).described()[1] == "10.0.0.7"
    assert wsgi({}, REMOTE_ADDR="10.0.0.7").described()[1] == "10.0.0.7"


def test_a_forwarded_for_header_is_not_believed() -> None:
    assert asgi({"x-forwarded-for": "6.6.6.6"}, client=("10.0.0.7", 1)).described()[1] == "10.0.0.7"
    assert wsgi({"x-forwarded-for": "6.6.6.6"}, REMOTE_ADDR="10.0.0.7").described()[1] == "10.0.0.7"


def test_over_a_unix_socket_there_is_no_client() -> None:
    assert asgi({}, client=None).described()[1] is None
    assert asgi({}).described()[1] is None
    assert wsgi({}).described()[1] is None


def test_the_method_of_a_websocket_is_called_so() -> None:
    assert asgi({}, method="PATCH").described()[2] == "PATCH"
    assert of_scope({"type": "websocket"}).described()[2] == "WEBSOCKET"
    assert wsgi({}, REQUEST_METHOD="PATCH").described()[2] == "PATCH"


def test_the_place_is_the_route_where_the_framework_tells_it_else_the_path() -> None:
    assert asgi({}, path="/items/7", route=SimpleNamespace(path="/items/{id}")).described()[3:] == (
        "route",
        "/items/{id}",
    )
    assert asgi({}, path="/items/7").described()[3:] == ("path", "/items/7")
    assert asgi({}, path="/items/7", route=object()).described()[3:] == ("path", "/items/7")
    assert asgi({}).described()[3:] == ("path", "")


def test_the_path_of_wsgi_is_whole_and_readable() -> None:
    mounted = {"SCRIPT_NAME": "/mounted", "PATH_INFO": "/größe".encode().decode("latin-1")}
    assert of_environ(mounted).described()[3:] == ("path", "/mounted/größe")


def test_a_wsgi_path_that_is_no_text_is_told_as_well_as_it_can_be() -> None:
    assert of_environ({"PATH_INFO": "/\xff"}).described()[3:] == ("path", "/\ufffd")
    assert of_environ({"PATH_INFO": "/\u0394"}).described()[3:] == ("path", "/?")


# -- errors as responses


@pytest.mark.parametrize("kind", [SecretUnavailable, LeaseLimitReached])
def test_what_may_pass_is_a_503_that_says_when_to_come_back(kind: Any) -> None:
    status, headers, body = error_response(kind("canary/path", "canary-message"))
    assert status == 503
    assert ("retry-after", str(RETRY_AFTER)) in headers
    assert b"canary" not in body


@pytest.mark.parametrize(
    "error",
    [
        SecretNotFound("canary/path", "canary"),
        SecretAccessDenied("canary/path", "canary"),
        SecretNotDynamic("canary/path", "canary"),
        InvalidSecretPath("canary/path", "canary"),
        AuditError("canary"),
        AccessorClosed("canary"),
        VaultUnavailable("canary"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_everything_else_is_a_500_without_a_word_about_it(error: VaultMiddlewareError) -> None:
    status, headers, body = error_response(error)
    assert status == 500
    assert "canary" not in f"{headers}{body!r}"
    assert dict(headers)["content-length"] == str(len(body))
    assert "retry-after" not in dict(headers)


# -- what may outlive the request


@both
def test_it_has_let_go_of_the_request(identity: Any) -> None:
    class Kept(dict[str, Any]):
        """A scope or environ whose end can be seen."""

    headers = [(b"x-request-id", b"abc")]
    kept = Kept(
        {
            "type": "http",
            "headers": headers,
            "client": ("10.0.0.7", 1),
            "method": "PUT",
            "path": "/a",
            "HTTP_X_REQUEST_ID": "abc",
        }
        | {"REMOTE_ADDR": "10.0.0.7", "REQUEST_METHOD": "PUT", "SCRIPT_NAME": "", "PATH_INFO": "/a"}
    )
    gone = weakref.ref(kept)
    one = (of_scope if identity is asgi else of_environ)(kept)
    del kept
    assert gone() is None
    assert one.described() == ("abc", "10.0.0.7", "PUT", "path", "/a")
    assert one.request_id == "abc"
