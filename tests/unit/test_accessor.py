"""The accessor: one request's view of the secrets, its pins, its leases, its scopes, and its end."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import DYNAMIC, LEASE, STATIC, Clock, FakeVault, audit_lines, manager_over
from tests.waiting import eventually, in_threads
from vault_middleware import DynamicSecret, RequestSecrets, SecretsManager, current_secrets
from vault_middleware.accessor import activate, deactivate
from vault_middleware.errors import AccessorClosed, AuditError, SecretNotDynamic, SecretNotFound
from vault_middleware.pins import STALE_PIN
from vault_middleware.telemetry.lines import Identity, asked, request_id
from vault_middleware.web import asgi_identity


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vault() -> FakeVault:
    return FakeVault()


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def manager(vault: FakeVault, clock: Clock, audit: Path) -> Iterator[SecretsManager]:
    with manager_over(vault, clock=clock, audit=audit) as manager:
        yield manager


@pytest.fixture
def request_secrets(manager: SecretsManager) -> Iterator[RequestSecrets]:
    with RequestSecrets(manager) as secrets:
        yield secrets


def rotate(manager: SecretsManager) -> DynamicSecret:
    """Put another lease in the place of the present one."""
    manager.get_secret(DYNAMIC, fresh=True)
    return manager.get_dynamic_secret(DYNAMIC)


# -- pins


def test_a_path_gives_the_same_object_again_within_a_request(request_secrets: RequestSecrets, vault: FakeVault) -> None:
    assert request_secrets.get_secret(STATIC) is request_secrets.get_secret(STATIC)
    assert request_secrets.get_dynamic_secret(DYNAMIC) is request_secrets.get_dynamic_secret(DYNAMIC)
    assert vault.reads == [STATIC, DYNAMIC]


def test_the_async_getters_share_the_pins_of_the_others(request_secrets: RequestSecrets) -> None:
    async def main() -> None:
        assert await request_secrets.aget_secret(STATIC) is request_secrets.get_secret(STATIC)
        assert await request_secrets.aget_secret(STATIC) is request_secrets.get_secret(STATIC)
        assert await request_secrets.aget_dynamic_secret(DYNAMIC) is request_secrets.get_dynamic_secret(DYNAMIC)
        assert await request_secrets.aget_dynamic_secret(DYNAMIC) is request_secrets.get_secret(DYNAMIC)

    asyncio.run(main())


def test_versions_are_pinned_each_for_itself(request_secrets: RequestSecrets) -> None:
    one, two = request_secrets.get_secret(STATIC, version=1), request_secrets.get_secret(STATIC, version=2)
    assert (one.version, two.version) == (1, 2)
    assert request_secrets.get_secret(STATIC, version=1) is one


def test_user_and_password_come_from_one_lease_through_a_rotation(
    request_secrets: RequestSecrets, manager: SecretsManager
) -> None:
    user = request_secrets.get_dynamic_secret(DYNAMIC)["username"]
    assert rotate(manager)["username"] != user
    assert request_secrets.get_dynamic_secret(DYNAMIC)["password"] == user.replace("user", "password")


def test_two_threads_of_one_request_get_one_pair_though_it_is_rotated_between_them(
    manager: SecretsManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower thread has read the newer lease, and gets what the faster one has pinned all the same."""
    manager.get_dynamic_secret(DYNAMIC)
    hit, gone, back = manager.hit, threading.Event(), threading.Event()
    with RequestSecrets(manager) as secrets:

        def slow(*arguments: object) -> object:
            entry = hit(*arguments)  # type: ignore[arg-type]
            gone.set()
            back.wait(20)
            return entry

        monkeypatch.setattr(manager, "hit", slow)
        got: list[DynamicSecret] = []
        thread = threading.Thread(target=lambda: got.append(secrets.get_dynamic_secret(DYNAMIC)))
        thread.start()
        assert gone.wait(20)
        monkeypatch.undo()
        rotate(manager)
        first = secrets.get_dynamic_secret(DYNAMIC)
        back.set()
        thread.join(20)
        assert got == [first]
        assert secrets.get_dynamic_secret(DYNAMIC) is first


