"""The doctor and the policy: each way in which a read is refused or finds nothing is told apart, with the line to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vault_middleware.devstack import DevStack
from vault_middleware.devstack.layout import Deployment, rule

from .doctoring import causes, examine, finding
from .support import DYNAMIC, JWT, STATIC

LEASES = rule("sys/leases/revoke", "update")
STATICS = rule("shared/*", "read")
CREDS = rule(DYNAMIC, "read")


@pytest.fixture
def community(deployments: Callable[[Deployment], DevStack]) -> Iterator[DevStack]:
    """Mounts that begin with the namespace's name, on a server without that namespace."""
    stack = deployments("community")
    yield stack
    stack.heal()


# -- no policy


def test_a_policy_that_was_removed(stack: DevStack) -> None:
    stack.bao.request("DELETE", "lotabots/sys/policies/acl/api-gateway")
    findings = examine(stack)
    assert causes(findings) == ["policy-not-attached", "path-not-covered"]
    cause = finding(findings, "policy-not-attached")
    assert "api-gateway permit nothing" in cause.found
    assert "namespace 'lotabots'" in cause.mend


def test_a_policy_that_is_not_attached_to_the_role(stack: DevStack) -> None:
    path = "lotabots/auth/kubernetes/role/api-gateway"
    before = stack.bao.request("GET", path)["data"]
    stack.bao.request("POST", path, {**before, "token_policies": []})
    try:
        findings = examine(stack)
    finally:
        stack.bao.request("POST", path, before)
    assert causes(findings) == ["policy-not-attached", "path-not-covered"]
    assert "none but the default" in finding(findings, "policy-not-attached").found


# -- a rule that is missing


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (STATIC, "api-gateway/data/api-key"),
        (JWT, "shared/jwt"),
        (DYNAMIC, DYNAMIC),
    ],
)
def test_a_path_that_no_rule_covers_is_named_with_the_missing_line(stack: DevStack, path: str, line: str) -> None:
    rules = {STATIC: rule("api-gateway/data/*", "read"), JWT: STATICS, DYNAMIC: CREDS}
    mount = path.partition("/")[0]
    # Something else of the mount is permitted, so that the token sees which version it is of.
    rest = rule(f"{mount}/data/other", "read") + "".join(text for each, text in rules.items() if each != path)
    stack.write_policy(rest + LEASES)
    findings = examine(stack)
    assert causes(findings) == ["path-not-covered"]
    assert [each.step for each in findings.found if each.sign == "failed"] == [f"read {path}"]
    assert f'path "{line}" {{ capabilities = ["read"] }}' in finding(findings, "path-not-covered").mend


def test_the_missing_line_that_is_named_is_what_was_missing(stack: DevStack) -> None:
    rest = rule("api-gateway/data/other", "read") + STATICS + CREDS + LEASES
    stack.write_policy(rest)
    mend = finding(examine(stack), "path-not-covered").mend
    stack.write_policy(rest + mend[mend.index("path ") :])
    assert causes(examine(stack)) == []


# -- KV version 1 and 2


def test_a_policy_without_the_data_of_kv_version_2(stack: DevStack) -> None:
    stack.write_policy(rule(STATIC, "read") + STATICS + CREDS + LEASES)
    findings = examine(stack)
    assert causes(findings) == ["kv-version-mixed-up"]
    assert 'path "api-gateway/data/api-key"' in finding(findings, "kv-version-mixed-up").mend


def test_a_policy_with_data_for_a_mount_of_version_1(stack: DevStack) -> None:
    stack.write_policy(rule("api-gateway/*", "read") + rule("shared/data/*", "read") + CREDS + LEASES)
    findings = examine(stack)
    assert causes(findings) == ["kv-version-mixed-up"]
    assert 'path "shared/jwt"' in finding(findings, "kv-version-mixed-up").mend


@pytest.mark.parametrize("policy", [None, rule("api-gateway/data/api-key", "read") + STATICS])
def test_a_path_with_data_in_it(stack: DevStack, policy: str | None) -> None:
    stack.write_policy(policy)
    findings = examine(stack, "api-gateway/data/api-key", JWT)
    assert causes(findings) == ["kv-version-mixed-up"]
    assert "'api-gateway/api-key'" in finding(findings, "kv-version-mixed-up").mend


def test_a_version_in_the_settings_that_is_not_the_mounts(stack: DevStack) -> None:
    findings = examine(stack, STATIC, VAULT_KV_VERSION="1")
    assert causes(findings) == ["kv-version-mixed-up"]
    assert "VAULT_KV_VERSION" in finding(findings, "kv-version-mixed-up").mend


# -- the namespace, as a header or in front of the path


