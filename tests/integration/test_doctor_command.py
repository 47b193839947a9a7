"""The command ``vault-middleware doctor``: all is well where all is well, in every deployment; its output and status."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vault_middleware.cli import main
from vault_middleware.cli.doctor import Doctor
from vault_middleware.devstack import DevStack, Proxy
from vault_middleware.devstack.layout import Deployment

from .doctoring import EVERY, HASTE, causes, clean, examine
from .support import DYNAMIC, JWT, STATIC, eventually, running

STATIC_ROLE = "database/static-creds/api-gateway-static"


@pytest.fixture
def at(stack: DevStack, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the process the service's environment on *stack*."""

    def put(**more: str) -> None:
        for name, value in {**stack.environ, **HASTE, **more}.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.fixture(params=["namespace", "community", "root-auth"])
def deployed(request: pytest.FixtureRequest, deployments: Callable[[Deployment], DevStack]) -> Iterator[DevStack]:
    stack = deployments(request.param)
    yield stack
    stack.heal()


def test_a_healthy_deployment_is_all_well_in_under_two_seconds_and_nothing_is_left(deployed: DevStack) -> None:
    took = []
    for _ in range(3):
        before = time.monotonic()
        # The defaults of the service, with nothing set but the address and the token's path.
        findings = clean(Doctor(deployed.environ, paths=[*EVERY, STATIC_ROLE]).examine(), deployed)
        took.append(time.monotonic() - before)
        assert {each.sign for each in findings.found} == {"ok"}, findings.as_text()
    assert min(took) < 2.0
    eventually(lambda: not deployed.leases(), "the checks' leases to end")
    eventually(lambda: not deployed.postgres.users(), "the checks' users to go")


def test_the_status_is_zero_where_nothing_failed(at: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    at(VAULT_PREFETCH=",".join(EVERY))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "✓ log-in: lotabots/auth/kubernetes/login" in out
    assert "✗" not in out.replace("0 ✗", "")
    assert all(f"read {path}" in out for path in EVERY)


def test_warnings_leave_the_status_at_zero(at: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    at()
    assert main(["doctor"]) == 0
    assert "! paths: no secret path was given" in capsys.readouterr().out


def test_the_status_is_one_where_something_failed_and_the_end_says_where_to_begin(
    at: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    at(VAULT_ROLE="nobody")
    assert main(["doctor", STATIC]) == 1
    out = capsys.readouterr().out
    assert "begin with: log-in (role-unknown)" in out
    assert "- access and leases: not tried" in out


def test_for_machines_it_is_json_with_the_cause_and_every_step(
    at: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    at()
    assert main(["doctor", "--json", STATIC, "api-gateway/none"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["healthy"], report["cause"]) == (False, "secret-missing")
    assert report["seconds"] > 0
    assert set(report["steps"][0]) == {"step", "sign", "found", "code", "why", "mend"}
    assert [each["sign"] for each in report["steps"] if each["step"] == f"read {STATIC}"] == ["ok"]


def test_a_wrong_configuration_is_the_first_finding_with_every_variable_in_it(
    at: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    at(VAULT_CACHE_TTL="soon", VAULT_STARTUP="now")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("✗ configuration: ")
    assert "VAULT_CACHE_TTL" in out
    assert "VAULT_STARTUP" in out


def test_the_paths_that_the_app_really_read_are_those_of_its_audit_log(
    stack: DevStack, at: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    with running(stack, VAULT_AUDIT_LOG=str(audit)) as manager:
        manager.get_secret(STATIC)
        manager.get_secret(JWT)
    at(VAULT_AUDIT_LOG=str(audit))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"✓ read {STATIC}" in out
    assert f"✓ read {JWT}" in out
    assert main(["doctor", "--audit-log", str(tmp_path / "none")]) == 1
    assert "cannot be read" in capsys.readouterr().out


def test_every_leased_path_is_examined_although_the_one_before_it_failed(stack: DevStack) -> None:
    findings = examine(stack, "api-gateway/none", "database/creds/none", *EVERY)
    assert causes(findings) == ["secret-missing", "path-not-covered"]
    assert [each.step for each in findings.found if each.sign == "ok"][-6:] == [
        f"read {STATIC}",
        f"read {JWT}",
        *(f"{what} database/creds/api-gateway" for what in ("read", "renew", "lease of", "revoke")),
    ]


def test_behind_a_proxy_it_examines_what_the_app_has_and_revokes_nothing_of_the_proxys(stack: DevStack) -> None:
    with Proxy(stack) as proxy:
        settings = {**proxy.environ, "VAULT_KUBERNETES_TOKEN_PATH": "/nowhere"}
        with running(stack, **settings) as manager:
            lease = manager.get_dynamic_secret(DYNAMIC).lease
            for _ in range(2):  # if it had revoked the proxy's own token, the second one would be refused
                findings = examine(stack, settings=settings)
                assert causes(findings) == [], findings.as_text()
            assert manager.get_dynamic_secret(DYNAMIC).lease.lease_id == lease.lease_id
            assert lease.lease_id.rsplit("/", 1)[1] in " ".join(stack.leases())