def test_past_its_deadline_the_next_read_gets_the_current_lease(
    request_secrets: RequestSecrets, manager: SecretsManager, clock: Clock
) -> None:
    first = request_secrets.get_dynamic_secret(DYNAMIC)
    clock.advance(LEASE)
    second = request_secrets.get_dynamic_secret(DYNAMIC)
    assert second["username"] != first["username"]
    assert second is manager.get_dynamic_secret(DYNAMIC)


def test_past_its_ttl_the_next_read_gets_the_current_static_secret(
    request_secrets: RequestSecrets, manager: SecretsManager, clock: Clock
) -> None:
    first = request_secrets.get_secret(STATIC)
    clock.advance(manager.config.cache_ttl)
    assert request_secrets.get_secret(STATIC)["value"] != first["value"]


def test_fresh_replaces_the_pin_and_the_cached_value(request_secrets: RequestSecrets, manager: SecretsManager) -> None:
    first = request_secrets.get_secret(STATIC)
    fresh = request_secrets.get_secret(STATIC, fresh=True)
    assert fresh["value"] != first["value"]
    assert request_secrets.get_secret(STATIC) is fresh
    assert manager.get_secret(STATIC) is fresh


def test_fresh_replaces_the_pin_in_async_code_as_well(request_secrets: RequestSecrets) -> None:
    async def main() -> None:
        first = await request_secrets.aget_secret(STATIC)
        fresh = await request_secrets.aget_secret(STATIC, fresh=True)
        assert fresh["value"] != first["value"]
        assert await request_secrets.aget_secret(STATIC) is fresh

    asyncio.run(main())


def test_fresh_of_a_leased_path_is_what_the_dynamic_getter_gives_next(request_secrets: RequestSecrets) -> None:
    request_secrets.get_dynamic_secret(DYNAMIC)
    fresh = request_secrets.get_secret(DYNAMIC, fresh=True)
    assert request_secrets.get_dynamic_secret(DYNAMIC) is fresh


def test_two_requests_pin_each_for_itself(manager: SecretsManager) -> None:
    with RequestSecrets(manager) as one, RequestSecrets(manager) as two:
        first = one.get_dynamic_secret(DYNAMIC)
        rotate(manager)
        assert two.get_dynamic_secret(DYNAMIC)["username"] != first["username"]
        assert one.get_dynamic_secret(DYNAMIC) is first


def test_a_pinned_static_secret_is_no_dynamic_one(request_secrets: RequestSecrets) -> None:
    request_secrets.get_secret(STATIC)
    with pytest.raises(SecretNotDynamic):
        request_secrets.get_dynamic_secret(STATIC)


# -- reject


def test_a_rejected_credential_is_replaced_once_for_all_who_ask(manager: SecretsManager, vault: FakeVault) -> None:
    with RequestSecrets(manager) as one, RequestSecrets(manager) as two:
        bad = one.get_dynamic_secret(DYNAMIC)
        assert two.get_dynamic_secret(DYNAMIC) is bad
        one.reject(bad)
        good = one.get_dynamic_secret(DYNAMIC)
        two.reject(bad)
        assert good["username"] != bad["username"]
        assert two.get_dynamic_secret(DYNAMIC)["username"] == good["username"]
        assert vault.reads == [DYNAMIC, DYNAMIC]


def test_a_rejected_static_secret_is_read_anew(request_secrets: RequestSecrets) -> None:
    bad = request_secrets.get_secret(STATIC)
    request_secrets.reject(bad)
    assert request_secrets.get_secret(STATIC)["value"] != bad["value"]


def test_a_rejection_leaves_the_pins_of_other_paths(request_secrets: RequestSecrets) -> None:
    kept, bad = request_secrets.get_secret(STATIC), request_secrets.get_dynamic_secret(DYNAMIC)
    request_secrets.reject(bad)
    assert request_secrets.get_secret(STATIC) is kept


# -- the end


