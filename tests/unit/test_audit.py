"""The audit: what its lines say, when they are written, and what happens where they cannot be."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vault_middleware.errors import AuditError
from vault_middleware.events import (
    Event,
    LeaseRenewalFailed,
    LeaseRenewed,
    LeaseRevoked,
    LeaseRotated,
    LoggedIn,
    LoginFailed,
    ServerDown,
    ServerUp,
    Started,
    Stopped,
    TokenRenewalFailed,
    TokenRevoked,
)
from vault_middleware.secret import DynamicSecret, Lease, Secret
from vault_middleware.telemetry import buffer
from vault_middleware.telemetry.audit import Audit
from vault_middleware.telemetry.buffer import Buffer, Record
from vault_middleware.telemetry.lines import NOBODY, asked, described
from vault_middleware.telemetry.sinks import Off

CANARY = "hunter2-canary"
WAIT = 10.0

STATIC = Secret("api-gateway/api-key", {"value": CANARY}, version=3, request_id="vault-1")
DYNAMIC = DynamicSecret(
    "database/creds/api-gateway",
    {"password": CANARY},
    Lease("database/creds/api-gateway/abc", 60.0, True, 100.0),
    request_id="vault-2",
)


#: A request.
WHO = described("req-1", "10.0.0.7", "GET", "route", "/orders/{id}")


class Lines:
    """A sink in memory, which can be stuck."""

    most = 4096

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.stuck = False
        self.forks = 0
        self.changed = threading.Condition()

    def write(self, data: bytes, _now: float | None = None) -> int:
        if self.stuck:
            raise AuditError("an audit line was not written: it is stuck; pull")
        with self.changed:
            self.writes.append(data)
            self.changed.notify_all()
        return len(data)

    def after_fork(self) -> None:
        self.forks += 1

    @property
    def parsed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in b"".join(self.writes).splitlines()]

    def wait_for(self, lines: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.parsed) >= lines, WAIT)


@pytest.fixture(autouse=True)
def _no_writer_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(buffer, "GATHER", 0.001)
    monkeypatch.setattr(buffer, "IDLE", 0.001)
    yield
    for thread in threading.enumerate():
        if thread.name == "vault-middleware-audit":
            thread.join(WAIT)
            assert not thread.is_alive()


def written(event: Event) -> dict[str, Any]:
    """The line about *event*."""
    sink = Lines()
    Audit(sink, wall=lambda: 0.0)(event)
    (line,) = sink.parsed
    return line


# -- what a line says


def test_a_line_says_who_obtained_what_when_and_how() -> None:
    sink = Lines()
    audit = Audit(sink, clock=lambda: 0.0, wall=lambda: 1764021600.25)
    audit.access(WHO, audit.secret_fragment(STATIC, "static"), "hit", 12.9, 0.0)
    assert sink.parsed == [
        {
            "time": "2025-11-24T22:00:00.250Z",
            "event": "secret_access",
            "request_id": "req-1",
            "client": "10.0.0.7",
            "method": "GET",
            "route": "/orders/{id}",
            "secret_path": "api-gateway/api-key",
            "kind": "static",
            "version": 3,
            "lease": None,
            "vault_request_id": "vault-1",
            "outcome": "hit",
            "ttl_left": 12,
        }
    ]


def test_the_time_of_a_line_is_that_of_its_read() -> None:
    sink, began = Lines(), 1000.25
    audit = Audit(sink, clock=lambda: 90_000.0, wall=lambda: 90_000.0 - began)
    for read in (0.0, 0.9996, 1.0, 86_400.5, 86_401.0, 59.25):  # threads may come in any order
        audit.access("", "", "hit", 0.0, began + read)
    assert [line["time"] for line in sink.parsed] == [
        "1970-01-01T00:00:00.000Z",
        "1970-01-01T00:00:00.999Z",
        "1970-01-01T00:00:01.000Z",
        "1970-01-02T00:00:00.500Z",
        "1970-01-02T00:00:01.000Z",
        "1970-01-01T00:00:59.250Z",
    ]


def test_a_time_of_day_that_was_set_anew_shows_within_a_second() -> None:
    sink, now, day = Lines(), [10.0], [500.0]
    audit = Audit(sink, clock=lambda: now[0], wall=lambda: day[0])
    audit.access("", "", "hit", 0.0, now[0])
    now[0], day[0] = 11.0, 200.0
    audit.access("", "", "hit", 0.0, now[0])
    assert [line["time"] for line in sink.parsed] == ["1970-01-01T00:08:20.000Z", "1970-01-01T00:03:20.000Z"]


def test_a_read_outside_any_request_says_so() -> None:
    sink = Lines()
    audit = Audit(sink)
    audit.access(asked(NOBODY), audit.secret_fragment(STATIC, "static"), "miss", 1.0, 0.0)
    (line,) = sink.parsed
    assert (line["request_id"], line["client"], line["method"]) == (None, None, None)


def test_what_is_not_known_of_a_request_is_null() -> None:
    sink = Lines()
    audit = Audit(sink)
    audit.access(described(None, None, None, None, None), "", "hit", 1.0, 0.0)
    (line,) = sink.parsed
    assert (line["request_id"], line["client"], line["method"]) == (None, None, None)
    assert "path" not in line
    assert "route" not in line


def test_a_value_that_has_no_end_has_no_ttl_left() -> None:
    sink = Lines()
    audit = Audit(sink)
    for left in (float("inf"), float("nan"), float("-inf")):
        audit.access("", "", "hit", left, 0.0)
    assert [line["ttl_left"] for line in sink.parsed] == [None, None, None]


def test_no_value_and_no_lease_id_is_in_a_line() -> None:
    sink = Lines()
    audit = Audit(sink)
    audit.access(WHO, audit.secret_fragment(DYNAMIC, "dynamic"), "hit", 1.0, 0.0)
    text = b"".join(sink.writes).decode()
    assert CANARY not in text
    assert DYNAMIC.lease.lease_id not in text


def test_lines_about_one_lease_join_on_its_hash() -> None:
    sink = Lines()
    audit = Audit(sink)
    lease_id = DYNAMIC.lease.lease_id
    audit.access("", audit.secret_fragment(DYNAMIC, "dynamic"), "hit", 1.0, 0.0)
    audit(LeaseRenewed(DYNAMIC.path, lease_id, 60.0))
    audit(LeaseRotated(DYNAMIC.path, "another", lease_id, "why", 60.0))
    audit(LeaseRevoked(DYNAMIC.path, lease_id))
    access, renewed, rotated, revoked = sink.parsed
    assert access["lease"] == renewed["lease"] == rotated["old_lease"] == revoked["lease"]
    assert rotated["lease"] != access["lease"]
    assert lease_id not in b"".join(sink.writes).decode()


def test_the_hash_of_a_lease_is_salted_anew_in_each_process() -> None:
    first, second = Audit(Lines()), Audit(Lines())
    assert first.secret_fragment(DYNAMIC, "dynamic") != second.secret_fragment(DYNAMIC, "dynamic")
    assert first.secret_fragment(DYNAMIC, "dynamic") == first.secret_fragment(DYNAMIC, "dynamic")


def test_a_read_that_failed_has_a_line_with_its_reason() -> None:
    sink = Lines()
    audit = Audit(sink)
    audit.failure(WHO, "shared/none", "static", "error", "not_found")
    (line,) = sink.parsed
    del line["time"]
    assert line == {
        "event": "secret_access",
        "request_id": "req-1",
        "client": "10.0.0.7",
        "method": "GET",
        "route": "/orders/{id}",
        "secret_path": "shared/none",
        "kind": "static",
        "outcome": "error",
        "reason": "not_found",
    }


def test_repeats_have_one_closing_line_with_their_count() -> None:
    sink = Lines()
    audit = Audit(sink)
    audit.repeats(WHO, audit.secret_fragment(STATIC, "static"), 41)
    (line,) = sink.parsed
    assert (line["event"], line["request_id"], line["secret_path"], line["count"]) == (
        "secret_repeats",
        "req-1",
        "api-gateway/api-key",
        41,
    )


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Started(7), {"event": "start", "pid": 7}),
        (Stopped("atexit", 7), {"event": "stop", "hook": "atexit", "pid": 7}),
        (
            LoggedIn("kubernetes", "api-gateway", "lotabots", 3600.0),
            {
                "event": "login",
                "auth_method": "kubernetes",
                "role": "api-gateway",
                "auth_path": "lotabots",
                "ttl": 3600.0,
            },
        ),
        (
            LoginFailed("kubernetes", "api-gateway", "refused", None),
            {
                "event": "login_failed",
                "auth_method": "kubernetes",
                "role": "api-gateway",
                "reason": "refused",
                "retry_in": None,
            },
        ),
        (
            TokenRenewalFailed("refused", 4.0),
            {"event": "token_renewal_failed", "reason": "refused", "ttl_left": 4.0},
        ),
        (TokenRevoked(), {"event": "token_revoked"}),
        (ServerDown("refused"), {"event": "server_down", "reason": "refused"}),
        (ServerUp(1.23456), {"event": "server_up", "seconds": 1.235}),
    ],
)
def test_an_event_has_a_line_with_its_name_and_facts(event: Event, line: dict[str, Any]) -> None:
    assert written(event) == {"time": "1970-01-01T00:00:00.000Z", **line}


def test_a_token_without_an_end_has_a_line_that_is_json() -> None:
    assert written(LoggedIn("token", "", "", float("inf")))["ttl"] is None


def test_a_reason_may_be_as_long_as_a_path_but_not_longer_than_a_line() -> None:
    line = written(LeaseRenewalFailed("p" * 5000, "id", "r" * 5000, 1.0, 1.0))
    assert line["secret_path"].endswith("p…")
    assert line["reason"].endswith("r…")


def test_the_audit_that_is_off_renders_nothing() -> None:
    class Refuses(Off):
        def write(self, data: bytes, _now: float | None = None) -> int:
            raise AssertionError

    audit = Audit(Refuses())
    assert audit.secret_fragment(STATIC, "static") == ""
    audit.access("", "", "hit", 1.0, 0.0)
    audit.failure("", "shared/none", "static", "error", "not_found")
    audit.repeats("", "", 1)
    audit(Started(7))
    audit.flush()


# -- strict


def test_strict_the_line_is_written_before_the_access_returns() -> None:
    sink = Lines()
    audit = Audit(sink)
    audit.access("", "", "hit", 1.0, 0.0)
    assert len(sink.writes) == 1


def test_strict_a_line_that_cannot_be_written_fails_the_access_and_the_failure() -> None:
    sink = Lines()
    sink.stuck = True
    audit = Audit(sink)
    with pytest.raises(AuditError):
        audit.access("", "", "hit", 1.0, 0.0)
    with pytest.raises(AuditError):
        audit.failure("", "shared/none", "static", "error", "not_found")


def test_lines_that_nobody_waits_for_raise_nothing_and_are_missed_aloud_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Lines()
    sink.stuck = True
    audit = Audit(sink)
    for _ in range(3):
        audit(TokenRevoked())
    audit.repeats("", "", 1)
    assert [record.message for record in caplog.records] == [
        "an audit line was not written: it is stuck; pull. Reads fail meanwhile"
    ]
    sink.stuck = False
    audit(TokenRevoked())
    audit(TokenRevoked())
    assert [record.message for record in caplog.records][1:] == [
        "the audit log takes lines again; 4 about events were lost meanwhile"
    ]


# -- buffered


def test_buffered_a_line_is_written_soon_without_a_flush_and_in_order() -> None:
    sink = Lines()
    audit = Audit(sink, mode="buffered")
    for number in range(100):
        audit.access("", "", "hit", number, 0.0)
    audit(TokenRevoked())
    audit.failure("", "shared/none", "static", "error", "not_found")
    sink.wait_for(102)
    assert [line["ttl_left"] for line in sink.parsed[:100]] == list(range(100))
    assert [line["event"] for line in sink.parsed[100:]] == ["token_revoked", "secret_access"]


def test_buffered_a_line_has_the_time_of_its_access() -> None:
    sink = Lines()
    audit = Audit(sink, mode="buffered", clock=lambda: 25.0, wall=lambda: 25.0)
    audit.access("", "", "hit", 1.0, 10.0)
    audit.access("", "", "hit", 1.0, 20.0)
    audit.flush()
    assert [line["time"] for line in sink.parsed] == ["1970-01-01T00:00:10.000Z", "1970-01-01T00:00:20.000Z"]


def test_buffered_a_flush_writes_everything_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Buffer, "_rouse", lambda self: None)  # no writer but the flush
    sink = Lines()
    audit = Audit(sink, mode="buffered")
    for number in range(1000):
        audit.access("", "", "hit", number, 0.0)
    audit.flush()
    assert [line["ttl_left"] for line in sink.parsed] == list(range(1000))


def test_buffered_a_write_is_whole_lines_of_at_most_4096_bytes() -> None:
    sink = Lines()
    audit = Audit(sink, mode="buffered")
    context, fragment = WHO, audit.secret_fragment(DYNAMIC, "dynamic")
    for _ in range(200):
        audit.access(context, fragment, "hit", 1.0, 0.0)
    audit.flush()
    assert len(sink.parsed) == 200
    assert all(len(data) <= 4096 and data.endswith(b"\n") for data in sink.writes)
    assert len(sink.writes) < 200


def put(queue: Buffer, text: str) -> None:
    """A line, as events have it."""
    queue.put(f"{text}\n")


def access(queue: Buffer, text: str) -> None:
    """What makes a line, as reads have it."""
    queue.access(text, "", "hit", 1.0, 0.0)


def render(record: Record) -> str:
    """The text by itself."""
    return record if isinstance(record, str) else f"{record[0]}\n"


both = pytest.mark.parametrize("queued", [put, access])


@both
def test_buffered_a_full_queue_pushes_back_and_loses_nothing(queued: Callable[[Buffer, str], None]) -> None:
    sink = Lines()
    queue = Buffer(sink, render, room=10)
    sink.stuck = True
    accepted: list[bytes] = []
    refusal = None
    while refusal is None:
        assert len(accepted) <= 2 * 10 + 1  # what waits, and what the writer has in hand
        try:
            queued(queue, f"{len(accepted)}")
            accepted.append(b"%d" % len(accepted))
        except AuditError as error:
            refusal = str(error)
    assert refusal.endswith("it is stuck; pull")
    sink.stuck = False
    queued(queue, "100")
    queue.flush()
    assert b"".join(sink.writes).split() == [*accepted, b"100"]


@both
def test_buffered_a_reader_at_a_full_queue_helps_to_write_it_off(
    queued: Callable[[Buffer, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Buffer, "_rouse", lambda self: None)  # no writer but the readers
    sink = Lines()
    queue = Buffer(sink, render, room=10)
    for number in range(100):
        queued(queue, f"{number}")
    queue.flush()
    assert b"".join(sink.writes).split() == [b"%d" % number for number in range(100)]


def test_buffered_a_writer_that_hangs_costs_a_reader_no_more_than_the_budget() -> None:
    hang, entered = threading.Event(), threading.Event()

    class Hangs(Lines):
        def write(self, data: bytes, _now: float | None = None) -> int:
            entered.set()
            hang.wait(WAIT)
            return super().write(data)

    sink = Hangs()
    queue = Buffer(sink, render, room=1)
    queue.put("0\n")
    assert entered.wait(WAIT)
    queue.put("1\n")
    with pytest.raises(AuditError, match="not written off in time; see that whoever takes them keeps up"):
        queue.put("2\n")
    hang.set()
    sink.wait_for(2)


def test_buffered_a_reader_that_others_keep_from_a_full_queue_goes_on_while_the_sink_takes_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sink keeps up as well as it can; that others were faster to fill the room it made is no failure of it."""
    monkeypatch.setattr(Buffer, "_rouse", lambda self: None)  # no writer but the readers
    monkeypatch.setattr(buffer, "BUDGET", 0.01)
    sink = Lines()
    queue = Buffer(sink, render, room=1)
    queue.put("0\n")

    class Busy:
        """A pen that another one holds, who writes meanwhile and lets the queue fill up again."""

        def acquire(self, timeout: float) -> bool:
            queue._taken += 1
            return False

    monkeypatch.setattr(queue, "_pen", Busy())
    queue.put("1\n")
    monkeypatch.undo()
    queue._renew_locks()
    queue.flush()
    assert b"".join(sink.writes).split() == [b"0", b"1"]


