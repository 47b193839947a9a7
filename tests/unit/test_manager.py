"""SecretsManager: started, used, closed, and started again; what it tells of itself."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.fakes import DYNAMIC, LEASE, STATIC, Clock, FakeVault, audit_lines, manager_over
from tests.waiting import eventually, in_threads
from vault_middleware import DynamicSecret, RequestSecrets, Secret, SecretConfig, SecretsManager
from vault_middleware.errors import (
    AuditError,
    ConfigurationError,
    InvalidSecretPath,
    SecretNotDynamic,
    SecretUnavailable,
    VaultMiddlewareError,
    VaultUnavailable,
)
from vault_middleware.vault.client import VaultClient


@pytest.fixture
def vault() -> FakeVault:
    return FakeVault()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(vault: FakeVault, clock: Clock) -> Iterator[SecretsManager]:
    with manager_over(vault, clock=clock) as manager:
        yield manager


# -- start and close


def test_it_is_a_context_manager(manager: SecretsManager, vault: FakeVault) -> None:
    with manager as entered:
        assert entered is manager
        assert manager.started
        manager.get_secret(STATIC)
    assert not manager.started
    assert vault.tokens_revoked == 1


def test_it_is_closed_when_its_block_raises(manager: SecretsManager) -> None:
    with pytest.raises(LookupError), manager:
        raise LookupError
    assert not manager.started


def test_a_start_twice_is_one_start(manager: SecretsManager) -> None:
    engine = manager.start()._engine
    assert manager.start()._engine is engine


def test_a_close_twice_is_one_close(vault: FakeVault, tmp_path: Path) -> None:
    with manager_over(vault, audit=tmp_path / "audit") as manager:
        manager.start()
        manager.close()
        manager.close()
        assert vault.tokens_revoked == 1
        assert len(audit_lines(tmp_path / "audit", "stop")) == 1


def test_many_threads_start_it_once_and_close_it_once(vault: FakeVault, tmp_path: Path) -> None:
    with manager_over(vault, audit=tmp_path / "audit") as manager:
        in_threads(16, lambda _: manager.start(wait=False))
        manager.get_secret(STATIC)
        in_threads(16, lambda _: manager.close())
        assert len(audit_lines(tmp_path / "audit", "start")) == 1
        assert len(audit_lines(tmp_path / "audit", "stop")) == 1
        assert vault.tokens_revoked == 1


def test_a_close_revokes_every_lease_and_the_token(manager: SecretsManager, vault: FakeVault) -> None:
    manager.start()
    leases = [manager.get_dynamic_secret(f"db/creds/{name}").lease.lease_id for name in "abc"]
    manager.close()
    assert sorted(vault.revoked) == sorted(leases)
    assert vault.tokens_revoked == 1


def test_the_close_is_told_with_the_hook_that_closed_it(vault: FakeVault, tmp_path: Path) -> None:
    with manager_over(vault, audit=tmp_path / "audit") as manager:
        manager.start()
        manager.close("sigterm")
        (line,) = audit_lines(tmp_path / "audit", "stop")
        assert (line["hook"], line["pid"]) == ("sigterm", os.getpid())


def test_the_right_spelling_of_a_path_with_slash_and_namespace_is_shown() -> None:
    with manager_over(FakeVault(), namespace="lotabots") as manager:
        with pytest.raises(InvalidSecretPath, match="write it as 'api-gateway/api-key'"):
            manager.get_secret("/lotabots/api-gateway/api-key")


def test_a_closed_manager_gives_nothing_and_says_what_to_do(manager: SecretsManager) -> None:
    manager.start()
    manager.get_secret(STATIC)
    manager.close()
    with pytest.raises(SecretUnavailable, match=r"start\(\) it again"):
        manager.get_secret(STATIC)
    with pytest.raises(SecretUnavailable):
        manager.get_dynamic_secret(DYNAMIC)
    with pytest.raises(SecretUnavailable):
        asyncio.run(manager.aget_secret(STATIC))


@pytest.mark.parametrize("mode", ["strict", "buffered"])
@pytest.mark.parametrize("was_started", [True, False])
def test_a_read_of_a_closed_manager_names_its_path_and_is_counted_and_audited(
    vault: FakeVault, tmp_path: Path, mode: str, was_started: bool
) -> None:
    audit = tmp_path / "audit"
    with manager_over(vault, audit=audit, audit_mode=mode) as manager:
        if was_started:
            manager.start()
        manager.close()
        request = RequestSecrets(manager)
        refused: list[tuple[str, Callable[[], object]]] = [
            (STATIC, lambda: manager.get_secret(STATIC)),
            (DYNAMIC, lambda: manager.get_dynamic_secret(DYNAMIC)),
            (STATIC, lambda: asyncio.run(manager.aget_secret(STATIC, version=3))),
            (DYNAMIC, lambda: asyncio.run(manager.aget_dynamic_secret(DYNAMIC))),
            (STATIC, lambda: request.get_secret(STATIC, fresh=True)),
            (DYNAMIC, lambda: asyncio.run(request.aget_dynamic_secret(DYNAMIC))),
        ]
        for path, read in refused:
            with pytest.raises(
                SecretUnavailable, match=f"'{path}' cannot be had now: the secrets manager is closed"
            ) as caught:
                read()
            assert caught.value.path == path
            assert caught.value.__context__ is None
        with pytest.raises(InvalidSecretPath):
            manager.get_secret("../etc")
        counts = manager._metrics._counts  # not through a scrape, which in multiprocess mode brings nothing along
        assert counts.requests._value.get() == len(refused) + 1
        assert counts.hits._value.get() == 0
        assert counts.errors.labels("unavailable")._value.get() == len(refused)
        assert counts.errors.labels("invalid_path")._value.get() == 1
        eventually(lambda: len(audit_lines(audit, "secret_access")) == len(refused) + 1, "the audit lines")
        lines = audit_lines(audit, "secret_access")
    assert [line["secret_path"] for line in lines] == [*(path for path, _ in refused), "../etc"]
    assert [(line["outcome"], line["reason"]) for line in lines[:-1]] == [("error", "unavailable")] * len(refused)
    assert [line["kind"] for line in lines[:2]] == ["static", "dynamic"]
    assert vault.reads == []


def test_a_read_of_a_closed_manager_fails_alike_where_the_audit_takes_no_lines(
    manager: SecretsManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise AuditError("the disk is full; free space there")

    manager.close()
    monkeypatch.setattr(manager.audit, "failure", full)
    with pytest.raises(SecretUnavailable, match=STATIC):
        manager.get_secret(STATIC)


def test_a_manager_that_was_closed_before_its_start_is_not_started_by_a_late_reader(
    manager: SecretsManager, vault: FakeVault
) -> None:
    manager.close()
    with pytest.raises(SecretUnavailable):
        manager.get_secret(STATIC)
    assert vault.reads == []
    assert not manager.started


def test_it_can_be_started_again_after_a_close(manager: SecretsManager, vault: FakeVault) -> None:
    with manager:
        first = manager.get_dynamic_secret(DYNAMIC)
    with manager:
        assert manager.get_dynamic_secret(DYNAMIC)["username"] != first["username"]
        assert manager.health()["renewer"] == {"alive": True}
    assert vault.tokens_revoked == 2
    assert len(vault.revoked) == 2


def test_the_callbacks_survive_a_close_and_a_new_start(manager: SecretsManager) -> None:
    told: list[Secret] = []
    manager.on_rotate(STATIC, told.append)
    with manager:
        pass
    with manager:
        manager.get_secret(STATIC)
        fresh = manager.get_secret(STATIC, fresh=True)
    assert told == [fresh]


def test_without_a_start_it_starts_at_the_first_use(manager: SecretsManager) -> None:
    assert not manager.started
    assert manager.get_secret(STATIC)["value"] == "value-1"
    assert manager.started


def test_a_first_use_without_a_server_fails_in_its_own_time_and_not_in_the_starts(vault: FakeVault) -> None:
    vault.down = True
    with manager_over(vault, request_timeout=0.2, startup_timeout=600) as manager:
        with pytest.raises(SecretUnavailable):
            manager.get_secret(STATIC)
        assert manager.started


def test_the_first_use_in_async_code_starts_it_as_well(manager: SecretsManager) -> None:
    assert asyncio.run(manager.aget_dynamic_secret(DYNAMIC))["username"] == "user-1"
    assert manager.started


def test_an_eager_start_has_fetched_what_is_named(vault: FakeVault) -> None:
    with manager_over(vault, prefetch=f"{STATIC},dynamic:{DYNAMIC}") as manager:
        manager.start()
        assert sorted(vault.reads) == sorted([STATIC, DYNAMIC])


def test_a_lazy_start_waits_for_nothing(vault: FakeVault) -> None:
    vault.down = True
    with manager_over(vault, startup="lazy") as manager:
        assert manager.start().started


def test_an_eager_start_that_is_told_not_to_wait_waits_for_nothing(vault: FakeVault) -> None:
    vault.down = True
    with manager_over(vault) as manager:
        assert manager.start(wait=False).started


def test_an_eager_start_without_a_server_fails_and_can_be_tried_again(vault: FakeVault) -> None:
    vault.down = True
    with manager_over(vault, startup_timeout=0.05) as manager:
        with pytest.raises(VaultUnavailable):
            manager.start()
        assert not manager.started
        vault.down = False
        assert manager.start().get_secret(STATIC)["value"]


def test_a_close_returns_while_a_read_hangs_and_leaves_that_to_its_own_time(
    manager: SecretsManager, vault: FakeVault
) -> None:
    manager.start()
    vault.open.clear()
    failures: list[VaultMiddlewareError] = []

    def read() -> None:
        try:
            manager.get_dynamic_secret(DYNAMIC)
        except VaultMiddlewareError as error:
            failures.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert vault.waiting.acquire(timeout=20)
    manager.close()
    assert not vault.open.is_set()  # the read hung all the while
    assert not manager.started
    vault.open.set()
    reader.join(20)
    # What came after the stop was of no use to anyone any more: it is not left alive.
    eventually(lambda: vault.revoked == [f"{DYNAMIC}/1"], "the late lease to be revoked")
    assert len(failures) <= 1


def test_a_stop_that_fails_half_way_raises_nothing(
    manager: SecretsManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_timeout: float) -> None:
        raise LookupError

    manager.start()
    stop = manager._engine.stop
    monkeypatch.setattr(manager._engine, "stop", broken)
    manager.close()
    assert "the stop failed half-way" in caplog.text
    stop(1.0)


# -- reads outside requests


def test_a_lease_read_outside_any_request_is_not_revoked_when_it_is_replaced(
    manager: SecretsManager, vault: FakeVault, clock: Clock
) -> None:
    """Nobody can say when its user has ended: it is left to its own deadline, or to the stop."""
    manager.start()
    old = manager.get_dynamic_secret(DYNAMIC).lease.lease_id
    new = manager.get_secret(DYNAMIC, fresh=True)
    assert isinstance(new, DynamicSecret)
    assert manager.health()["leases"] == {"active": 1, "draining": 1, "soonest_expiry": LEASE}
    # A lease of the same mount that was replaced later, and read within a request that has ended, is revoked at once.
    with RequestSecrets(manager) as secrets:
        other = secrets.get_dynamic_secret("db/creds/other").lease.lease_id
        secrets.get_secret("db/creds/other", fresh=True)
    eventually(lambda: vault.revoked == [other], "the revocation of the other")
    manager.close()
    assert old in vault.revoked


def test_a_static_path_is_no_dynamic_secret(manager: SecretsManager) -> None:
    with pytest.raises(SecretNotDynamic, match="use get_secret"):
        manager.get_dynamic_secret(STATIC)
    with pytest.raises(SecretNotDynamic):
        asyncio.run(manager.aget_dynamic_secret(STATIC))


def test_a_rejected_secret_is_replaced_and_an_older_one_is_not_mistaken_for_it(
    manager: SecretsManager, vault: FakeVault
) -> None:
    bad = manager.get_secret(STATIC)
    manager.reject(bad)
    good = manager.get_secret(STATIC)
    manager.reject(bad)
    assert manager.get_secret(STATIC) is good
    assert vault.reads == [STATIC, STATIC]


def test_the_audit_line_of_a_read_outside_any_request_names_no_request(vault: FakeVault, tmp_path: Path) -> None:
    with manager_over(vault, audit=tmp_path / "audit") as manager:
        manager.get_secret(STATIC)
        (line,) = audit_lines(tmp_path / "audit", "secret_access")
    assert (line["request_id"], line["client"], line["method"]) == (None, None, None)
    assert vault.correlation_ids == [None]


# -- on_rotate


def test_a_callback_gets_the_new_secret_once_it_is_published(manager: SecretsManager) -> None:
    told: list[tuple[Secret, bool]] = []
    manager.on_rotate(DYNAMIC, lambda secret: told.append((secret, manager.get_secret(DYNAMIC) is secret)))
    manager.get_dynamic_secret(DYNAMIC)
    assert told == []
    fresh = manager.get_secret(DYNAMIC, fresh=True)
    assert told == [(fresh, True)]


def test_a_callback_that_is_undone_hears_nothing_more_and_the_others_do(manager: SecretsManager) -> None:
    one: list[Secret] = []
    two: list[Secret] = []
    undo = manager.on_rotate(STATIC, one.append)
    manager.on_rotate(STATIC, two.append)
    manager.get_secret(STATIC)
    manager.get_secret(STATIC, fresh=True)
    undo()
    undo()
    manager.get_secret(STATIC, fresh=True)
    assert (len(one), len(two)) == (1, 2)


def test_a_callback_hears_of_its_own_path_only(manager: SecretsManager) -> None:
    told: list[Secret] = []
    manager.on_rotate("app/other", told.append)
    manager.get_secret(STATIC)
    manager.get_secret(STATIC, fresh=True)
    assert told == []


def test_a_callback_that_raises_hurts_nobody_and_its_message_is_not_logged(
    manager: SecretsManager, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Secret] = []

    def bad(secret: Secret) -> None:
        raise LookupError(f"canary {secret['value']}")

    manager.on_rotate(STATIC, bad)
    manager.on_rotate(STATIC, told.append)
    manager.get_secret(STATIC)
    assert manager.get_secret(STATIC, fresh=True)["value"] == "value-2"
    assert len(told) == 1
    assert "failed with LookupError" in caplog.text
    assert "canary" not in caplog.text
    assert "value-2" not in caplog.text


# -- what it tells


def test_its_health_is_json_without_a_value(manager: SecretsManager, vault: FakeVault) -> None:
    manager.start()
    manager.get_secret(STATIC)
    lease = manager.get_dynamic_secret(DYNAMIC).lease
    text = json.dumps(manager.health())
    for secret in ("value-", "user-", "password-", "canary", lease.lease_id):
        assert secret not in text
    assert json.loads(text) == {
        "started": True,
        "closed": False,
        "ready": True,
        "server": {"up": True, "last_error": None},
        "token": {"valid": True, "ttl": None, "last_error": None},
        "leases": {"active": 1, "draining": 0, "soonest_expiry": LEASE},
        "cache": {"entries": 2},
        "renewer": {"alive": True},
    }


def test_its_health_is_json_before_the_start_and_after_the_close(manager: SecretsManager) -> None:
    before = json.loads(json.dumps(manager.health()))
    assert (before["started"], before["closed"], before["token"]["valid"]) == (False, False, False)
    manager.start()
    manager.close()
    after = json.loads(json.dumps(manager.health()))
    assert (after["started"], after["closed"]) == (False, True)
    assert after["leases"]["active"] == 0


def test_its_health_names_the_last_failure(vault: FakeVault) -> None:
    vault.down = True
    with manager_over(vault, startup="lazy", request_timeout=0.2) as manager:
        with pytest.raises(SecretUnavailable):
            manager.get_secret(STATIC)
        assert json.loads(json.dumps(manager.health()))["token"]["last_error"] == "the fake is down"


def test_its_repr_says_where_as_whom_and_in_which_state(manager: SecretsManager) -> None:
    assert repr(manager) == "<SecretsManager http://127.0.0.1:1 role='api-gateway' not started>"
    manager.start()
    assert repr(manager).endswith("started>")
    manager.close()
    assert repr(manager).endswith("closed>")


def test_a_setting_that_is_unwise_is_warned_of_once(vault: FakeVault, caplog: pytest.LogCaptureFixture) -> None:
    with manager_over(vault, vault_addr="http://vault.example:8200") as manager:
        manager.start()
        manager.close()
        manager.start()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len([record for record in warnings if "plain http" in record.getMessage()]) == 1


def test_without_settings_those_of_the_environment_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", "https://vault.example")
    monkeypatch.setenv("VAULT_AUDIT_LOG", "off")
    assert SecretsManager(registry=CollectorRegistry()).config.vault_addr == "https://vault.example"


def test_an_audit_log_that_cannot_be_opened_is_a_wrong_setting(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    config = SecretConfig(vault_addr="http://127.0.0.1:1", audit_log=str(folder / "audit"))
    folder.rmdir()
    with pytest.raises(ConfigurationError, match="VAULT_AUDIT_LOG"):
        SecretsManager(config, registry=CollectorRegistry())


def test_a_listener_that_fails_hurts_nobody(
    manager: SecretsManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_event: object) -> None:
        raise LookupError

    monkeypatch.setattr(manager, "_operational", broken)
    with manager:
        assert manager.get_secret(STATIC)["value"]
    assert "a telemetry listener failed" in caplog.text


def test_a_secret_whose_audit_line_cannot_be_written_is_not_handed_over(
    manager: SecretsManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise AuditError("the disk is full; free space there")

    monkeypatch.setattr(manager.gate, "_access", full)
    with pytest.raises(AuditError):
        manager.get_secret(STATIC)
    monkeypatch.undo()
    assert manager.get_secret(STATIC)["value"] == "value-1"


# -- fork


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_keeps_the_static_cache_and_leaves_the_rest_to_its_parent(
    manager: SecretsManager, vault: FakeVault
) -> None:
    manager.start()
    value, lease = manager.get_secret(STATIC), manager.get_dynamic_secret(DYNAMIC).lease
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert not manager.started
            assert manager.get_secret(STATIC) is value
            assert manager.get_dynamic_secret(DYNAMIC).lease.lease_id != lease.lease_id
            manager.close()
            assert lease.lease_id not in vault.revoked
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert manager.started
    assert manager.get_dynamic_secret(DYNAMIC).lease == lease


# -- the stand-in of these tests


def test_the_fake_has_every_call_of_the_client() -> None:
    calls = {
        name for name, value in vars(VaultClient).items() if inspect.isfunction(value) and not name.startswith("_")
    }
    assert calls <= set(dir(FakeVault))