def test_after_its_end_every_getter_says_so(manager: SecretsManager) -> None:
    secrets = RequestSecrets(manager)
    secret = secrets.get_secret(STATIC)
    secrets.get_dynamic_secret(DYNAMIC)
    secrets.close()

    async def main() -> None:
        with pytest.raises(AccessorClosed):
            await secrets.aget_secret(STATIC)
        with pytest.raises(AccessorClosed):
            await secrets.aget_dynamic_secret(DYNAMIC)

    asyncio.run(main())
    with pytest.raises(AccessorClosed, match="the request of this accessor has ended"):
        secrets.get_secret(STATIC)
    with pytest.raises(AccessorClosed):
        secrets.get_dynamic_secret(DYNAMIC)
    with pytest.raises(AccessorClosed):
        secrets.reject(secret)
    with pytest.raises(AccessorClosed), secrets.scope():
        pass
    assert secret["value"]


def test_a_request_that_reads_nothing_is_not_looked_at(manager: SecretsManager) -> None:
    def identify(_request: object, _number: int) -> Identity:
        raise AssertionError

    RequestSecrets(manager, object(), identify).close()


def test_threads_that_ask_at_once_agree_on_who_asks(manager: SecretsManager) -> None:
    both = threading.Barrier(2)

    def identify(scope: dict[str, str], number: int) -> Identity:
        both.wait(10)
        return asgi_identity(scope, number)  # without a header its id is a new one

    with RequestSecrets(manager, {"type": "http"}, identify) as secrets:
        one, other = in_threads(2, lambda _: secrets.identity)
    assert request_id(one) == request_id(other)
    assert asked(one) == asked(other)


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_request_may_end_while_another_thread_finds_out_who_asks(manager: SecretsManager, when: str) -> None:
    slot: Any = RequestSecrets.__dict__["_request"]

    class Ending(RequestSecrets):
        """Ends at a look at its request: before what is found there, or after it."""

        __slots__ = ()

        @property
        def _request(self) -> object:
            found = slot.__get__(self)
            if not self._closed:
                in_threads(1, lambda _: self.close())
            return slot.__get__(self) if when == "before" else found

        @_request.setter
        def _request(self, value: object) -> None:
            slot.__set__(self, value)

    manager.get_secret(STATIC)
    with Ending(manager, {"type": "http"}, asgi_identity) as secrets, pytest.raises(AccessorClosed):
        secrets.get_secret(STATIC)


def test_nobody_asks_after_the_end(manager: SecretsManager) -> None:
    secrets = RequestSecrets(manager, {"type": "http"}, asgi_identity)
    assert secrets.request_id
    secrets.close()
    assert secrets.request_id is None


def test_an_end_twice_is_one_end(manager: SecretsManager, audit: Path) -> None:
    secrets = RequestSecrets(manager)
    secrets.get_secret(STATIC)
    secrets.get_secret(STATIC)
    secrets.close()
    secrets.close()
    assert len(audit_lines(audit, "secret_repeats")) == 1


def test_a_replaced_lease_is_revoked_when_its_last_request_ends_and_not_before(
    manager: SecretsManager, vault: FakeVault
) -> None:
    manager.start()
    with RequestSecrets(manager) as one, RequestSecrets(manager) as two:
        old = one.get_dynamic_secret(DYNAMIC).lease.lease_id
        two.get_dynamic_secret(DYNAMIC)
        one.get_secret(DYNAMIC, fresh=True)
        one.close()
        assert manager.health()["leases"]["draining"] == 1
        assert vault.revoked == []
    eventually(lambda: old in vault.revoked, "the revocation of the old lease")


def test_a_read_that_outlives_its_request_gets_nothing_and_holds_nothing(
    manager: SecretsManager, vault: FakeVault
) -> None:
    for path in (STATIC, DYNAMIC):
        vault.open.clear()
        secrets = RequestSecrets(manager)
        raised: list[BaseException] = []

        def read(secrets: RequestSecrets = secrets, path: str = path, raised: list[BaseException] = raised) -> None:
            try:
                secrets.get_secret(path)
            except AccessorClosed as error:
                raised.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert vault.waiting.acquire(timeout=20)
        secrets.close()
        vault.open.set()
        thread.join(20)
        assert len(raised) == 1
        with pytest.raises(AccessorClosed):
            secrets.get_secret(path)
    entry = manager._engine.cache.entries[DYNAMIC]
    assert entry.holds is not None
    assert not entry.holds


