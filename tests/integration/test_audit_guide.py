"""The audit on real servers: every line is as the schema says, and the join with Vault's own log as the guide says."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client import CollectorRegistry

from tests.integration.support import DYNAMIC, STATIC, answers, eventually, serve, settings
from vault_middleware import RequestSecrets, SecretsManager, events
from vault_middleware.devstack import DevStack
from vault_middleware.engine.gate import REASONS
from vault_middleware.errors import SecretUnavailable, VaultMiddlewareError
from vault_middleware.telemetry.audit import Audit
from vault_middleware.telemetry.lines import NOBODY, asked

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "audit-line.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
EVENTS = [
    each
    for each in vars(events).values()
    if isinstance(each, type) and issubclass(each, events.Event) and each is not events.Event
]


def invalid(line: dict[str, Any]) -> str:
    """What is wrong with a line of that event, "" where nothing is."""
    if VALIDATOR.is_valid(line):
        return ""
    branches = [each for each in SCHEMA["oneOf"] if each["properties"]["event"]["const"] == line["event"]]
    said = [
        error.message
        for each in branches
        for error in VALIDATOR.evolve(schema=each | {"$defs": SCHEMA["$defs"]}).iter_errors(line)
    ]
    return f"{line}: {said or 'no such event'}"


class Kept:
    """A sink that keeps the lines."""

    most = 4096

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, data: bytes, _now: float | None = None, /) -> int:
        self.lines += [json.loads(text) for text in data.splitlines()]
        return len(data)

    def after_fork(self) -> None:
        """Nothing."""


def test_the_schema_is_one_of_2020_12() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_knows_every_event_and_no_other() -> None:
    named = {each["properties"]["event"]["const"] for each in SCHEMA["oneOf"]}
    assert named == {"secret_access", "secret_repeats", *(kind.name for kind in EVENTS)}


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "fill", [{"float": 1.5, "str": "é" * 3000, "int": 7}, {"float": float("inf"), "str": "", "int": 1}]
)
def test_the_line_of_every_event_is_as_the_schema_says(kind: type[events.Event], fill: dict[str, Any]) -> None:
    sink = Kept()
    values = {each.name: fill[str(each.type).removesuffix(" | None")] for each in dataclasses.fields(kind)}
    if "where" in values:
        values["where"] = "body"
    if fill["float"] == float("inf"):  # only these have no end, ever
        values |= {
            each: 1.5
            for each in values
            if kind.name.startswith(("lease", "server")) and each in ("ttl", "ttl_left", "seconds")
        }
    Audit(sink)(kind(**values))
    assert invalid(sink.lines[0]) == ""


def test_the_schema_knows_every_reason_and_outcome_of_a_read_that_failed() -> None:
    sink = Kept()
    audit = Audit(sink)
    for reason, outcome in [*REASONS.values(), ("error", "error"), ("denied", "negative")]:
        audit.failure(asked(NOBODY), "shared/none", "static", outcome, reason)
    assert [invalid(line) for line in sink.lines if invalid(line)] == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line.pop("request_id"),
        lambda line: line.update(value="canary"),
        lambda line: line.update(outcome="found"),
        lambda line: line.update(lease="database/creds/api-gateway/abc"),
        lambda line: line.update(event="anything"),
        lambda line: line.update(time="yesterday"),
    ],
)
def test_the_schema_refuses_a_line_that_is_not_one(spoil: Callable[[dict[str, Any]], object]) -> None:
    line = {
        "time": "2026-01-01T00:00:00.000Z",
        "event": "secret_access",
        "request_id": "r",
        "client": None,
        "method": "GET",
        "secret_path": "shared/jwt",
        "kind": "static",
        "version": None,
        "lease": None,
        "vault_request_id": "v",
        "outcome": "hit",
        "ttl_left": 3,
    }
    assert invalid(line) == ""
    spoil(line)
    assert invalid(line)


def test_every_line_of_a_whole_life_is_as_the_schema_says(make_stack: Callable[..., DevStack], tmp_path: Path) -> None:
    stack = make_stack(lease_ttl=2, lease_max_ttl=4, token_ttl=4, token_max_ttl=8)
    log = tmp_path / "audit.jsonl"
    config = settings(stack, VAULT_AUDIT_LOG=str(log), VAULT_CACHE_TTL="1s", VAULT_MAX_LEASES="2")

    def seen() -> list[dict[str, Any]]:
        return [json.loads(text) for text in log.read_text().rpartition("\n")[0].splitlines()]

    def happened(*names: str) -> bool:
        return set(names) <= {line["event"] for line in seen()}

    with SecretsManager(config, registry=CollectorRegistry()) as manager:
        with RequestSecrets(manager) as secrets:
            for _ in range(3):
                secrets.get_secret(STATIC)
                secrets.get_dynamic_secret(DYNAMIC)
        for path in ("shared/none", "shared/none", "../x", "not-permitted/at-all", "shared/jwt#x"):
            with contextlib.suppress(VaultMiddlewareError):
                manager.get_secret(path)
        with contextlib.suppress(VaultMiddlewareError):
            manager.get_dynamic_secret("shared/jwt")

        def lived() -> bool:
            with RequestSecrets(manager) as secrets:
                secrets.get_dynamic_secret(DYNAMIC)
            return happened("lease_renewed", "lease_rotated", "lease_revoked", "token_renewed", "token_revoked")

        eventually(lived, "a rotation of the lease and of the token", 60)
        stack.postgres.stop()
        manager.reject(manager.get_dynamic_secret(DYNAMIC))
        eventually(lambda: happened("lease_renewal_failed"), "a renewal that fails")
        stack.postgres.start()
        stack.bao.stop()

        def out() -> bool:
            with contextlib.suppress(SecretUnavailable):
                manager.get_secret(STATIC)
            return happened("server_down")

        eventually(out, "the outage to be noticed")
        stack.bao.start()
        eventually(lambda: happened("server_up"), "the server to be back")
    lines = seen()
    assert {line["event"] for line in lines} >= {"start", "login", "secret_access", "secret_repeats", "stop"}
    assert {line["outcome"] for line in lines if line["event"] == "secret_access"} >= {
        "hit",
        "miss",
        "denied",
        "error",
        "negative",
    }
    assert [invalid(line) for line in lines if invalid(line)] == []
    assert max(len(text) for text in log.read_text().splitlines()) <= 4096


def test_each_access_joins_with_vaults_own_log_and_so_do_the_hits(stack: DevStack, tmp_path: Path) -> None:
    command = ("uvicorn", "--port", "{port}", "--log-level", "warning", "tests.integration.gateways:asgi")
    with serve(command, stack, tmp_path, root=ROOT) as running:
        eventually(lambda: answers(running), "the gateway to answer")
        users = set()
        for name in ("first", "second", "third"):
            answer = httpx.get(
                f"{running.url}/who", headers={"X-Request-ID": f"join-{name}"}, trust_env=False, timeout=20
            )
            assert answer.status_code == 200
            users.add(answer.text)
    (user,) = users
    script = [sys.executable, str(ROOT / "examples" / "join_audit.py"), str(running.audit), str(stack.bao.audit_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    joined = [json.loads(text) for text in done.stdout.splitlines()]
    found = {(line["request_id"], line["secret_path"]): line for line in joined}
    assert len(found) == len(joined) == 6
    fetched = found["join-first", DYNAMIC]["vault"]
    assert fetched["path"] == DYNAMIC
    assert fetched["namespace"] == "lotabots/"
    assert fetched["correlation_id"] == "join-first"
    assert fetched["policies"] == ["api-gateway", "default"]
    assert fetched["lease_id"]
    for name in ("second", "third"):
        line = found[f"join-{name}", DYNAMIC]
        assert (line["outcome"], line["vault"]) == ("hit", fetched)
    # The other way round: from a lease in Vault's log, or a user of the database, to every request that had it.
    hashed = stack.bao.request("POST", "sys/audit-hash/file", {"input": user})["data"]["hash"]
    for option in (("--lease", fetched["lease_id"]), ("--username", hashed)):
        chosen = subprocess.run([*script, *option], capture_output=True, text=True, check=False)
        found_by = [json.loads(text)["request_id"] for text in chosen.stdout.splitlines()]
        assert found_by == ["join-first", "join-second", "join-third"]
    assert user not in done.stdout


def test_a_call_that_vaults_log_does_not_have_is_told(stack: DevStack, tmp_path: Path) -> None:
    ours, empty = tmp_path / "audit.jsonl", tmp_path / "vault.log"
    with SecretsManager(settings(stack, VAULT_AUDIT_LOG=str(ours)), registry=CollectorRegistry()) as manager:
        manager.get_secret(STATIC)
    ours.write_text("not JSON\n" + ours.read_text())
    empty.write_text("")
    script = [sys.executable, str(ROOT / "examples" / "join_audit.py"), str(ours), str(empty)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1 lines name a call" in done.stderr
    assert json.loads(done.stdout)["vault"] is None


def test_the_lines_shown_in_the_guide_are_as_the_schema_says() -> None:
    guide = (ROOT / "docs" / "audit.md").read_text()
    shown = [json.loads(text) for text in re.findall(r'^\{"time".*\}$', guide, re.MULTILINE)]
    assert len(shown) >= 4
    for line in shown:
        line.pop("vault", None)
        assert invalid(line) == ""


def test_the_guides_validator_runs_as_it_stands_and_refuses_a_line_that_is_not_one(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "audit.md").read_text()
    code = re.search(r"<!-- file: validate.py -->\n```python\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE)
    assert code
    script, log = tmp_path / "validate.py", tmp_path / "audit.jsonl"
    script.write_text(code[1])
    shown = [line for line in re.findall(r'^\{"time".*\}$', guide, re.MULTILINE) if '"vault":' not in line]
    command = [sys.executable, str(script), str(ROOT / "docs" / "audit-line.schema.json"), str(log)]
    log.write_text("\n".join(shown))
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
    log.write_text('{"event": "something else"}\n')
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode != 0
