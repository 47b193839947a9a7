"""The command ``vault-middleware policy``: what it writes is enough for a whole life, and least: no line of it can go."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vault_middleware import RequestSecrets, SecretsManager
from vault_middleware.cli import main
from vault_middleware.devstack import DevStack
from vault_middleware.devstack.layout import Deployment, rule
from vault_middleware.devstack.openbao import Refused
from vault_middleware.errors import SecretAccessDenied, VaultMiddlewareError

from .support import JWT, STATIC, eventually, in_threads, running

#: A role whose leases are short, so that a life is.
DYNAMIC = "database/creds/brief"

PATHS = (STATIC, JWT, DYNAMIC)
ROLE = "auth/kubernetes/role"


@pytest.fixture(params=["namespace", "community", "root-auth"])
def deployed(request: pytest.FixtureRequest, deployments: Callable[[Deployment], DevStack]) -> Iterator[DevStack]:
    stack = deployments(request.param)
    stack.add_database_role("brief", ttl=2, max_ttl=60, permit=False)
    yield stack
    stack.heal()


@pytest.fixture
def command(
    deployed: DevStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run ``vault-middleware policy …`` in the service's environment; its status, output and errors."""

    def run(*arguments: str, **more: str) -> tuple[int, str, str]:
        for name, value in {**deployed.environ, **more}.items():
            monkeypatch.setenv(name, value)
        status = main(["policy", *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


# -- enough, and least


def rules_in(text: str) -> list[str]:
    """The rules of a policy."""
    return re.findall(r"^path .*?^}$", text, re.DOTALL | re.MULTILINE)


def role_with(stack: DevStack, name: str, policy: str, *, default: bool) -> None:
    """Another role for the service, with *policy* alone."""
    at = stack.layout.auth
    stack.bao.request("POST", at(f"sys/policies/acl/{name}"), {"policy": policy})
    like = stack.bao.request("GET", at(f"{ROLE}/api-gateway"))["data"]
    own = {"token_policies": [name], "token_no_default_policy": not default, "token_ttl": "5s"}
    stack.bao.request("POST", at(f"{ROLE}/{name}"), {**like, **own})


def life(stack: DevStack, role: str, folder: Path) -> str:
    """What goes wrong first in a whole life as *role*, from the log-in to the stop; empty where all goes well."""
    audit = folder / f"{role}.jsonl"

    def events(*names: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        return [line for line in lines if line["event"] in names]

    def settled(what: str) -> str:
        """What came of *what*: wait for its event, or that of its failure."""
        names = (what, {"lease_revoked": "lease_revocation_failed"}.get(what, what.replace("ed", "al_failed")))
        found = eventually(lambda: events(*names), what)
        return "" if found[0]["event"] == what else f"{what}: {found[0]['reason']}"

    leases = []
    try:
        settings = {"VAULT_ROLE": role, "VAULT_AUDIT_LOG": str(audit), "VAULT_LEASE_MIN_VALIDITY": "0.2s"}
        with running(stack, **settings) as manager:
            with contextlib.closing(RequestSecrets(manager)) as request:
                assert request.get_secret(STATIC)["value"] in stack.secret_values()
                assert request.get_secret(JWT)["key"] in stack.secret_values()
                first = request.get_dynamic_secret(DYNAMIC)
                leases.append(first.lease.lease_id)
                assert stack.postgres.can_log_in(first["username"], first["password"])
                with pytest.raises(SecretAccessDenied):
                    request.get_secret("shared/nothing-of-ours")
            if len(events("login")) != 1:
                return "a refusal was taken for the end of the token"
            for what in ("lease_renewed", "token_renewed"):
                if problem := settled(what):
                    return problem
            with contextlib.closing(RequestSecrets(manager)) as request:
                current = request.get_dynamic_secret(DYNAMIC)
                leases.append(current.lease.lease_id)
                manager.reject(current)
                second = eventually(lambda: _now(manager, current["username"]), "a rotation")
                leases.append(second.lease.lease_id)
                assert stack.postgres.can_log_in(second["username"], second["password"])
            if problem := settled("lease_revoked"):
                return problem
            token = manager._engine.session.get(5).token.value
    except VaultMiddlewareError as error:
        return str(error)
    if _lives(stack, token):
        return "the token was not revoked at the stop"
    if len(events("lease_revoked")) < len(set(leases)):
        return "a lease was left to its end"
    eventually(lambda: not set(leases) & set(stack.leases()), "the revoked leases to go")
    return ""


def _lives(stack: DevStack, token: str) -> bool:
    with contextlib.suppress(Refused):
        return bool(stack.bao.request("POST", stack.layout.auth("auth/token/lookup"), {"token": token}))
    return False


def _now(manager: SecretsManager, before: str) -> Any:
    """The current credentials, as a new request gets them, if their user is no longer *before*."""
    with contextlib.closing(RequestSecrets(manager)) as request:
        secret = request.get_dynamic_secret(DYNAMIC)
    return secret if secret["username"] != before else None


def _numbered_life(stack: DevStack, default: bool, folder: Path, number: int) -> str:
    return life(stack, f"least-{default}-{number}".lower(), folder)


def test_what_it_writes_lets_a_whole_life_run_and_without_any_one_line_something_fails(
    deployed: DevStack, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    # In one deployment, the tokens also lack the server's default policy, which all of them would have otherwise.
    for default in (True, False) if deployed.layout.deployment == "root-auth" else (True,):
        status, text, errors = command(*PATHS, *(() if default else ("--without-default",)))
        assert (status, errors) == (0, "")
        rules = rules_in(text)
        policies = [text, *("\n".join(rules[:gone] + rules[gone + 1 :]) for gone in range(len(rules)))]
        for number, policy in enumerate(policies):
            role_with(deployed, f"least-{default}-{number}".lower(), policy, default=default)
        problems = in_threads(len(policies), partial(_numbered_life, deployed, default, tmp_path))
        assert problems[0] == "", "what was written is not enough"
        spare = [rule for rule, problem in zip(rules, problems[1:], strict=True) if not problem]
        assert not spare, f"these could go: {spare}; the others: {problems[1:]}"
    eventually(lambda: not deployed.leases(), "the leases of those that could not revoke them to end")


# -- what it writes


def test_it_says_where_to_write_it_and_why_it_differs_from_the_original(
    deployed: DevStack, command: Callable[..., tuple[int, str, str]]
) -> None:
    _, text, _ = command(*PATHS)
    inside = deployed.layout.deployment == "namespace"
    assert f"vault policy write {'-namespace=lotabots ' if inside else ''}api-gateway FILE" in text
    assert "sys/renew/*" in text
    assert 'path "sys/renew' not in text
    prefix = "" if inside else "lotabots/"
    assert f'path "{prefix}api-gateway/data/api-key" {{' in text
    for each in rules_in(text):
        before = text[: text.index(each)].rstrip().rpartition("\n")[2]
        assert before.startswith("# "), f"no reason is given for {each}"


def test_the_deployment_that_is_found_out_is_the_one_that_can_be_given(
    deployed: DevStack, command: Callable[..., tuple[int, str, str]]
) -> None:
    _, found, _ = command(*PATHS)
    _, given, _ = command(*PATHS, "--deployment", deployed.layout.deployment)
    assert found == given


def test_the_deployment_is_found_out_before_there_is_any_role_to_log_in_as(
    deployed: DevStack, command: Callable[..., tuple[int, str, str]]
) -> None:
    _, known, _ = command(*PATHS)
    status, text, errors = command(*PATHS, VAULT_ROLE="not-yet", VAULT_KUBERNETES_TOKEN_PATH="/nowhere")
    assert status == 0
    assert "could not be looked at" in errors
    # What could not be seen is the KV version: both lines are written, and the rest is the same.
    assert set(rules_in(known)) < set(rules_in(text))
    assert len(rules_in(text)) == len(rules_in(known)) + 2
    assert "run this again" in errors


def test_from_the_audit_log_it_needs_neither_server_nor_credential(
    deployed: DevStack, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    deployed.permit(DYNAMIC, "read")
    with running(deployed, VAULT_AUDIT_LOG=str(audit)) as manager:
        for path in (STATIC, JWT):
            manager.get_secret(path)
        manager.get_dynamic_secret(DYNAMIC)
        with pytest.raises(VaultMiddlewareError):
            manager.get_secret("elsewhere/that-is-refused")
    _, known, _ = command(*PATHS)
    offline = {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_KUBERNETES_TOKEN_PATH": "/nowhere"}
    given = ("--audit-log", str(audit), "--deployment", deployed.layout.deployment)
    status, text, _ = command(*given, **offline)
    assert status == 0
    assert set(rules_in(text)) == set(rules_in(known))


def test_a_wildcard_that_is_asked_for_is_written(command: Callable[..., tuple[int, str, str]]) -> None:
    _, text, _ = command("api-gateway/*", "shared/*")
    assert 'api-gateway/data/*" {' in text
    assert 'shared/*" {' in text


def test_nothing_to_write_for_is_an_error_that_says_what_to_give(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    status, text, errors = command()
    assert (status, text) == (1, "")
    assert "--audit-log" in errors


def test_a_hostile_path_gets_no_line(command: Callable[..., tuple[int, str, str]]) -> None:
    status, text, _ = command('shared/x" { capabilities = ["sudo"] } path "*', "shared/../sys/raw")
    assert (status, text) == (1, "")


# -- the check


def test_a_policy_that_it_has_written_passes_its_check(
    deployed: DevStack, command: Callable[..., tuple[int, str, str]]
) -> None:
    _, text, _ = command(*PATHS)
    deployed.write_policy(text)
    status, out, _ = command(*PATHS, "--check")
    assert (status, out) == (0, "✓ the token may do what 3 paths need, and nothing else\n")


def test_a_gap_is_named_with_its_line(deployed: DevStack, command: Callable[..., tuple[int, str, str]]) -> None:
    _, text, _ = command(*PATHS)
    for gone in rules_in(text):
        deployed.write_policy(text.replace(gone, ""))
        status, out, _ = command(*PATHS, "--check")
        assert status == 1
        path = re.findall(r'path ("[^"]*")', gone)[0]
        assert out.count("✗ gap") == 1, out
        assert f"path {path} {{" in out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("shared/jwt", "read", "list"), "permits list too"),
        (("shared/*", "read"), "is wider than what is read"),
        (("shared/+", "read"), "is wider than what is read"),
        (("shared/other", "read"), "is not needed"),
        (("api-gateway/metadata/*", "list"), "is not needed"),
    ],
)
def test_an_excess_is_named(
    deployed: DevStack, command: Callable[..., tuple[int, str, str]], more: tuple[str, ...], says: str
) -> None:
    _, text, _ = command(*PATHS)
    path, *capabilities = more
    deployed.write_policy(text + rule(deployed.layout.in_policy(path), *capabilities))
    status, out, _ = command(*PATHS, "--check")
    assert status == 1
    assert out.count("✗ excess") == 1, out
    assert says in out
    assert "gap" not in out


def test_the_original_policy_has_gaps_and_excess(
    deployed: DevStack, command: Callable[..., tuple[int, str, str]]
) -> None:
    deployed.write_policy(deployed.policy_text("original"))
    status, out, _ = command(*PATHS, "--check")
    assert status == 1
    assert "✗ gap: read database/creds/brief" in out
    assert "'sys/renew/*' (update) is not needed" in out


def test_a_root_token_is_all_excess(deployed: DevStack, command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = command(*PATHS, "--check", VAULT_AUTH_METHOD="token", VAULT_TOKEN=deployed.bao.root_token)
    assert status == 1
    assert out == "✗ excess: it is a root token, which may do everything; log in by a role with a policy\n"


def test_a_check_without_a_log_in_is_an_error(command: Callable[..., tuple[int, str, str]]) -> None:
    status, _, errors = command(*PATHS, "--check", VAULT_ROLE="nobody")
    assert status == 1
    assert "AuthenticationError" in errors