def test_leases_taken_by_many_threads_of_one_request_are_all_given_back(manager: SecretsManager) -> None:
    paths = [f"db/creds/role-{number}" for number in range(16)]
    with RequestSecrets(manager) as secrets:
        in_threads(16, lambda number: secrets.get_dynamic_secret(paths[number]))
        holds = [manager._engine.cache.entries[path].holds for path in paths]
        assert all(holds)
    assert not any(holds)


def test_a_lease_is_given_back_though_its_audit_line_could_not_be_written(
    manager: SecretsManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "")

    manager.get_dynamic_secret(DYNAMIC)
    with RequestSecrets(manager) as secrets:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(AuditError, match="the disk is full"):
                secrets.get_dynamic_secret(DYNAMIC)
        assert manager._engine.cache.entries[DYNAMIC].holds
    assert not manager._engine.cache.entries[DYNAMIC].holds


def test_a_failure_is_not_pinned(request_secrets: RequestSecrets) -> None:
    for _ in range(2):
        with pytest.raises(SecretNotFound):
            request_secrets.get_secret("other/none")


# -- audit


def test_reads_answered_from_the_pin_are_counted_and_make_one_closing_line(
    manager: SecretsManager, audit: Path
) -> None:
    with RequestSecrets(manager) as secrets:
        for _ in range(5):
            secrets.get_secret(STATIC)
        for _ in range(3):
            secrets.get_dynamic_secret(DYNAMIC)
        secrets.get_secret("app/once")
        assert audit_lines(audit, "secret_repeats") == []
    counts = {line["secret_path"]: line["count"] for line in audit_lines(audit, "secret_repeats")}
    assert counts == {STATIC: 4, DYNAMIC: 2}
    assert [line["secret_path"] for line in audit_lines(audit, "secret_access")] == [STATIC, DYNAMIC, "app/once"]


def test_repeats_counted_by_many_threads_are_all_in_the_closing_line(manager: SecretsManager, audit: Path) -> None:
    with RequestSecrets(manager) as secrets:
        secrets.get_secret(STATIC)
        in_threads(16, lambda _: [secrets.get_secret(STATIC) for _ in range(200)])
    assert [line["count"] for line in audit_lines(audit, "secret_repeats")] == [3200]


def test_repeats_of_a_pin_that_is_replaced_or_rejected_are_told_then(manager: SecretsManager, audit: Path) -> None:
    with RequestSecrets(manager) as secrets:
        secrets.get_secret(STATIC)
        secrets.get_secret(STATIC)
        secrets.get_secret(STATIC, fresh=True)
        assert [line["count"] for line in audit_lines(audit, "secret_repeats")] == [1]
        secrets.get_secret(STATIC)
        secrets.reject(secrets.get_secret(STATIC))
        assert [line["count"] for line in audit_lines(audit, "secret_repeats")] == [1, 2]


def test_repeats_are_in_the_metrics_while_the_request_goes_on_and_none_is_lost_between_threads(
    manager: SecretsManager,
) -> None:
    requests, hits = manager._metrics._counts.requests, manager._metrics._counts.hits
    with RequestSecrets(manager) as secrets:
        secrets.get_secret(STATIC)
        in_threads(16, lambda _: [secrets.get_secret(STATIC) for _ in range(200)])
        counted = [next(iter(counter.collect())).samples[0].value for counter in (requests, hits)]
        assert counted == [3201, 3200]
    assert next(iter(requests.collect())).samples[0].value == 3201


