"""override: whoever made the manager and keeps it where, within the block it is the stub, and afterwards itself."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.fakes import FakeVault, manager_over
from vault_middleware import SecretConfig, SecretsManager, VaultMiddleware, VaultWSGIMiddleware
from vault_middleware.errors import SecretNotFound, SecretUnavailable
from vault_middleware.testing import StubManager, override

KEY = "app/key"
HOLDS = {KEY: {"value": "stubbed"}}


def manager_of_ones_own() -> SecretsManager:
    return SecretsManager(SecretConfig(vault_addr="http://127.0.0.1:1", audit_log="off"), registry=CollectorRegistry())


def wsgi(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [environ["vault_middleware.secrets"].get_secret(KEY)["value"].encode()]


def get(app: Any) -> bytes:
    body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_args: None)
    found = b"".join(body)
    body.close()
    return found


def test_a_manager_is_the_stub_within_the_block_and_itself_afterwards() -> None:
    with manager_over(FakeVault()) as manager:
        assert manager.get_secret(KEY)["value"] == "value-1"
        with override(manager, HOLDS) as stub:
            assert manager.get_secret(KEY)["value"] == "stubbed"
            stub.rotate(KEY, {"value": "other"})
            assert manager.get_secret(KEY)["value"] == "other"
        assert type(manager) is SecretsManager
        assert manager.get_secret(KEY)["value"] == "value-1"


def test_a_middleware_and_what_wraps_it_are_found() -> None:
    app = VaultWSGIMiddleware(wsgi, manager_of_ones_own())

    class Outer:
        def __init__(self, app: Any) -> None:
            self.app = app

        def __call__(self, *args: Any) -> Any:
            return self.app(*args)

    outer = Outer(app)
    for target in (app, outer):
        with override(target, HOLDS):
            assert get(outer) == b"stubbed"


def test_only_the_target_is_overridden() -> None:
    one, other = (VaultWSGIMiddleware(wsgi, manager_of_ones_own()) for _ in range(2))
    with override(one, {KEY: {"value": "1"}}), override(other, {KEY: {"value": "2"}}):
        assert (get(one), get(other)) == (b"1", b"2")


def test_without_a_target_every_manager_is_overridden_also_one_that_is_made_meanwhile() -> None:
    before = manager_of_ones_own()
    handler = signal.getsignal(signal.SIGTERM)
    with override(secrets=HOLDS):
        made = SecretsManager()
        assert before.get_secret(KEY)["value"] == made.get_secret(KEY)["value"] == "stubbed"
    for manager in (before, made):
        assert type(manager) is SecretsManager
        assert not manager.started
    with override(secrets={KEY: {"value": "again"}}):
        assert made.get_secret(KEY)["value"] == "again"
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_environment_may_be_wrong_where_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_CACHE_TTL", "nonsense")
    with override(secrets=HOLDS):
        assert get(VaultWSGIMiddleware(wsgi)) == b"stubbed"


def test_the_inner_one_of_two_overrides_counts() -> None:
    manager = manager_of_ones_own()
    with override(secrets=HOLDS):
        with override(secrets={KEY: {"value": "inner"}}):
            assert manager.get_secret(KEY)["value"] == "inner"
        assert manager.get_secret(KEY)["value"] == "stubbed"


def test_a_stub_of_the_tests_own_is_left_alone() -> None:
    with StubManager({KEY: {"value": "own"}}) as own, override(secrets=HOLDS):
        assert own.get_secret(KEY)["value"] == "own"


def test_callbacks_of_the_application_are_told_of_rotations_and_no_longer_after_the_block() -> None:
    manager = manager_of_ones_own()
    told: list[str] = []
    manager.on_rotate(KEY, lambda new: told.append(new["value"]))
    with override(manager, HOLDS) as stub:
        manager.get_secret(KEY)
        stub.rotate(KEY, {"value": "new"})
    assert told == ["new"]
    assert stub._callbacks[KEY] == []


def test_the_block_ends_well_after_a_failure_in_it_and_the_stub_is_closed() -> None:
    manager = manager_of_ones_own()
    with pytest.raises(SecretNotFound), override(manager, {}) as stub:
        manager.get_secret(KEY)
    assert type(manager) is SecretsManager
    with pytest.raises(SecretUnavailable):
        stub.get_secret(KEY)


def test_a_middleware_with_a_lifespan_closes_the_stub_and_starts_it_again() -> None:
    middleware = VaultMiddleware(lambda *_args: None, config=SecretConfig(vault_addr="http://127.0.0.1:1"))  # type: ignore[arg-type]
    with override(middleware, HOLDS):
        for _ in range(2):
            middleware.manager.start()
            assert middleware.manager.get_secret(KEY)["value"] == "stubbed"
            middleware.manager.close()
