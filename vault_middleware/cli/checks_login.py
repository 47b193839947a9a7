"""The log-in: where, as what, and if it is refused, which of the many reasons it is; then what the token is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from ..config import SecretConfig
from ..errors import AuthenticationError, VaultMiddlewareError, VaultUnavailable
from ..vault.client import Token, VaultClient
from ..vault.inspection import Inspector
from . import checks_kubernetes
from .checks_kubernetes import Review
from .checks_pod import Claims
from .findings import Findings

__all__ = ["check_login", "check_token"]

_STEP: Final = "log-in"
_WHY: Final = "without a log-in there is no token, and so no secret"

#: A token that lives shorter is replaced more than once a minute by every process, in seconds.
_SHORT_TOKEN: Final = 60.0


def check_login(
    client: VaultClient,
    inspector: Inspector,
    config: SecretConfig,
    claims: Claims | None,
    credential: str,
    findings: Findings,
    *,
    kubernetes: str | None,
) -> Token | None:
    """The token of a log-in as the app does it."""
    failure: VaultMiddlewareError
    try:
        token = client.log_in(config.client_timeout)
    except (AuthenticationError, VaultUnavailable) as error:
        failure = error
    else:
        left = "never ends" if math.isinf(token.deadline) else f"is good for {token.lease_duration:.0f} s"
        if config.auth_method == "proxy":
            findings.ok(_STEP, "none: the proxy adds its own token")
        elif config.auth_method == "token":
            findings.ok(_STEP, f"{token.auth_path} knows the token, which {left}")
        else:
            findings.ok(_STEP, f"{token.auth_path} gave a token to the role {config.vault_role!r}, which {left}")
        return token
    if isinstance(failure, VaultUnavailable):
        found, _, mend = str(failure).partition("; ")
        findings.fail(_STEP, "login-unavailable", found, why=_WHY, mend=mend)
        return None
    try:
        _explain(inspector, config, claims, credential, findings, kubernetes)
    except VaultMiddlewareError as error:
        findings.fail(_STEP, "login-refused", str(error), why=_WHY, mend="try again; the server failed meanwhile")
    return None


def _explain(
    inspector: Inspector,
    config: SecretConfig,
    claims: Claims | None,
    credential: str,
    findings: Findings,
    kubernetes: str | None,
) -> None:
    refusals = inspector.login_refusals()
    if not refusals:
        findings.fail(
            _STEP, "login-refused", "it was refused, and then worked", why=_WHY, mend="watch the server's log"
        )
        return
    namespace, status, kind = refusals[-1]
    at = [_joined(where, f"auth/{config.auth_mount}/login") for where, _, _ in refusals]
    role = f"{_joined_command(namespace)}auth/{config.auth_mount}/role/{config.vault_role}"
    shown = "" if claims is None else f" The token is that of {claims}."

    def fail(code: str, found: str, mend: str) -> None:
        findings.fail(_STEP, code, f"{', '.join(at)}: {found}", why=_WHY, mend=mend)

    if config.auth_method == "token":
        fail(
            "vault-token-invalid",
            "the server does not know the token (any more)",
            "set VAULT_TOKEN or VAULT_TOKEN_FILE to a valid one: vault token lookup",
        )
    elif config.auth_method == "approle" and status == 400:
        fail(
            "approle-invalid",
            "the role id or the secret id is not valid",
            f"vault read {_joined_command(namespace)}auth/{config.auth_mount}/role/NAME/role-id, and a new secret id",
        )
    elif kind == "role":
        fail(
            "role-unknown",
            f"the role {config.vault_role!r} is not known there",
            f"check VAULT_ROLE: vault list {_joined_command(namespace)}auth/{config.auth_mount}/role; or write it: "
            f"vault write {role} …",
        )
    elif kind == "expired":
        fail(
            "token-expired",
            "the service-account token has expired." + shown,
            "check that the token's file is no copy and no subPath mount, and the clocks",
        )
    elif kind == "account":
        fail(
            "wrong-service-account",
            f"the role {config.vault_role!r} is bound to another service account or namespace.{shown}",
            f"set serviceAccountName in the pod's spec, or bind the role to this account: vault read {role}; vault write "
            f"{role} bound_service_account_names=… bound_service_account_namespaces=…",
        )
    elif kind == "audience":
        fail(
            "wrong-audience",
            f"the role {config.vault_role!r} wants another audience.{shown}",
            f"set audience: in the pod's projected volume to what the role wants: vault read -field=audience {role}",
        )
    elif kind == "as if missing":
        there = [where for where, _, each in refusals if each == "as if missing" and inspector.auth_mount_exists(where)]
        if there:
            _not_reviewed(config, claims, credential, there[-1], findings, kubernetes)
        else:
            empty = "" if config.namespace else "; VAULT_NAMESPACE is empty, so only the root was asked"
            fail(
                "auth-mount-missing",
                f"no auth method is mounted at {config.auth_mount!r} there{empty}",
                "check VAULT_AUTH_MOUNT and VAULT_AUTH_NAMESPACE: vault auth list (with -namespace=… where it has one)",
            )
    else:
        fail("login-refused", f"it answered {status}", "look into the server's log, which says why")


def _not_reviewed(
    config: SecretConfig,
    claims: Claims | None,
    credential: str,
    namespace: str,
    findings: Findings,
    kubernetes: str | None,
) -> None:
    """The auth method is there and refuses without a word: the token's review has failed."""
    place = f"{_joined_command(namespace)}auth/{config.auth_mount}/config"
    if config.auth_method == "jwt":
        findings.fail(
            _STEP,
            "token-rejected",
            "the auth method does not accept the token's signature or claims",
            why=_WHY,
            mend=f"vault read {place}: the issuer's keys, and bound_issuer",
        )
        return
    audiences, issuer = ((), "") if claims is None else (claims.audiences, claims.issuer)
    review = (
        Review("unclear", "")
        if kubernetes is None
        else checks_kubernetes.review(kubernetes, credential, audiences, issuer, timeout=config.client_timeout)
    )
    found = "the auth method is there, but its review of the token failed"
    api = f"the cluster's API at {kubernetes} {review.said}"
    asks = f"vault read {place}"
    server = f"{asks}: kubernetes_host and kubernetes_ca_cert, and whether the server's own host gets an answer there"
    reviewer = (
        "token_reviewer_jwt must not have expired, and its account (without one: the server's own in a pod, else this "
        "pod's) needs system:auth-delegator: kubectl auth can-i create tokenreviews.authentication.k8s.io "
        "--as=system:serviceaccount:NAMESPACE:NAME; kubectl create clusterrolebinding vault-reviewer "
        "--clusterrole=system:auth-delegator --serviceaccount=NAMESPACE:NAME"
    )
    if review.verdict == "failing":
        findings.fail(
            _STEP,
            "tokenreview-unreachable",
            f"{found}: {api}",
            why=_WHY,
            mend=f"mend the API server; log-ins are tried again meanwhile; then {server}",
        )
    elif review.verdict == "rejected":
        findings.fail(
            _STEP,
            "token-rejected",
            f"{found}: {api} (its account or pod was deleted, or it is another cluster's)",
            why=_WHY,
            mend="kubectl get serviceaccount; kubectl delete pod, so that it gets a new token",
        )
    elif review.verdict == "accepted":
        findings.fail(
            _STEP,
            "reviewer-not-permitted",
            f"{found}, though {api}: the server's reviewer is not permitted to, or the server does not get there",
            why=_WHY,
            mend=f"{reviewer}; if it may: {server}; the server's log at level debug has which (login unauthorized)",
        )
    else:
        findings.fail(
            _STEP,
            "tokenreview",
            f"{found}, and from here it cannot be told why{f': {api}' if kubernetes else ''}. Either the server does not "
            "reach the cluster's TokenReview, or its reviewer is not permitted to, or the cluster does not accept the "
            "token (any more)",
            why=_WHY,
            mend="the server's log at level debug has the reason (login unauthorized); or go through them: not reached: "
            f"{server}; not permitted: {reviewer}; not accepted: kubectl get serviceaccount, kubectl delete pod",
        )


