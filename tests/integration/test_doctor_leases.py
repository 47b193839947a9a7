"""The doctor and leases: what keeps a lease from being made, renewed, and lived with is told apart on a real database."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vault_middleware.devstack import DevStack
from vault_middleware.devstack.layout import Deployment, rule

from .doctoring import HASTE, causes, examine, finding
from .support import DYNAMIC, STATIC, asked, eventually


@pytest.fixture
def root_auth(deployments: Callable[[Deployment], DevStack]) -> Iterator[DevStack]:
    """A namespace with its auth method and policy in the root."""
    stack = deployments("root-auth")
    yield stack
    stack.heal()


def test_a_renewal_that_is_not_permitted(stack: DevStack) -> None:
    text = stack.policy_text().replace(rule("sys/leases/renew", "update"), rule("sys/leases/renew", "deny"))
    stack.write_policy(text)
    findings = examine(stack)
    assert causes(findings) == ["renewal-not-permitted"]
    assert 'path "sys/leases/renew" { capabilities = ["update"] }' in finding(findings, "renewal-not-permitted").mend
    eventually(lambda: not stack.leases(), "no lease to be left")


def test_a_root_token_with_a_namespaces_lease(root_auth: DevStack) -> None:
    line = rule("lotabots/sys/leases/renew", "update")
    assert line in root_auth.policy_text()
    root_auth.write_policy(root_auth.policy_text().replace(line, ""))
    findings = examine(root_auth)
    root_auth.heal()
    assert causes(findings) == ["renewal-not-permitted"]
    found = finding(findings, "renewal-not-permitted")
    assert "the lease lives in the namespace 'lotabots', and the token is one of the root" in found.found
    assert 'path "lotabots/sys/leases/renew"' in found.mend
    assert "policy of the root namespace" in found.mend
    assert causes(examine(root_auth)) == []


def test_a_revocation_that_is_not_permitted_is_a_warning(stack: DevStack) -> None:
    stack.write_policy(stack.policy_text().replace(rule("sys/leases/revoke", "update"), ""))
    findings = examine(stack)
    assert causes(findings) == []
    assert 'path "sys/leases/revoke"' in finding(findings, "revocation-not-permitted").mend
    eventually(lambda: not stack.leases(), "the lease to end with the token")


@pytest.mark.parametrize(("ttl", "max_ttl"), [(20, 20), (40, 20)])
def test_a_ttl_at_or_over_the_max_ttl(stack: DevStack, ttl: float, max_ttl: float) -> None:
    stack.add_database_role("capped", ttl=ttl, max_ttl=max_ttl)
    findings = examine(stack, STATIC, "database/creds/capped")
    assert causes(findings) == []
    assert [each.code for each in findings.found if each.sign == "warning"] == ["ttl-at-max-ttl"]
    assert "max_ttl" in finding(findings, "ttl-at-max-ttl").mend


def test_a_ttl_that_leaves_no_time_for_a_second_try(stack: DevStack) -> None:
    stack.add_database_role("brief", ttl=3, max_ttl=60)
    findings = examine(stack, "database/creds/brief")
    assert causes(findings) == ["ttl-too-short"]
    assert "default_ttl=" in finding(findings, "ttl-too-short").mend


def test_a_ttl_that_is_too_short_for_so_many_processes(stack: DevStack) -> None:
    findings = examine(stack, processes=10_000_000)
    assert causes(findings) == ["ttl-too-short"]
    assert "10000000 processes" in finding(findings, "ttl-too-short").found


def test_a_ttl_that_one_slow_call_could_outlast_is_a_warning(stack: DevStack) -> None:
    findings = examine(stack, VAULT_CLIENT_TIMEOUT="5s")
    assert causes(findings) == []
    assert finding(findings, "ttl-short").sign == "warning"


def test_a_database_that_is_down(stack: DevStack) -> None:
    stack.postgres.kill()
    findings = examine(stack)
    assert causes(findings) == ["database-down"]
    assert "the server answers" in finding(findings, "database-down").found


def test_a_database_that_hangs(stack: DevStack) -> None:
    stack.postgres.pause()
    assert causes(examine(stack)) == ["database-down"]


def test_no_lease_is_made_where_none_is_wanted(stack: DevStack) -> None:
    from vault_middleware.cli.doctor import Doctor

    before = len(asked(stack, f"lotabots/{DYNAMIC}"))
    findings = Doctor({**stack.environ, **HASTE}, paths=[DYNAMIC], leases=False).examine()
    assert causes(findings) == []
    assert [each.step for each in findings.found if each.sign == "skipped"] == [f"read {DYNAMIC}"]
    assert len(asked(stack, f"lotabots/{DYNAMIC}")) == before


def test_a_check_leaves_no_lease_and_no_user(stack: DevStack) -> None:
    before = set(stack.postgres.users())
    assert causes(examine(stack)) == []
    eventually(lambda: not stack.leases(), "no lease to be left")
    eventually(lambda: set(stack.postgres.users()) <= before, "the check's user to go")
