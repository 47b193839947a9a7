"""What bad environments and bad servers get: the named error, with what to check, within the time budget."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.errors import (
    AuthenticationError,
    SecretUnavailable,
    VaultMiddlewareError,
    VaultSealed,
    VaultUnavailable,
)

from ..scripted import Reply, ScriptedServer, answer, cut, drip, page, silence
from .support import STATIC, running, settings


def start(config: SecretConfig) -> None:
    """An eager start, closed again if it succeeds."""
    with SecretsManager(config, registry=CollectorRegistry()):
        return


def lazy(stack: DevStack, **more: str) -> SecretsManager:
    return SecretsManager(settings(stack, VAULT_STARTUP="lazy", **more), registry=CollectorRegistry())


def test_no_server_is_named_at_an_eager_start(stack: DevStack) -> None:
    with pytest.raises(VaultUnavailable, match="check VAULT_ADDR"):
        start(settings(stack, VAULT_ADDR="http://127.0.0.1:1", VAULT_STARTUP_TIMEOUT="300ms"))


def test_no_server_is_named_by_a_getter_after_a_lazy_start(stack: DevStack) -> None:
    with lazy(stack, VAULT_ADDR="http://127.0.0.1:1") as manager, pytest.raises(SecretUnavailable, match="VAULT_ADDR"):
        manager.get_secret(STATIC)


def test_a_sealed_server_is_named(stack: DevStack) -> None:
    stack.bao.seal()
    with pytest.raises(VaultSealed, match="unseal"):
        start(settings(stack, VAULT_STARTUP_TIMEOUT="300ms"))
    with lazy(stack) as manager, pytest.raises(SecretUnavailable, match="sealed"):
        manager.get_secret(STATIC)


def test_a_wrong_role_is_named(stack: DevStack) -> None:
    with pytest.raises(AuthenticationError, match=r"'nobody'.*check VAULT_ROLE"):
        start(settings(stack, VAULT_ROLE="nobody"))


def test_a_missing_service_account_token_is_named(stack: DevStack, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="is not there; check VAULT_KUBERNETES_TOKEN_PATH"):
        start(settings(stack, VAULT_KUBERNETES_TOKEN_PATH=str(tmp_path / "none")))


def test_an_expired_service_account_token_is_named(stack: DevStack) -> None:
    token = stack.write_service_account_token(ttl=-120)
    with pytest.raises(AuthenticationError, match="has expired") as refused:
        start(settings(stack))
    assert token not in str(refused.value)


def test_a_service_account_that_is_not_bound_is_named(stack: DevStack) -> None:
    stack.write_service_account_token("somebody-else")
    with pytest.raises(AuthenticationError, match="bound to"):
        start(settings(stack))


def test_a_wrong_audience_is_named(stack: DevStack) -> None:
    stack.write_service_account_token(audience="another")
    with pytest.raises(AuthenticationError, match="audience"):
        start(settings(stack))


def test_a_wrong_mount_of_the_auth_method_is_named_with_every_answer(stack: DevStack) -> None:
    with pytest.raises(AuthenticationError, match=r"lotabots/auth/k8s/login.*; auth/k8s/login.*VAULT_AUTH_MOUNT"):
        start(settings(stack, VAULT_AUTH_MOUNT="k8s", VAULT_STARTUP_TIMEOUT="300ms"))


BUDGET = 0.6

TOKEN = {"data": {"ttl": 3600, "renewable": False, "creation_ttl": 3600}}
MOUNT = {"data": {"path": "lotabots/shared/", "type": "kv", "options": {"version": "1"}}}


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n"


@pytest.mark.parametrize(
    "misbehaviour",
    [
        silence,
        drip(HEAD + b"\r\n", b" "),
        drip(HEAD, b"X-More: and more\r\n"),
        cut({"data": {"key": "x"}}, after=9),
        page(b"<html><body>502 Bad Gateway</body></html>", 502),
        page(b'{"data": '),
        page(b"[]"),
    ],
    ids=[
        "never",
        "drips its body",
        "drips its headers",
        "cuts",
        "sends a page",
        "sends half an object",
        "sends a list",
    ],
)
def test_a_getter_ends_within_its_budget_whatever_the_server_does(misbehaviour: Reply) -> None:
    with ScriptedServer() as server:
        server.on("/v1/auth/token/lookup-self", answer(TOKEN))
        server.on("/v1/sys/internal/ui/mounts/lotabots/shared/jwt", answer(MOUNT))
        server.on("/v1/sys/health", answer({"sealed": False}))
        server.on("/v1/lotabots/shared/jwt", misbehaviour)
        config = SecretConfig(
            vault_addr=server.url,
            auth_method="token",
            auth_namespace="",
            token="a-token",
            startup="lazy",
            audit_log="off",
            request_timeout=BUDGET,
        )
        with SecretsManager(config, registry=CollectorRegistry()) as manager:
            before = time.monotonic()
            with pytest.raises(SecretUnavailable):
                manager.get_secret("shared/jwt")
            # Generous, as machines are noisy; without the budget it would be the client's time-out, or for ever.
            assert time.monotonic() - before < BUDGET + 2.0


def test_what_a_getter_raises_is_ours_and_carries_no_cause(stack: DevStack) -> None:
    with running(stack) as manager:
        stack.bao.kill()
        with pytest.raises(VaultMiddlewareError) as failed:
            manager.get_secret("api-gateway/other")
        assert failed.value.__cause__ is None
        assert failed.value.__context__ is None
