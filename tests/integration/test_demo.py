"""The demo: it shows each step on real servers, and says so where one could not happen."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from vault_middleware.cli.demo import Demo

STEPS = [
    "OpenBao at http://127.0.0.1:",
    "Log-in with the service-account token at {login}, as role api-gateway",
    "First read of api-gateway/api-key: a miss",
    "all hits",
    "Dynamic user v-",
    "Renewed in the background",
    "Rotated, because",
    "new user v-",
    "The old user was revoked after its last request, and is gone from PostgreSQL",
    "requests meanwhile, 0 failed",
    '"event":"login"',
    '"event":"secret_access"',
    '"outcome":"miss"',
    '"outcome":"hit"',
    '"event":"lease_renewed"',
    '"event":"lease_rotated"',
    '"event":"lease_revoked"',
    "vault_secret_requests_total ",
    "vault_secret_cache_hits_total ",
    "vault_lease_renewal_errors_total 0.0",
    "Closed by its lifespan: no lease left in OpenBao, no user of ours in PostgreSQL",
    "All of it happened.",
]

#: Runs the demo with shorter lives, and something changed: *what* is Python, with `demo`, `stack` and `Layout` at hand.
CHANGED = """
import sys
from vault_middleware.cli import demo, main
from vault_middleware.devstack import stack
from vault_middleware.devstack.layout import Layout

demo.LEASE_TTL, demo.LEASE_MAX_TTL = 2, 5
demo.PATIENCE = {patience}
policy = Layout.policy
{what}
sys.exit(main(["demo", "--once", "--deployment", "{deployment}"]))
"""


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # It must work in an environment that means another server, too.
    environ = {**os.environ, "VAULT_ADDR": "http://192.0.2.1:8200", "VAULT_NAMESPACE": "another", "BAO_TOKEN": "none"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)


def changed(deployment: str, what: str = "", patience: float = 8.0) -> list[str]:
    return [sys.executable, "-c", CHANGED.format(deployment=deployment, what=what, patience=patience)]


def shows_every_step(done: subprocess.CompletedProcess[str], login: str) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    position = 0
    for step in STEPS:
        anywhere = step.startswith('"')  # audit lines come in the order in which things happened
        found = done.stdout.find(step.format(login=login), 0 if anywhere else position)
        assert found >= 0, f"{step!r} is missing or out of order in:\n{done.stdout}"
        position = position if anywhere else found
    assert "Traceback" not in done.stderr


def test_a_line_that_is_being_written_is_none_yet(tmp_path: Path) -> None:
    demo = Demo(once=True, deployment="namespace")
    demo._audit = tmp_path / "audit.jsonl"
    assert list(demo._lines()) == []
    demo._audit.write_text('{"event":"login"}\n{"event":"lease_ro')
    assert list(demo._lines()) == [{"event": "login"}]


def test_the_command_shows_every_step_and_ends_with_0() -> None:
    script = str(Path(sysconfig.get_path("scripts"), "vault-middleware"))
    shows_every_step(run([script, "demo", "--once"]), "lotabots/auth/kubernetes/login")


@pytest.mark.parametrize("deployment", ["community", "root-auth"])
def test_the_demo_shows_every_step_in_the_other_deployments_as_well(deployment: str) -> None:
    shows_every_step(run(changed(deployment, patience=30.0)), "auth/kubernetes/login")


@pytest.mark.parametrize(
    ("deployment", "what", "said"),
    [
        pytest.param("namespace", "stack.ROLE = 'another'", "the gateway did not start", id="no log-in"),
        pytest.param(
            "community",
            "Layout.policy = lambda layout, kind: policy(layout, 'original')",
            "waited 8 s for the first database user in vain",
            id="a policy without the database",
        ),
        pytest.param(
            "root-auth",
            "Layout.policy = lambda layout, kind: policy(layout, kind).replace('sys/leases/renew', 'none')",
            "waited 8 s for the audit line 'lease_renewed' in vain",
            id="a policy without renewals",
        ),
        pytest.param(
            "namespace",
            "stack._REVOCATION = 'SELECT 1'",
            "waited 8 s for the old user to go in vain",
            id="a database that lets no user go",
        ),
    ],
)
def test_the_demo_ends_with_1_where_a_step_could_not_happen(deployment: str, what: str, said: str) -> None:
    done = run(changed(deployment, what))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"✗ {said}" in done.stdout, done.stdout + done.stderr
    assert "All of it happened" not in done.stdout