def test_in_an_outage_a_request_goes_on_with_the_stale_value_and_asks_again_after_a_second(
    request_secrets: RequestSecrets, manager: SecretsManager, vault: FakeVault, clock: Clock, audit: Path
) -> None:
    first = request_secrets.get_secret(STATIC)
    vault.down = True
    clock.advance(manager.config.cache_ttl)
    assert [request_secrets.get_secret(STATIC) for _ in range(3)] == [first] * 3
    assert [line["outcome"] for line in audit_lines(audit, "secret_access")] == ["miss", "stale"]
    clock.advance(STALE_PIN)
    assert [request_secrets.get_secret(STATIC) for _ in range(3)] == [first] * 3
    assert [line["outcome"] for line in audit_lines(audit, "secret_access")] == ["miss", "stale", "stale"]
    assert [line["count"] for line in audit_lines(audit, "secret_repeats")] == [2]


# -- scopes


@pytest.mark.parametrize("times", [1, 2])
def test_a_scope_sees_what_is_current_and_the_request_keeps_its_own(
    request_secrets: RequestSecrets, manager: SecretsManager, times: int
) -> None:
    mine, *_ = [request_secrets.get_dynamic_secret(DYNAMIC) for _ in range(times)]
    now = rotate(manager)
    with request_secrets.scope() as message:
        assert message.get_dynamic_secret(DYNAMIC)["username"] == now["username"]
        assert request_secrets.get_dynamic_secret(DYNAMIC) is message.get_dynamic_secret(DYNAMIC)
        assert request_secrets.get_secret(DYNAMIC) is message.get_secret(DYNAMIC)
    assert request_secrets.get_dynamic_secret(DYNAMIC) is mine


def test_a_scope_gives_back_its_leases_at_its_end(request_secrets: RequestSecrets, manager: SecretsManager) -> None:
    with request_secrets.scope():
        request_secrets.get_dynamic_secret(DYNAMIC)
        holds = manager._engine.cache.entries[DYNAMIC].holds
        assert holds
    assert not holds


def test_a_scope_ends_when_its_block_raises(request_secrets: RequestSecrets) -> None:
    token = activate(request_secrets)
    with pytest.raises(LookupError), request_secrets.scope() as message:
        raise LookupError
    assert current_secrets() is request_secrets
    with pytest.raises(AccessorClosed):
        message.get_secret(STATIC)
    deactivate(token)


def test_current_secrets_is_the_innermost_scope(request_secrets: RequestSecrets) -> None:
    token = activate(request_secrets)
    with request_secrets.scope() as outer:
        assert current_secrets() is outer
        with request_secrets.scope() as inner:
            assert current_secrets() is inner
        assert current_secrets() is outer
    assert current_secrets() is request_secrets
    deactivate(token)
    with pytest.raises(AccessorClosed, match="no request is being handled here"):
        current_secrets()


def test_nested_scopes_answer_for_every_accessor_around_them(
    request_secrets: RequestSecrets, manager: SecretsManager
) -> None:
    with request_secrets.scope() as outer:
        first = outer.get_dynamic_secret(DYNAMIC)
        rotate(manager)
        with outer.scope() as inner:
            second = inner.get_dynamic_secret(DYNAMIC)
            assert second["username"] != first["username"]
            assert outer.get_dynamic_secret(DYNAMIC) is second
            assert request_secrets.get_dynamic_secret(DYNAMIC) is second
        assert outer.get_dynamic_secret(DYNAMIC) is first
        assert request_secrets.get_dynamic_secret(DYNAMIC) is first


def test_scopes_of_messages_handled_side_by_side_do_not_meet(
    request_secrets: RequestSecrets, manager: SecretsManager
) -> None:
    """Two tasks of one connection, each with a scope, and the connection itself, which has none."""

    async def main() -> None:
        opened, rotated = asyncio.Event(), asyncio.Event()
        mine = await request_secrets.aget_dynamic_secret(DYNAMIC)

        async def early() -> DynamicSecret:
            with request_secrets.scope():
                before = await request_secrets.aget_dynamic_secret(DYNAMIC)
                opened.set()
                await rotated.wait()
                assert await request_secrets.aget_dynamic_secret(DYNAMIC) is before
                return before

        async def late() -> DynamicSecret:
            await rotated.wait()
            with request_secrets.scope():
                return await request_secrets.aget_dynamic_secret(DYNAMIC)

        tasks = [asyncio.create_task(early()), asyncio.create_task(late())]
        await opened.wait()
        await asyncio.to_thread(rotate, manager)
        assert await request_secrets.aget_dynamic_secret(DYNAMIC) is mine
        rotated.set()
        before, after = await asyncio.gather(*tasks)
        assert before["username"] == mine["username"]
        assert after["username"] != before["username"]
        assert await request_secrets.aget_dynamic_secret(DYNAMIC) is mine

    asyncio.run(main())