def test_buffered_lines_that_a_full_disk_has_cut_off_are_written_later() -> None:
    class Fills(Lines):
        def write(self, data: bytes, _now: float | None = None) -> int:
            first = data.index(b"\n") + 1  # only one line fits
            return super().write(data[:first])

    sink = Fills()
    audit = Audit(sink, mode="buffered")
    for number in range(20):
        audit.access("", "", "hit", number, 0.0)
    audit.flush()
    assert [line["ttl_left"] for line in sink.parsed] == list(range(20))


def test_buffered_a_sink_that_fails_is_missed_aloud_once_and_what_waited_is_written(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Lines()
    sink.stuck = True
    audit = Audit(sink, mode="buffered")
    tries = threading.Semaphore(0)
    real = Buffer._say

    def say(self: Buffer, failure: str | None) -> None:
        real(self, failure)
        tries.release()

    monkeypatch.setattr(Buffer, "_say", say)
    audit.access("", "", "hit", 7.0, 0.0)
    for _ in range(3):
        assert tries.acquire(timeout=WAIT)
    sink.stuck = False
    assert audit._buffer is not None
    while audit._buffer._failing:
        assert tries.acquire(timeout=WAIT)
    assert [line["ttl_left"] for line in sink.parsed] == [7]
    assert [(record.levelno, record.message.split(";")[0]) for record in caplog.records] == [
        (logging.ERROR, "an audit line was not written: it is stuck"),
        (logging.WARNING, "the audit log takes lines again"),
    ]


def test_buffered_a_flush_to_a_stuck_sink_ends_and_says_what_is_not_written(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Buffer, "_rouse", lambda self: None)
    monkeypatch.setattr(buffer, "FLUSH", 0.01)
    sink = Lines()
    sink.stuck = True
    audit = Audit(sink, mode="buffered")
    audit.access("", "", "hit", 7.0, 0.0)
    audit.access("", "", "hit", 8.0, 0.0)
    audit.flush()
    assert [record.message for record in caplog.records] == [
        "2 audit lines are not written: an audit line was not written: it is stuck; pull"
    ]


@both
def test_buffered_the_writer_ends_when_it_has_nothing_to_do_and_comes_back(
    queued: Callable[[Buffer, str], None],
) -> None:
    sink = Lines()
    queue = Buffer(sink, render)
    for number in range(3):
        queued(queue, f"{number}")
        writer = queue._writer
        sink.wait_for(number + 1)
        if writer is not None:
            writer.join(WAIT)
            assert not writer.is_alive()


# -- fork


@pytest.mark.parametrize("mode", ["strict", "buffered"])
def test_a_forked_child_leaves_to_its_parent_what_waits_and_writes_its_own(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Lines()
    audit = Audit(sink, mode=mode)
    with monkeypatch.context() as patch:
        patch.setattr(Buffer, "_rouse", lambda self: None)  # the parent's writer, which the child does not have
        audit.access("", "", "hit", 1.0, 0.0)
    waiting = len(sink.writes)
    if audit._buffer is not None:
        audit._buffer._pen.acquire()  # another thread of the parent was writing
    audit.after_fork()
    audit.access("", "", "hit", 2.0, 0.0)
    sink.wait_for(waiting + 1)
    audit.flush()
    assert [line["ttl_left"] for line in sink.parsed[waiting:]] == [2]
    assert sink.forks == 1
