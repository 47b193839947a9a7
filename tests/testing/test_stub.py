"""StubManager: the real manager over a Vault in memory; what a test makes happen has happened when the call returns."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from vault_middleware import RequestSecrets, SecretsManager
from vault_middleware.errors import (
    AccessorClosed,
    ConfigurationError,
    InvalidSecretPath,
    SecretAccessDenied,
    SecretNotDynamic,
    SecretNotFound,
    SecretUnavailable,
)
from vault_middleware.testing import StubManager, leased

KEY, CREDS = "api-gateway/api-key", "database/creds/api-gateway"


@pytest.fixture
def stub() -> Iterator[StubManager]:
    with StubManager({KEY: {"value": "k"}, CREDS: {"username": "app", "password": "pw", "port": 5432}}) as manager:
        yield manager


def test_it_is_a_manager_with_the_given_secrets(stub: StubManager) -> None:
    assert isinstance(stub, SecretsManager)
    assert stub.get_secret(KEY)["value"] == "k"
    assert dict(stub.get_dynamic_secret(CREDS)) == {"username": "app", "password": "pw", "port": 5432}
    assert asyncio.run(stub.aget_secret(KEY)).version == 1
    assert asyncio.run(stub.aget_dynamic_secret(CREDS))["username"] == "app"


def test_it_caches_as_the_real_one(stub: StubManager) -> None:
    for _ in range(3):
        stub.get_secret(KEY)
    assert stub.vault.reads == [KEY]
    stub.get_secret(KEY, fresh=True)
    assert stub.vault.reads == [KEY, KEY]


def test_its_errors_are_the_real_ones(stub: StubManager) -> None:
    with pytest.raises(SecretNotFound, match="it has 'api-gateway/api-key'"):
        stub.get_secret("api-gateway/none")
    with pytest.raises(SecretNotFound, match="version 2"):
        stub.get_secret(KEY, version=2)
    with pytest.raises(InvalidSecretPath):
        stub.get_secret("../x")
    with pytest.raises(SecretNotDynamic):
        stub.get_dynamic_secret(KEY)
    with pytest.raises(ConfigurationError, match="VAULT_CACHE_TTL"):
        StubManager(cache_ttl="soon")


def test_a_static_secret_is_rotated_and_its_old_version_stays(stub: StubManager) -> None:
    told: list[str] = []
    stub.on_rotate(KEY, lambda new: told.append(new["value"]))
    stub.get_secret(KEY)
    stub.rotate(KEY, {"value": "l"})
    stub.rotate(KEY)
    assert told == ["l", "k-3"]
    assert stub.get_secret(KEY)["value"] == "k-3"
    assert stub.get_secret(KEY, version=2)["value"] == "l"


def test_a_secret_that_nobody_has_read_is_rotated_too(stub: StubManager) -> None:
    stub.rotate(KEY, {"value": "l"})
    stub.rotate(CREDS, {"username": "other", "password": "pw"})
    assert (stub.get_secret(KEY)["value"], stub.get_dynamic_secret(CREDS)["username"]) == ("l", "other")


def test_what_another_writes_is_seen_when_the_cache_has_aged(stub: StubManager) -> None:
    stub.get_secret(KEY)
    stub.vault.put(KEY, {"value": "l"})
    assert stub.get_secret(KEY)["value"] == "k"
    stub.advance(300)
    assert stub.get_secret(KEY)["value"] == "l"
    stub.vault.remove(KEY)
    stub.advance(300)
    with pytest.raises(SecretNotFound):
        stub.get_secret(KEY)


def test_a_request_keeps_its_pair_through_a_rotation_and_its_end_revokes_the_old_lease(stub: StubManager) -> None:
    with RequestSecrets(stub) as request:
        first = request.get_dynamic_secret(CREDS)
        stub.rotate(CREDS)
        assert request.get_dynamic_secret(CREDS) is first
        assert len(stub.leases) == 2
    assert len(stub.leases) == 1
    new = stub.get_dynamic_secret(CREDS)
    assert dict(new) == {"username": "app-2", "password": "pw-2", "port": 5432}
    with pytest.raises(AccessorClosed):
        request.get_dynamic_secret(CREDS)


def test_a_lease_is_renewed_to_its_max_ttl_and_then_replaced(stub: StubManager) -> None:
    stub.vault.put("x/y", leased({"dsn": "d"}, ttl=60, max_ttl=300))
    first = stub.get_dynamic_secret("x/y")
    stub.advance(200)
    assert stub.get_dynamic_secret("x/y")["dsn"] == "d"
    assert stub.get_dynamic_secret("x/y").lease.deadline > first.lease.deadline
    stub.advance(100)
    assert stub.get_dynamic_secret("x/y")["dsn"] == "d-2"


def test_a_lease_that_cannot_be_renewed_is_replaced_within_its_ttl(stub: StubManager) -> None:
    stub.vault.put("x/y", leased({"dsn": "d"}, ttl=60, renewable=False))
    stub.get_dynamic_secret("x/y")
    stub.advance(59)
    assert stub.get_dynamic_secret("x/y")["dsn"] == "d-2"


def test_an_outage_serves_what_is_cached_at_once_and_ends_at_once(stub: StubManager) -> None:
    stub.get_secret(KEY)
    stub.down()
    assert not stub.health()["server"]["up"]
    assert stub.get_secret(KEY)["value"] == "k"
    with pytest.raises(SecretUnavailable, match="taken Vault down"):
        stub.get_dynamic_secret(CREDS)
    stub.up()
    assert stub.health()["server"]["up"]
    assert stub.get_dynamic_secret(CREDS)["username"] == "app"
    stub.down()
    assert not stub.health()["server"]["up"]


def test_a_rotation_in_an_outage_shows_when_it_is_over(stub: StubManager) -> None:
    stub.get_secret(KEY)
    stub.down()
    stub.rotate(KEY, {"value": "l"})
    assert stub.get_secret(KEY)["value"] == "k"
    stub.up()
    stub.advance(300)
    assert stub.get_secret(KEY)["value"] == "l"


def test_a_policy_refuses_and_permits_again(stub: StubManager) -> None:
    stub.deny(KEY)
    with pytest.raises(SecretAccessDenied, match="allow"):
        stub.get_secret(KEY)
    stub.allow(KEY)
    stub.advance(5)
    assert stub.get_secret(KEY)["value"] == "k"


def test_what_did_not_work_is_replaced(stub: StubManager) -> None:
    stub.reject(stub.get_dynamic_secret(CREDS))
    assert stub.get_dynamic_secret(CREDS)["username"] == "app-2"


def test_it_is_audited_and_no_value_is_in_a_line(stub: StubManager) -> None:
    stub.get_secret(KEY)
    lines = [line for line in stub.audit_lines if line["event"] == "secret_access"]
    assert [line["secret_path"] for line in lines] == [KEY]
    assert "pw" not in str(stub.audit_lines)


def test_a_day_is_short(stub: StubManager) -> None:
    with RequestSecrets(stub) as request:
        request.get_dynamic_secret(CREDS)
        stub.advance(86400)
        assert len(stub.leases) == 1
        assert request.get_dynamic_secret(CREDS)["username"] == "app"


def test_its_end_leaves_no_lease_no_thread_no_file_and_no_handler() -> None:
    threads, handler = threading.active_count(), signal.getsignal(signal.SIGTERM)
    stub = StubManager({CREDS: {"username": "app"}})
    stub.get_dynamic_secret(CREDS)
    lines = stub.config.audit_log
    assert threading.active_count() == threads
    assert signal.getsignal(signal.SIGTERM) is handler
    stub.close()
    assert stub.vault.leases == []
    with pytest.raises(SecretUnavailable, match="closed"):
        stub.get_secret(CREDS)
    stub.start()
    assert stub.get_secret(CREDS)["username"] == "app-2"
    stub.close()
    del stub
    gc.collect()
    assert not os.path.exists(lines)


def test_threads_share_one_fetch_and_see_one_value(stub: StubManager) -> None:
    values: list[str] = []
    threads = [threading.Thread(target=lambda: values.append(stub.get_secret(KEY)["value"])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert values == ["k"] * 16
    assert stub.vault.reads.count(KEY) == 1


def test_it_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_CACHE_TTL", "nonsense")
    with StubManager({KEY: {"value": "k"}}) as stub:
        assert stub.get_secret(KEY)["value"] == "k"


def test_it_prints_no_value(stub: StubManager) -> None:
    assert "pw" not in repr(stub) + repr(stub.vault) + repr(leased({"password": "pw"}))