def test_a_read_that_was_under_way_when_a_scope_was_opened_is_the_requests_and_not_the_scopes(
    manager: SecretsManager, vault: FakeVault
) -> None:
    with RequestSecrets(manager) as secrets:
        vault.open.clear()
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.append(secrets.get_secret(STATIC)["value"]))
        thread.start()
        assert vault.waiting.acquire(timeout=20)
        with secrets.scope():
            vault.open.set()
            thread.join(20)
            manager.get_secret(STATIC, fresh=True)
            assert secrets.get_secret(STATIC)["value"] == "value-2"
        assert got == ["value-1"]
        assert secrets.get_secret(STATIC)["value"] == "value-1"


def test_a_task_that_outlives_the_scope_it_was_started_in_reads_as_the_request_does(
    request_secrets: RequestSecrets,
) -> None:
    mine = request_secrets.get_secret(STATIC)
    with request_secrets.scope():
        context = contextvars.copy_context()
    assert context.run(request_secrets.get_secret, STATIC) is mine


def test_a_scope_left_in_another_context_is_closed_all_the_same(
    request_secrets: RequestSecrets, manager: SecretsManager
) -> None:
    scope = request_secrets.scope()
    contextvars.copy_context().run(scope.__enter__).get_dynamic_secret(DYNAMIC)
    assert manager._engine.cache.entries[DYNAMIC].holds
    scope.__exit__(None, None, None)
    assert not manager._engine.cache.entries[DYNAMIC].holds


def test_a_rejection_within_a_scope_is_seen_within_it(request_secrets: RequestSecrets) -> None:
    with request_secrets.scope():
        bad = request_secrets.get_dynamic_secret(DYNAMIC)
        request_secrets.reject(bad)
        assert request_secrets.get_dynamic_secret(DYNAMIC)["username"] != bad["username"]


def test_pins_from_before_and_beside_a_scope_are_told_and_given_back_at_the_end(
    manager: SecretsManager, audit: Path
) -> None:
    with RequestSecrets(manager) as secrets:
        secrets.get_dynamic_secret(DYNAMIC)
        secrets.get_dynamic_secret(DYNAMIC)
        with secrets.scope():
            secrets.get_secret(STATIC)
            secrets.get_secret(STATIC)
        secrets.get_dynamic_secret(DYNAMIC)
        secrets.get_dynamic_secret("db/creds/other")
        holds = [manager._engine.cache.entries[path].holds for path in (DYNAMIC, "db/creds/other")]
        assert all(holds)
    assert not any(holds)
    counts = [(line["secret_path"], line["count"]) for line in audit_lines(audit, "secret_repeats")]
    assert counts == [(STATIC, 1), (DYNAMIC, 2)]


def test_after_the_end_a_connection_that_had_scopes_says_so(manager: SecretsManager) -> None:
    secrets = RequestSecrets(manager)
    with secrets.scope():
        pass
    secrets.close()
    with pytest.raises(AccessorClosed):
        secrets.get_secret(STATIC)


# -- what it shows


def test_its_repr_says_whether_it_is_open_and_nothing_else(request_secrets: RequestSecrets) -> None:
    request_secrets.get_secret(STATIC)
    assert repr(request_secrets) == "<RequestSecrets open>"
    request_secrets.close()
    assert repr(request_secrets) == "<RequestSecrets closed>"


def test_a_request_that_reads_nothing_asks_and_starts_nothing(manager: SecretsManager, vault: FakeVault) -> None:
    with RequestSecrets(manager):
        pass
    assert vault.reads == []
    assert not manager.started
