"""Whatever a client, a server or a settings file says: an audit line is one line, valid JSON, and never too long."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from vault_middleware import events
from vault_middleware.events import Event
from vault_middleware.secret import DynamicSecret, Lease, Secret
from vault_middleware.telemetry.audit import Audit
from vault_middleware.telemetry.lines import asked, described, request_id
from vault_middleware.web import asgi_identity

#: Anything, with what breaks lines, JSON or bounds more often than chance would have it.
HOSTILE = st.one_of(
    st.text(),
    st.text(alphabet='"\\\n\r\t\x00\x1f\x7f\x85\u2028\u2029\ud800\udc00\udfff\U0001f600é,{}:'),
    st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=4), st.integers(1, 3000)),
    st.sampled_from(["\ud800" * 5000, "\U0001f600" * 5000, '"' * 5000, "\\" * 5000, "\x00" * 5000, "\u2028" * 5000]),
)
MAYBE = st.none() | HOSTILE
NUMBERS = st.floats() | st.integers()


class One:
    """A sink that takes exactly one line."""

    data = b""
    most = 4096

    def write(self, data: bytes, _now: float | None = None) -> int:
        assert not self.data
        self.data = data
        return len(data)

    def after_fork(self) -> None:
        """Nothing."""


def checked(data: bytes) -> dict[str, Any]:
    """The line, if it is one."""
    assert len(data) <= 4096
    text = data.decode("ascii")
    assert text.endswith("}\n")
    assert text[:-1].isprintable() or "\x7f" in text
    assert len(text.splitlines()) == 1

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line: dict[str, Any] = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    for value in line.values():
        if isinstance(value, str):
            value.encode()  # no half of a surrogate pair
    return line


@given(MAYBE, MAYBE, MAYBE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, st.none() | st.integers(), NUMBERS)
@example(*["\x00" * 5000] * 7, 10**5000, 1e308)
def test_the_line_of_an_access_is_one_line_of_json_within_its_bound(
    request_id: str | None,
    client: str | None,
    method: str | None,
    place: str,
    path: str,
    lease_id: str,
    vault_request_id: str,
    version: int | None,
    ttl_left: float,
) -> None:
    for secret in (
        Secret(path, {}, version=version, request_id=vault_request_id),
        DynamicSecret(path, {}, Lease(lease_id, 1.0, True, 1.0), request_id=vault_request_id),
    ):
        sink = One()
        audit = Audit(sink)
        context = described(request_id, client, method, "path", place)
        fragment = audit.secret_fragment(secret, "dynamic")
        audit.access(context, fragment, "negative", ttl_left, 0.0)
        line = checked(sink.data)
        assert line["event"] == "secret_access"
        assert line["outcome"] == "negative"
        assert line["ttl_left"] is None or math.isclose(line["ttl_left"], ttl_left, abs_tol=1)
        sink.data = b""
        audit.repeats(context, fragment, 10**9)
        assert checked(sink.data)["count"] == 10**9
        sink.data = b""
        audit.failure(context, path, "dynamic", "negative", place)
        assert checked(sink.data)["outcome"] == "negative"


#: What a server tells of a request, usual or not, with an id among its headers or none.
SCOPES = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["http", "websocket"]),
        "headers": st.none()
        | st.lists(
            st.tuples(
                st.sampled_from([b"x-request-id", b"X-Request-Id", b"traceparent", b"host"]),
                st.binary(max_size=200) | st.from_regex(rb"[0-9a-f-]{1,140}", fullmatch=True),
            ),
            max_size=4,
        ),
    },
    optional={
        "client": st.none() | st.tuples(MAYBE, st.integers()),
        "method": MAYBE | st.sampled_from(["GET", "POST"]),
        "path": MAYBE | st.just("/orders/7"),
        "route": st.none() | st.builds(SimpleNamespace, path=MAYBE | st.just("/orders/{id}")),
    },
)

USUAL: dict[str, Any] = {"type": "http", "client": ("c", 1), "method": "GET", "path": "/"}


@given(SCOPES)
@example(USUAL | {"headers": [(b"X-Request-Id", b"1"), (b"x-request-id", b"2")]})
@example(USUAL | {"headers": [(b"x-request-id", b"1"), (b"x-request-id", b"2")]})
def test_whatever_a_scope_says_its_line_is_one_with_the_id_that_travels_to_vault(scope: dict[str, Any]) -> None:
    identity = asgi_identity(scope, 7)
    sink = One()
    Audit(sink).access(asked(identity), "", "hit", 1.0, 0.0)
    line = checked(sink.data)
    assert line["request_id"] == request_id(identity)
    assert re.fullmatch(r"[\x21-\x7e]{1,128}", line["request_id"])
    assert {*line} - {"route", "path"} == {"time", "event", "request_id", "client", "method", "outcome", "ttl_left"}
    assert len({"route", "path"} & {*line}) == 1


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=15))
def test_a_text_of_usual_length_comes_back_as_it_was(text: str) -> None:
    sink = One()
    audit = Audit(sink)
    audit.access(described(text, text, None, "path", text), "", "hit", 1.0, 0.0)
    line = checked(sink.data)
    assert line["request_id"] == line["client"] == line["path"] == text


@given(HOSTILE)
def test_a_text_that_is_too_long_keeps_its_beginning_and_says_that_it_was_cut(text: str) -> None:
    sink = One()
    audit = Audit(sink)
    audit.access(described(None, None, None, "path", text), "", "hit", 1.0, 0.0)
    clean = text.encode(errors="replace").decode()
    kept = checked(sink.data)["path"]
    assert kept == clean or (kept.endswith("…") and clean.startswith(kept[:-1]))


EVENTS = sorted(Event.__subclasses__(), key=lambda kind: kind.name)
VALUES = {"str": HOSTILE, "float": NUMBERS, "int": st.integers(), "float | None": st.none() | NUMBERS}


@given(st.data())
def test_the_line_of_an_event_is_one_line_of_json_within_its_bound(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(EVENTS))
    event = kind(**{field.name: data.draw(VALUES[str(field.type)], label=field.name) for field in fields(kind)})
    sink = One()
    Audit(sink)(event)
    assert checked(sink.data)["event"] == kind.name


def test_every_event_of_the_module_is_among_those_that_are_tried() -> None:
    assert {kind.__name__ for kind in EVENTS} == set(events.__all__) - {"Emit", "Event"}
