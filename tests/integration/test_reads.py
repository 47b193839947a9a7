"""Reads on real servers: one fetch a key, pairs that are never torn, hostile paths, and what the metrics count."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from vault_middleware import DynamicSecret, RequestSecrets, SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.errors import (
    InvalidSecretPath,
    SecretAccessDenied,
    SecretNotDynamic,
    SecretNotFound,
    SecretUnavailable,
)

from .support import DYNAMIC, JWT, STATIC, asked, eventually, in_threads, running, settings

HOSTILE = [
    "",
    "/",
    "/shared/jwt",
    "shared/",
    "shared//jwt",
    "shared/.",
    "shared/./jwt",
    "shared/../api-gateway/api-key",
    "..",
    "shared/..",
    "shared/%2e%2e/api-gateway/api-key",
    "shared/%2E%2E%2Fapi-gateway",
    "shared/%252e%252e/api-gateway/api-key",
    "shared/jwt?list=true",
    "shared/jwt#x",
    "shared\\..\\api-gateway",
    "shared/jwt\x00",
    "shared/jwt\r\nX-Vault-Token: x",
    "shared/\x7f",
    "shared/\udcff",
    "shared/\u202e",
    "shared/．．/api-gateway/api-key",
    "shared／..／api-gateway",
    "shared/ jwt",
    "sys/health",
    "auth/token/lookup-self",
    "x" * 5000,
]


def test_64_threads_that_ask_for_one_cold_key_make_one_request_and_all_get_the_value(stack: DevStack) -> None:
    stack.put_secret("api-gateway/cold", {"value": "canary-cold"})
    with running(stack) as manager:
        values = in_threads(64, lambda _: manager.get_secret("api-gateway/cold")["value"])
    assert values == ["canary-cold"] * 64
    assert len(asked(stack, "lotabots/api-gateway/data/cold")) == 1


def test_64_threads_that_ask_for_eight_cold_keys_make_eight_requests_and_one_for_their_mount(stack: DevStack) -> None:
    for number in range(8):
        stack.put_secret(f"api-gateway/cold-{number}", {"value": str(number)})
    with running(stack) as manager:
        values = in_threads(64, lambda index: manager.get_secret(f"api-gateway/cold-{index % 8}")["value"])
    assert values == [str(index % 8) for index in range(64)]
    assert [len(asked(stack, f"lotabots/api-gateway/data/cold-{number}")) for number in range(8)] == [1] * 8
    questions = [asked(stack, f"sys/internal/ui/mounts/lotabots/api-gateway/cold-{number}") for number in range(8)]
    assert sum(map(len, questions)) == 1


def test_a_pair_is_never_torn_by_a_rotation_and_each_logs_in(make_stack: Callable[..., DevStack]) -> None:
    """32 threads read user and password through rotations; each pair they see logs in to PostgreSQL."""
    stack = make_stack(lease_ttl=2, lease_max_ttl=4)
    seen: set[str] = set()
    enough = threading.Event()
    with running(stack) as manager:

        def read(_index: int) -> int:
            logins = 0
            while not enough.is_set():
                with RequestSecrets(manager) as request:
                    user = request.get_dynamic_secret(DYNAMIC)["username"]
                    password = request.get_dynamic_secret(DYNAMIC)["password"]
                    assert stack.postgres.can_log_in(user, password), f"{user} could not log in"
                logins += 1
                seen.add(user)
                if len(seen) >= 4:
                    enough.set()
            return logins

        assert sum(in_threads(32, read)) >= 32
    assert len(seen) >= 4


def test_a_database_user_whose_probe_fails_is_given_back_while_the_one_before_serves(
    make_stack: Callable[..., DevStack],
) -> None:
    stack = make_stack(lease_ttl=20, lease_max_ttl=20)  # it is replaced with 4 s or more to go
    shown: list[str] = []

    def probe(new: DynamicSecret) -> bool:
        user = new["username"]
        if user not in shown:
            shown.append(user)
        return stack.postgres.can_log_in(user, new["password"]) and shown.index(user) != 1

    with running(stack) as manager:
        manager.verify(DYNAMIC, probe)
        handed: list[str] = []
        while len(set(handed)) < 2:
            with RequestSecrets(manager) as request:
                secret = request.get_dynamic_secret(DYNAMIC)
                assert stack.postgres.can_log_in(secret["username"], secret["password"])
                handed.append(secret["username"])
        first, _refused, third = shown
        assert set(handed) == {first, third}
        eventually(lambda: stack.postgres.users() == [third], "only the last user to be there")


@pytest.mark.parametrize("path", HOSTILE, ids=ascii)
def test_a_hostile_path_is_refused_before_a_request_is_sent_by_both_getters(path: str, stack: DevStack) -> None:
    with running(stack) as manager:
        before = len(stack.bao.audit_log())
        with RequestSecrets(manager) as request:
            for getter in (
                manager.get_secret,
                manager.get_dynamic_secret,
                request.get_secret,
                request.get_dynamic_secret,
            ):
                with pytest.raises(InvalidSecretPath):
                    getter(path)
        assert len(stack.bao.audit_log()) == before


@pytest.mark.parametrize(
    "tenant", ["../api-gateway/api-key", "%2e%2e/api-gateway/api-key", "..\\x", "a/../../x", "?a", "#"]
)
def test_a_hostile_tenant_reaches_nothing_outside_its_prefix(tenant: str, stack: DevStack) -> None:
    with running(stack) as manager:
        before = len(stack.bao.audit_log())
        with pytest.raises(InvalidSecretPath):
            manager.get_secret(f"shared/{tenant}")
        assert len(stack.bao.audit_log()) == before


@pytest.mark.parametrize(
    "tenant", ["blue", "with space", "ünïcode", "a+b", "a;b", "a:b@c", "a&b=c", "%".replace("%", "$")]
)
def test_an_unusual_but_harmless_tenant_is_read_below_the_prefix(tenant: str, stack: DevStack) -> None:
    with running(stack) as manager:
        with pytest.raises(SecretNotFound):
            manager.get_secret(f"shared/{tenant}")
        assert len(asked(stack, f"lotabots/shared/{tenant}")) == 1


def test_the_metrics_have_their_names_and_match_a_script_of_reads(stack: DevStack) -> None:
    registry = CollectorRegistry()

    def count(name: str) -> float:
        lines = generate_latest(registry).decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    with SecretsManager(settings(stack), registry=registry) as manager:
        manager.get_secret(STATIC)  # a miss
        manager.get_secret(STATIC)  # a hit
        with RequestSecrets(manager) as request:
            for _ in range(5):
                request.get_secret(STATIC)  # a hit, and four from the request's own memo
            request.get_dynamic_secret(DYNAMIC)  # a miss
            request.get_dynamic_secret(DYNAMIC)  # a hit
        with pytest.raises(SecretNotFound):
            manager.get_secret("shared/none")  # a miss
        with pytest.raises(SecretNotFound):
            manager.get_secret("shared/none")  # a remembered refusal: a hit
        assert count("vault_secret_requests_total") == 11
        assert count("vault_secret_cache_hits_total") == 8
        assert count("vault_lease_renewal_errors_total") == 0
        stack.revoke_lease(stack.leases()[0])
        _renew_now(manager)
        eventually(lambda: count("vault_lease_renewal_errors_total") == 1, "the failed renewal to be counted")


def _renew_now(manager: SecretsManager) -> None:
    """Let the renewer look after the lease at once."""
    engine = manager._engine
    for leased in engine.leases.live():
        engine.renewer.schedule(leased.task, 0.0)


def test_each_refusal_of_a_real_server_is_the_error_that_says_what_to_do(stack: DevStack) -> None:
    with running(stack) as manager:
        with pytest.raises(SecretNotFound, match="check the path"):
            manager.get_secret("api-gateway/none")
        with pytest.raises(SecretNotFound, match="version 99"):
            manager.get_secret(STATIC, version=99)
        with pytest.raises(SecretNotDynamic, match="use get_secret"):
            manager.get_dynamic_secret(STATIC)
        with pytest.raises(SecretAccessDenied, match='path "nothing/here"'):
            manager.get_secret("nothing/here")
        with pytest.raises(SecretAccessDenied, match="write 'shared/jwt'"):
            manager.get_secret("lotabots/shared/jwt")
        stack.permit("database/creds/*", "read")
        with pytest.raises(SecretNotFound, match="check the path"):
            manager.get_dynamic_secret("database/creds/none")


def test_a_deleted_version_and_an_old_one_are_told_apart(stack: DevStack) -> None:
    stack.put_secret("api-gateway/versions", {"value": "canary-1"})
    stack.put_secret("api-gateway/versions", {"value": "canary-2"})
    with running(stack) as manager:
        assert manager.get_secret("api-gateway/versions", version=1)["value"] == "canary-1"
        assert manager.get_secret("api-gateway/versions")["value"] == "canary-2"
        stack.request("DELETE", "api-gateway/data/versions")
        with pytest.raises(SecretNotFound, match="deleted"):
            manager.get_secret("api-gateway/versions", fresh=True)
        assert manager.get_secret("api-gateway/versions", version=1)["value"] == "canary-1"


def test_a_silent_database_delays_no_other_lease_no_other_read_and_no_stop(make_stack: Callable[..., DevStack]) -> None:
    stack = make_stack(lease_ttl=30, lease_max_ttl=60)
    stack.mount_kv("leased", version=1, leased=True)
    stack.put_secret("leased/one", {"value": "canary-leased", "ttl": "3s"})
    stack.permit("leased/*", "read")
    hang, shutdown = 20, 4
    patient = {"VAULT_CLIENT_TIMEOUT": f"{hang}s", "VAULT_REQUEST_TIMEOUT": f"{hang}s"}
    with running(stack, VAULT_SHUTDOWN_TIMEOUT=f"{shutdown}s", **patient) as manager:
        manager.get_secret(STATIC)
        first = manager.get_dynamic_secret("leased/one")
        manager.get_dynamic_secret(DYNAMIC)
        stack.postgres.pause()
        hanging = threading.Thread(target=_quietly, args=(manager, "database/creds/api-gateway"), daemon=True)
        hanging.start()
        _renew_now(manager)  # the database's renewal hangs at the server from here on
        assert manager.get_secret(JWT)["key"]
        eventually(
            lambda: _deadline(manager, "leased/one") > first.lease.deadline + 1,
            "the renewer's work on the other lease",
            10,
        )
        assert hanging.is_alive()  # nothing of that has waited for the database
        before = time.monotonic()
        manager.close()
        took = time.monotonic() - before
    # The stop keeps to its own time, although the database is silent still.
    assert took < shutdown + 2 < hang
    stack.postgres.resume()
    hanging.join(30)


def _deadline(manager: SecretsManager, path: str) -> float:
    """When the lease of *path* ends; it is not read, so that the renewer alone can have put that off."""
    return max((leased.deadline for leased in manager._engine.leases.live() if leased.path == path), default=0.0)


def _quietly(manager: SecretsManager, path: str) -> None:
    try:
        manager._engine.reader.get(path, fresh=True, timeout=None, correlation_id=None)
    except (SecretUnavailable, SecretNotFound):
        return
