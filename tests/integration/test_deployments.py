"""The service's defaults, in each of the three deployments, with nothing set but the address and the token's path."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry

from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.errors import SecretAccessDenied

from .support import DYNAMIC, JWT, STATIC, asked, eventually, running, settings

DEPLOYMENTS = ["namespace", "community", "root-auth"]


@pytest.fixture(params=DEPLOYMENTS, scope="module")
def deployed(request: pytest.FixtureRequest) -> Iterator[DevStack]:
    with DevStack(deployment=request.param, lease_ttl=4, lease_max_ttl=60) as stack:
        yield stack


def test_the_defaults_read_static_and_dynamic_secrets_renew_and_leave_nothing(deployed: DevStack) -> None:
    config = settings(deployed)
    assert (config.vault_role, config.namespace) == ("api-gateway", "lotabots")
    with running(deployed) as manager:
        assert manager.get_secret(STATIC).version == 1
        assert set(manager.get_secret(JWT)) == {"key", "keys"}
        credential = manager.get_dynamic_secret(DYNAMIC)
        assert deployed.postgres.can_log_in(credential["username"], credential["password"])
        renewed = eventually(lambda: _renewed(manager, credential.lease.deadline), "a renewal")
        assert renewed["username"] == credential["username"]
    eventually(lambda: not deployed.leases(), "the leases to end", 5)
    eventually(lambda: not deployed.postgres.users(), "the database users to go", 5)  # revoked in the background


def _renewed(manager: SecretsManager, deadline: float):  # type: ignore[no-untyped-def]
    now = manager.get_dynamic_secret(DYNAMIC)
    return now if now.lease.deadline > deadline + 1 else None


def test_the_log_in_goes_where_the_design_says(deployed: DevStack) -> None:
    own, root = "lotabots/auth/kubernetes/login", "auth/kubernetes/login"
    before = {path: len(asked(deployed, path)) for path in (own, root)}
    with running(deployed):
        pass
    expected = {"namespace": {own: 1, root: 0}, "community": {own: 0, root: 1}, "root-auth": {own: 1, root: 1}}
    for path, times in expected[deployed.layout.deployment].items():
        assert len(asked(deployed, path)) - before[path] == times, path


def test_where_the_log_in_worked_is_kept(deployed: DevStack) -> None:
    with running(deployed) as manager:
        before = len(asked(deployed, "lotabots/auth/kubernetes/login"))
        manager._engine.session._bury(manager._engine.session.get(5))  # the token is gone
        manager.get_secret(STATIC, fresh=True)
        again = 1 if deployed.layout.deployment == "namespace" else 0
        assert len(asked(deployed, "lotabots/auth/kubernetes/login")) - before == again


def test_keywords_work_as_well_as_the_environment(deployed: DevStack) -> None:
    config = SecretConfig(
        vault_addr=deployed.bao.address,
        vault_role="api-gateway",
        namespace="lotabots",
        kubernetes_token_path=str(deployed.token_path),
        audit_log="off",
    )
    with SecretsManager(config, registry=CollectorRegistry()) as manager:
        assert manager.get_secret(STATIC)["value"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_the_policy_as_written_permits_the_static_reads_and_the_error_names_the_line_for_the_rest(
    deployment: str, make_stack: Callable[..., DevStack]
) -> None:
    stack = make_stack(deployment=deployment, policy="original")
    with running(stack) as manager:
        if deployment == "namespace":
            # Policies of a namespace are relative to it: as written, they permit nothing there.
            with pytest.raises(SecretAccessDenied, match='path "api-gateway/'):
                manager.get_secret(STATIC)
        else:
            assert manager.get_secret(STATIC)["value"]
            assert manager.get_secret(JWT)["key"]
        prefix = "" if deployment == "namespace" else "lotabots/"
        line = f'path "{prefix}{DYNAMIC}" {{ capabilities = ["read"] }}'
        with pytest.raises(SecretAccessDenied) as denied:
            manager.get_dynamic_secret(DYNAMIC)
        assert line in str(denied.value)
        stack.write_policy(stack.policy_text("original") + line)
        eventually(lambda: _permitted(manager), "the denial to be forgotten", 10)


def _permitted(manager: SecretsManager) -> bool:
    try:
        return bool(manager.get_dynamic_secret(DYNAMIC))
    except SecretAccessDenied:
        return False
