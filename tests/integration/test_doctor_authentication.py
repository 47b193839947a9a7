"""The doctor and the log-in: each way in which it fails on a real server is named, first and alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.scripted import ScriptedServer, answer, page
from vault_middleware.cli.findings import Findings
from vault_middleware.devstack import DevStack, Kubernetes
from vault_middleware.devstack.certificates import Authority

from .doctoring import causes, examine, finding
from .support import free_port


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


# -- refused without a word: what the cluster says settles it, or nothing does

CANDIDATES = (
    "does not reach the cluster's TokenReview",
    "its reviewer is not permitted to",
    "the cluster does not accept the token",
)

CONFIG = "lotabots/auth/kubernetes/config"


def _review_at(stack: DevStack, cluster: Kubernetes, reviewer: str, **more: str) -> None:
    """Have the server review tokens at *cluster* with the token *reviewer*."""
    host = {"kubernetes_host": cluster.address, "kubernetes_ca_cert": cluster.ca_certificate}
    body = {**host, "disable_local_ca_jwt": True, "token_reviewer_jwt": reviewer, **more}
    stack.bao.request("POST", CONFIG, body)


@pytest.fixture
def reviewing(stack: DevStack) -> Iterator[DevStack]:
    """The stack, whose server reviews at its own cluster again afterwards."""
    yield stack
    _review_at(stack, stack.kubernetes, stack.kubernetes.service_account_token("openbao", "openbao", ttl=86400.0))


@pytest.fixture
def powerless(reviewing: DevStack) -> Iterator[DevStack]:
    """A server whose reviewer the cluster knows, and answers 403."""
    cluster = reviewing.kubernetes
    cluster.forbid("powerless", "openbao")
    _review_at(reviewing, cluster, cluster.service_account_token("powerless", "openbao", ttl=86400.0))
    yield reviewing
    cluster.permit("powerless", "openbao")
    cluster.permit("api-gateway", "lotabots")


@pytest.fixture
def private(reviewing: DevStack, tmp_path: Path) -> Iterator[Kubernetes]:
    """A cluster as real ones are: https with an authority of its own, which the server has and the pod has not."""
    with Kubernetes(authority=Authority(tmp_path)) as cluster:
        _review_at(reviewing, cluster, cluster.service_account_token("openbao", "openbao", ttl=86400.0))
        reviewing.token_path.write_text(cluster.service_account_token())
        yield cluster


def _unsettled(findings: Findings) -> str:
    """What was found: that it cannot be told, with every candidate and how each is told from the others."""
    assert causes(findings) == ["tokenreview"]
    found = finding(findings, "tokenreview").found
    assert "from here it cannot be told why" in found
    for candidate in CANDIDATES:
        assert candidate in found
    mend = finding(findings, "tokenreview").mend
    assert "kubectl auth can-i create tokenreviews" in mend
    assert "kubernetes_host" in mend
    assert "kubectl get serviceaccount" in mend
    return found


def test_a_tokenreview_that_is_down_for_the_server_and_for_the_pod_alike(stack: DevStack) -> None:
    stack.kubernetes.available = False
    found = _unsettled(examine(stack, kubernetes=stack.kubernetes.address))
    assert f"{stack.kubernetes.address} cannot be reached from here" in found
    _unsettled(examine(stack))  # outside a pod, where the cluster cannot be asked


def test_a_tokenreview_that_says_itself_that_it_fails(stack: DevStack) -> None:
    stack.kubernetes.available = False
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "ServiceUnavailable", "code": 503}
    with ScriptedServer() as server:
        server.on("*", answer(status, 503))
        assert causes(examine(stack, kubernetes=server.url)) == ["tokenreview-unreachable"]
        # The page of a balancer in between is not the API's word.
        server.on("*", page(b"<html>Service Unavailable</html>", status=503))
        _unsettled(examine(stack, kubernetes=server.url))


@pytest.mark.parametrize("refused", ["reviewer", "account", "server"])
@pytest.mark.parametrize("seen", ["unverified", "unreachable"])
def test_what_the_pod_cannot_reach_or_verify_says_nothing_of_the_server(
    reviewing: DevStack, private: Kubernetes, refused: str, seen: str
) -> None:
    assert causes(examine(reviewing, kubernetes=private.address)) == []
    if refused == "reviewer":
        private.forbid("openbao", "openbao")
    elif refused == "account":
        private.revoke(reviewing.token_path.read_text())
    else:
        private.available = False
    # A closed port, as where a network policy lets no pod to the API; a server that is down resets the connection.
    address = private.address if seen == "unverified" else f"https://127.0.0.1:{free_port()}"
    found = _unsettled(examine(reviewing, kubernetes=address))
    if seen == "unverified" and refused != "server":
        assert f"{address} shows a certificate that cannot be verified here" in found
    else:
        assert f"{address} cannot be reached from here" in found


def test_with_the_clusters_authority_its_answer_settles_it(
    reviewing: DevStack, private: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    private.forbid("openbao", "openbao")
    assert causes(examine(reviewing, kubernetes=private.address)) == ["reviewer-not-permitted"]
    private.permit("openbao", "openbao")
    private.revoke(reviewing.token_path.read_text())
    assert causes(examine(reviewing, kubernetes=private.address)) == ["token-rejected"]


@pytest.mark.parametrize("permitted", [True, False])
def test_a_reviewer_that_is_not_permitted(powerless: DevStack, permitted: bool) -> None:
    if not permitted:  # as most pods: their own review is answered 403 too, which proves the token good
        powerless.kubernetes.forbid("api-gateway", "lotabots")
    findings = examine(powerless, kubernetes=powerless.kubernetes.address)
    assert causes(findings) == ["reviewer-not-permitted"]
    assert "reviewer is not permitted" in finding(findings, "reviewer-not-permitted").found
    assert "system:auth-delegator" in finding(findings, "reviewer-not-permitted").mend
    powerless.kubernetes.permit("powerless", "openbao")
    assert causes(examine(powerless, kubernetes=powerless.kubernetes.address)) == []


def test_the_cluster_of_the_powerless_reviewer_answers_as_a_real_one(powerless: DevStack) -> None:
    cluster = powerless.kubernetes
    answered = httpx.post(
        f"{cluster.address}/apis/authentication.k8s.io/v1/tokenreviews",
        headers={"Authorization": f"Bearer {cluster.service_account_token('powerless', 'openbao')}"},
        json={"spec": {"token": powerless.token_path.read_text()}},
        trust_env=False,
    )
    status = answered.json()
    assert (answered.status_code, status["kind"], status["reason"], status["code"]) == (403, "Status", "Forbidden", 403)
    assert status["message"] == (
        'tokenreviews.authentication.k8s.io is forbidden: User "system:serviceaccount:openbao:powerless" cannot create '
        'resource "tokenreviews" in API group "authentication.k8s.io" at the cluster scope'
    )


def test_a_reviewer_whose_token_has_expired(reviewing: DevStack) -> None:
    cluster = reviewing.kubernetes
    _review_at(reviewing, cluster, cluster.service_account_token("openbao", "openbao", ttl=-600.0))
    findings = examine(reviewing, kubernetes=cluster.address)
    assert causes(findings) == ["reviewer-not-permitted"]
    assert "token_reviewer_jwt must not have expired" in finding(findings, "reviewer-not-permitted").mend


def test_a_server_that_does_not_reach_what_the_pod_reaches_is_named_beside_the_reviewer(reviewing: DevStack) -> None:
    cluster = reviewing.kubernetes
    reviewer = cluster.service_account_token("openbao", "openbao", ttl=86400.0)
    _review_at(reviewing, cluster, reviewer, kubernetes_host=f"http://127.0.0.1:{free_port()}")
    findings = examine(reviewing, kubernetes=cluster.address)
    assert "or the server does not get there" in finding(findings, "reviewer-not-permitted").found
    assert "kubernetes_host" in finding(findings, "reviewer-not-permitted").mend


def test_a_token_of_an_account_that_was_deleted(stack: DevStack) -> None:
    stack.write_service_account_token(uid="00000000-0000-0000-0000-000000000000")
    assert causes(examine(stack, kubernetes=stack.kubernetes.address)) == ["token-rejected"]


@pytest.mark.parametrize("refused", ["reviewer", "account"])
def test_a_token_that_is_not_for_the_clusters_api_is_no_caller_there(reviewing: DevStack, refused: str) -> None:
    """The pod of the example: its token is for Vault alone, so the API answers it 401 whatever is the matter."""
    cluster, path = reviewing.kubernetes, "lotabots/auth/kubernetes/role/api-gateway"
    before = reviewing.bao.request("GET", path)["data"]
    reviewing.bao.request("POST", path, {**before, "audience": "vault"})
    token = reviewing.write_service_account_token(audience="vault")
    try:
        assert causes(examine(reviewing, kubernetes=cluster.address)) == []
        if refused == "reviewer":
            cluster.forbid("openbao", "openbao")
        else:
            cluster.revoke(token)
        found = _unsettled(examine(reviewing, kubernetes=cluster.address))
    finally:
        cluster.permit("openbao", "openbao")
        reviewing.bao.request("POST", path, before)
    assert "answers, but takes no token of this pod as a caller's (401)" in found


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
