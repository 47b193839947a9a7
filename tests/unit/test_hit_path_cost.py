"""What a read that hits may cost: counted in steps of the interpreter, not in time, so that a busy machine changes nothing.

A step is one bytecode instruction within this package. They differ a little from one Python to the next, so each bound is
the most that any of them takes, and a tenth more. What a call into C costs shows in none; where valgrind is there,
``python -m benchmarks.instructions`` counts the machine's instructions.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import vault_middleware
from tests.fakes import DYNAMIC, STATIC, FakeVault, manager_over
from vault_middleware import RequestSecrets, SecretsManager
from vault_middleware.web import asgi_identity

#: The bounds, and for the modes of the audit where they tell: a line is rendered on the reading thread only if strict.
REPEAT, LEASE, NOTHING = 39, 100, 81
FIRST = {"off": 177, "strict": 433, "buffered": 200}
OUTSIDE = {"off": 78, "strict": 189, "buffered": 101}

ROOT = str(Path(vault_middleware.__file__).parent)

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/orders/7",
    "client": ("10.0.0.7", 4711),
    "headers": [(b"host", b"gateway"), (b"accept", b"*/*"), (b"x-request-id", b"0af7651916cd43dd8448eb211c80319c")],
}


def steps(work: Callable[[], object]) -> int:
    """How many bytecode instructions of this package *work* takes on this thread, when all is warm."""
    work()
    return _traced(work) if sys.version_info < (3, 12) else _monitored(work)


def _traced(work: Callable[[], object]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def _monitored(work: Callable[[], object]) -> int:
    """As :func:`_traced`, from Python 3.12 on, where tracing may leave out steps."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
    tool, thread, count = 5, threading.get_ident(), 0

    def step(code: CodeType, _offset: int) -> None:
        nonlocal count
        count += threading.get_ident() == thread and code.co_filename.startswith(ROOT)

    monitoring.use_tool_id(tool, "steps")
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, step)
    try:
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        work()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return count


@pytest.fixture(params=["off", "strict", "buffered"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def manager(mode: str, tmp_path: Path) -> Iterator[SecretsManager]:
    audit = None if mode == "off" else tmp_path / "audit.jsonl"
    # The clock stands still, so that no step depends on when it is taken: a look for a rotated file, say.
    with manager_over(
        FakeVault(), clock=lambda: 1000.0, audit=audit, audit_mode=mode if audit else "strict"
    ) as manager:
        manager.start()
        manager.get_secret(STATIC)
        manager.get_dynamic_secret(DYNAMIC)
        yield manager


def bounded(cost: int, bound: int) -> None:
    """*cost* is within *bound*, and the bound is still one: not twice what it is for."""
    assert bound / 2 < cost <= bound, f"{cost} steps; the bound is {bound}"


def test_a_repeat_read_takes_few_steps_whatever_the_audit(manager: SecretsManager) -> None:
    with RequestSecrets(manager) as secrets:
        secrets.get_secret(STATIC)
        bounded(steps(lambda: secrets.get_secret(STATIC)), REPEAT)
        secrets.get_dynamic_secret(DYNAMIC)
        bounded(steps(lambda: secrets.get_dynamic_secret(DYNAMIC)), REPEAT)


def test_a_first_read_takes_few_steps_on_the_reading_thread(manager: SecretsManager, mode: str) -> None:
    requests = [RequestSecrets(manager, SCOPE, asgi_identity) for _ in range(2)]
    bounded(steps(lambda: requests.pop().get_secret(STATIC)), FIRST[mode])


def test_a_first_read_of_a_lease_takes_few_steps_more(manager: SecretsManager, mode: str) -> None:
    requests = [RequestSecrets(manager, SCOPE, asgi_identity) for _ in range(2)]
    bounded(steps(lambda: requests.pop().get_dynamic_secret(DYNAMIC)), FIRST[mode] + LEASE)


def test_a_read_outside_a_request_takes_few_steps(manager: SecretsManager, mode: str) -> None:
    bounded(steps(lambda: manager.get_secret(STATIC)), OUTSIDE[mode])


def test_a_request_that_reads_nothing_takes_few_steps(manager: SecretsManager) -> None:
    bounded(steps(lambda: RequestSecrets(manager, SCOPE, asgi_identity).close()), NOTHING)


def test_a_hit_takes_as_many_steps_among_many_secrets_as_alone(manager: SecretsManager) -> None:
    alone = steps(lambda: manager.get_secret(STATIC))
    for number in range(500):
        manager.get_secret(f"app/{number}")
    assert steps(lambda: manager.get_secret(STATIC)) == alone