def check_token(inspector: Inspector, token: Token, findings: Findings) -> Mapping[str, Any]:
    """What the token is: its policies and how it can be kept; empty where it may not look at itself."""
    step = "token"
    data = inspector.lookup(token)
    if data is None:
        findings.warn(
            step,
            "no-default-policy",
            "it may not look itself up",
            why="the app tells a dead token from a refusal by looking it up, and renews and revokes it by itself",
            mend='leave token_no_default_policy off, or permit it: path "auth/token/lookup-self" { capabilities = '
            '["read"] }; vault-middleware policy --without-default writes all of that',
        )
        return {}
    policies = _policies(data)
    if "root" in policies:
        findings.warn(
            step,
            "token-root",
            "it is a root token",
            why="it may do everything, so whoever takes over the app may too",
            mend="log in by a role with the policy that vault-middleware policy writes",
        )
    elif token.owned and 0 < token.lease_duration < _SHORT_TOKEN:
        findings.warn(
            step,
            "token-ttl-short",
            f"it lives {token.lease_duration:.0f} s",
            why="every process renews or replaces it more than once a minute, and its leases end with it",
            mend="set token_ttl of the role to some minutes or more",
        )
    elif token.owned and data.get("type") == "batch":
        findings.warn(
            step,
            "token-batch",
            "it is a batch token, which cannot be renewed or revoked",
            why="leases end with it, so they are all replaced with it, and a stop cannot revoke it",
            mend="set token_type=service on the role",
        )
    else:
        findings.ok(step, f"its policies are {', '.join(policies) or 'none'}")
    return data


def _policies(data: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for key in ("policies", "identity_policies"):
        value = data.get(key)
        found += [str(each)[:100] for each in value] if isinstance(value, list) else []
    return sorted(set(found))


def _joined(namespace: str, path: str) -> str:
    return f"{namespace}/{path}" if namespace else path


def _joined_command(namespace: str) -> str:
    return f"-namespace={namespace} " if namespace else ""