def test_a_namespaces_policy_that_has_the_namespace_in_front(stack: DevStack) -> None:
    stack.write_policy(stack.policy_text("original"))
    findings = examine(stack, STATIC, JWT)
    assert causes(findings) == ["namespace-mixed-up"]
    found = finding(findings, "namespace-mixed-up")
    assert "'lotabots/api-gateway/" in found.found
    assert 'path "api-gateway/' in found.mend


def test_a_roots_policy_that_lacks_the_namespace_in_front(community: DevStack) -> None:
    community.write_policy(rule("api-gateway/*", "read") + rule("lotabots/shared/*", "read"))
    findings = examine(community, STATIC, JWT)
    assert causes(findings) == ["namespace-mixed-up"]
    assert 'path "lotabots/api-gateway/' in finding(findings, "namespace-mixed-up").mend


def test_a_path_that_repeats_the_namespace(stack: DevStack) -> None:
    findings = examine(stack, f"lotabots/{STATIC}", JWT)
    assert causes(findings) == ["namespace-mixed-up"]
    assert repr(STATIC) in finding(findings, "namespace-mixed-up").mend


def test_a_mount_at_the_root_of_a_server_that_ignores_the_header(community: DevStack) -> None:
    community.bao.request("POST", "sys/mounts/plain", {"type": "kv", "options": {"version": "1"}})
    community.bao.request("POST", "plain/secret", {"value": "x"})
    community.write_policy(rule("plain/*", "read") + rule("lotabots/plain/*", "read"))
    try:
        findings = examine(community, "plain/secret")
        assert causes(findings) == ["namespace-mixed-up"]
        assert "X-Vault-Namespace" in finding(findings, "namespace-mixed-up").found
        assert causes(examine(community, "plain/secret", VAULT_NAMESPACE="")) == []
    finally:
        community.bao.request("DELETE", "sys/mounts/plain")


# -- nothing there


def test_a_secret_that_is_not_there(stack: DevStack) -> None:
    findings = examine(stack, "api-gateway/none", JWT)
    assert causes(findings) == ["secret-missing"]
    assert "vault kv put -namespace=lotabots api-gateway/none" in finding(findings, "secret-missing").mend


def test_a_secret_whose_version_was_deleted(stack: DevStack) -> None:
    stack.put_secret("api-gateway/gone", {"value": "canary-gone"})
    stack.request("DELETE", "api-gateway/data/gone")
    findings = examine(stack, "api-gateway/gone")
    assert causes(findings) == ["secret-missing"]
    assert "deleted" in finding(findings, "secret-missing").found


def test_a_mount_that_is_not_there(stack: DevStack) -> None:
    stack.write_policy(stack.policy_text() + rule("nowhere/*", "read"))
    findings = examine(stack, "nowhere/secret", JWT)
    assert causes(findings) == ["mount-missing"]
    assert "vault secrets enable -namespace=lotabots -path=nowhere" in finding(findings, "mount-missing").mend


def test_a_database_role_that_is_not_there(stack: DevStack) -> None:
    stack.permit("database/creds/nobody", "read")
    assert causes(examine(stack, "database/creds/nobody")) == ["secret-missing"]


def test_a_hostile_path_is_refused_without_being_sent(stack: DevStack) -> None:
    assert causes(examine(stack, "shared/../api-gateway/api-key")) == ["path-invalid"]


def test_a_path_that_the_apps_own_list_does_not_have(stack: DevStack) -> None:
    findings = examine(stack, STATIC, JWT, VAULT_ALLOWED_PATHS="shared/*")
    assert causes(findings) == ["path-not-allowed"]
    assert f"VAULT_ALLOWED_PATHS=shared/*,{STATIC}" in finding(findings, "path-not-allowed").mend


# -- tokens


def test_a_token_without_the_default_policy_is_examined_as_far_as_it_may(stack: DevStack) -> None:
    path = "lotabots/auth/kubernetes/role/api-gateway"
    before = stack.bao.request("GET", path)["data"]
    stack.bao.request("POST", path, {**before, "token_no_default_policy": True})
    try:
        findings = examine(stack, STATIC, JWT)
        stack.write_policy(STATICS)
        other = examine(stack, STATIC, JWT)
    finally:
        stack.bao.request("POST", path, before)
    assert causes(findings) == []
    assert finding(findings, "no-default-policy").sign == "warning"
    assert causes(other) == ["path-not-covered"]


def test_a_root_token_is_warned_of(stack: DevStack) -> None:
    findings = examine(stack, VAULT_AUTH_METHOD="token", VAULT_TOKEN=stack.bao.root_token)
    assert causes(findings) == []
    assert finding(findings, "token-root").sign == "warning"
