"""The doctor and the log-in: each way in which it fails on a real server is named, first and alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vault_middleware.devstack import DevStack

from .doctoring import causes, examine, finding


def _with_file(stack: DevStack, path: Path) -> list[str]:
    return causes(examine(stack, VAULT_KUBERNETES_TOKEN_PATH=str(path)))


def test_a_token_file_that_is_missing(stack: DevStack, tmp_path: Path) -> None:
    assert _with_file(stack, tmp_path / "none") == ["token-missing"]


def test_a_token_file_that_is_empty(stack: DevStack, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    assert _with_file(stack, tmp_path / "token") == ["token-empty"]


def test_a_token_file_that_cannot_be_read(stack: DevStack, tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()  # a mode would not stop a test that runs as root
    assert _with_file(stack, tmp_path / "token") == ["token-unreadable"]


def test_a_token_file_with_something_else_in_it_whose_text_is_not_shown(stack: DevStack, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2-hunter2")
    findings = examine(stack, VAULT_KUBERNETES_TOKEN_PATH=str(tmp_path / "token"))
    assert causes(findings) == ["token-malformed"]
    assert "hunter2" not in findings.as_text() + findings.as_json()


def test_a_token_that_has_expired(stack: DevStack) -> None:
    stack.write_service_account_token(ttl=-120)
    findings = examine(stack)
    assert causes(findings) == ["token-expired"]
    assert "subPath" in finding(findings, "token-expired").mend


def test_a_token_for_another_audience(stack: DevStack) -> None:
    stack.write_service_account_token(audience="another")
    findings = examine(stack)
    assert causes(findings) == ["wrong-audience"]
    assert "another" in finding(findings, "wrong-audience").found


@pytest.mark.parametrize(("name", "namespace"), [("somebody-else", "lotabots"), ("api-gateway", "elsewhere")])
def test_a_service_account_or_namespace_that_the_role_is_not_bound_to(
    stack: DevStack, name: str, namespace: str
) -> None:
    stack.write_service_account_token(name, namespace)
    findings = examine(stack)
    assert causes(findings) == ["wrong-service-account"]
    assert f"system:serviceaccount:{namespace}:{name}" in finding(findings, "wrong-service-account").found


def test_a_role_that_is_not_known(stack: DevStack) -> None:
    findings = examine(stack, VAULT_ROLE="nobody")
    assert causes(findings) == ["role-unknown"]
    assert "'nobody'" in finding(findings, "role-unknown").found


def test_an_auth_method_that_is_not_mounted(stack: DevStack) -> None:
    findings = examine(stack, VAULT_AUTH_MOUNT="k8s", kubernetes=stack.kubernetes.address)
    assert causes(findings) == ["auth-mount-missing"]
    assert "lotabots/auth/k8s/login, auth/k8s/login" in finding(findings, "auth-mount-missing").found


def test_an_empty_namespace_where_the_auth_method_is_in_one(stack: DevStack) -> None:
    findings = examine(stack, VAULT_NAMESPACE="")
    assert causes(findings) == ["auth-mount-missing"]
    assert "VAULT_NAMESPACE is empty" in finding(findings, "auth-mount-missing").found


def test_a_tokenreview_that_is_down(stack: DevStack) -> None:
    stack.kubernetes.available = False
    assert causes(examine(stack, kubernetes=stack.kubernetes.address)) == ["tokenreview-unreachable"]
    # Outside a pod, where the cluster cannot be asked, it is one of three causes.
    assert causes(examine(stack)) == ["tokenreview"]


@pytest.fixture
def powerless(stack: DevStack) -> Iterator[DevStack]:
    """A server whose reviewer the cluster does not know (any more)."""
    path = "lotabots/auth/kubernetes/config"
    common = {
        "kubernetes_host": stack.kubernetes.address,
        "kubernetes_ca_cert": stack.kubernetes.ca_certificate,
        "disable_local_ca_jwt": True,
    }
    reviewer = stack.kubernetes.service_account_token("openbao", "openbao", ttl=86400.0)
    expired = stack.kubernetes.service_account_token("openbao", "openbao", ttl=-600.0)
    stack.bao.request("POST", path, {**common, "token_reviewer_jwt": expired})
    yield stack
    stack.bao.request("POST", path, {**common, "token_reviewer_jwt": reviewer})


def test_a_reviewer_that_is_not_permitted(powerless: DevStack) -> None:
    findings = examine(powerless, kubernetes=powerless.kubernetes.address)
    assert causes(findings) == ["reviewer-not-permitted"]
    assert "system:auth-delegator" in finding(findings, "reviewer-not-permitted").mend


def test_a_token_of_an_account_that_was_deleted(stack: DevStack) -> None:
    stack.write_service_account_token(uid="00000000-0000-0000-0000-000000000000")
    assert causes(examine(stack, kubernetes=stack.kubernetes.address)) == ["token-rejected"]


def test_a_vault_token_that_is_not_valid(stack: DevStack) -> None:
    given = {"VAULT_AUTH_METHOD": "token", "VAULT_TOKEN": "hvs.canary-of-a-token"}
    findings = examine(stack, settings=given)
    assert causes(findings) == ["vault-token-invalid"]
    assert "canary" not in findings.as_text() + findings.as_json()


def test_an_approle_that_is_not_known(stack: DevStack) -> None:
    stack.bao.request("POST", "lotabots/sys/auth/approle", {"type": "approle"})
    try:
        given = {"VAULT_AUTH_METHOD": "approle", "VAULT_ROLE_ID": "canary-id", "VAULT_SECRET_ID": "canary-secret"}
        findings = examine(stack, settings=given)
    finally:
        stack.bao.request("DELETE", "lotabots/sys/auth/approle")
    assert causes(findings) == ["approle-invalid"]
    assert "canary" not in findings.as_text() + findings.as_json()


def test_a_given_token_is_not_revoked(stack: DevStack) -> None:
    token = stack.log_in()
    findings = examine(stack, VAULT_AUTH_METHOD="token", VAULT_TOKEN=token)
    assert causes(findings) == []
    assert stack.bao.request("GET", "lotabots/auth/token/lookup-self", token=token)
