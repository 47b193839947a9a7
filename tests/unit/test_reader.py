"""The way of a read that the cache cannot answer: one fetch a key, each caller's own time, and what a 403 means."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from tests.engine_fakes import CREDS, KEY, Holder, World
from vault_middleware.cache import Entry
from vault_middleware.errors import (
    InvalidSecretPath,
    SecretAccessDenied,
    SecretNotFound,
    SecretUnavailable,
    VaultUnavailable,
)
from vault_middleware.vault.client import Forbidden

DOWN = VaultUnavailable("the server does not answer; look at it")


@pytest.fixture
def world() -> World:
    """Fetches wait until the test does them."""
    made = World(cache_ttl=100)
    made.engine.session.get(1)
    made.fetches = []
    return made


def aread(world: World, **options: object) -> Awaitable[Entry]:
    dynamic, fresh, timeout = options.get("dynamic", False), options.get("fresh", False), options.get("timeout")
    key = options.get("key", KEY)
    return world.engine.gate.aread(key, dynamic, fresh, timeout, Holder())  # type: ignore[arg-type]


def fetch(world: World) -> None:
    assert world.fetches is not None
    jobs, world.fetches = world.fetches, []
    for job in jobs:
        job()


async def settle() -> None:
    """Let the coroutines come to where they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def together(world: World, count: int, then: Callable[[], None], **options: object) -> list[Entry | BaseException]:
    """*count* coroutines that want the same secret at once, and *then* what happens while they wait."""

    async def main() -> list[Entry | BaseException]:
        tasks = [asyncio.ensure_future(aread(world, **options)) for _ in range(count)]
        await settle()
        then()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(main())


def test_many_who_miss_one_key_are_one_fetch(world: World) -> None:
    entries = together(world, 20, lambda: fetch(world))
    assert len({id(entry) for entry in entries}) == 1
    assert world.client.count("read") == 1
    world.metrics.flush()
    assert world.metric("vault_secret_requests_total") == 20
    assert world.metric("vault_secret_cache_hits_total") == 19


def test_their_failure_is_shared_as_each_ones_own_copy(world: World) -> None:
    world.client.then("read", DOWN)
    errors = together(world, 5, lambda: fetch(world))
    assert {type(error) for error in errors} == {SecretUnavailable}
    assert len({id(error) for error in errors}) == 5
    assert len({str(error) for error in errors}) == 1
    assert world.client.count("read") == 1


def test_threads_share_a_fetch_too(world: World) -> None:
    got: list[object] = []
    leads, asked = threading.Semaphore(0), world.engine.cache.lead

    def lead(key: object, **options: object) -> object:
        led = asked(key, **options)  # type: ignore[arg-type]
        leads.release()
        return led

    world.engine.cache.lead = lead  # type: ignore[method-assign,assignment]
    threads = [threading.Thread(target=lambda: got.append(world.value())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert leads.acquire(timeout=10)
    fetch(world)
    for thread in threads:
        thread.join(10)
    assert got == ["one"] * 8
    assert world.client.count("read") == 1


def test_a_callers_own_time_out_does_not_end_the_fetch(world: World) -> None:
    with pytest.raises(SecretUnavailable, match="in time"):
        world.read(timeout=0)
    fetch(world)
    assert world.client.count("read") == 1
    assert world.value() == "one"
    assert world.fetches == []


def test_each_waiter_has_its_own_time_out(world: World) -> None:
    async def main() -> None:
        patient = asyncio.ensure_future(aread(world))
        await settle()
        with pytest.raises(SecretUnavailable, match="in time"):
            await aread(world, timeout=0)
        fetch(world)
        assert (await patient).secret["value"] == "one"

    asyncio.run(main())


def test_a_cancelled_coroutine_does_not_end_the_fetch_for_the_others(world: World) -> None:
    async def main() -> None:
        leader, other = (asyncio.ensure_future(aread(world)) for _ in range(2))
        await settle()
        leader.cancel()
        await settle()
        assert leader.cancelled()
        fetch(world)
        assert (await other).secret["value"] == "one"

    asyncio.run(main())
    assert world.client.count("read") == 1


def test_no_timeout_is_longer_than_the_setting(world: World) -> None:
    reader = world.engine.reader
    assert reader._budget(None) == reader._budget(1000) == 10
    assert reader._budget(3) == 3
    assert reader._budget(-1) == 0


def test_who_waits_long_has_the_server_asked(world: World) -> None:
    with pytest.raises(SecretUnavailable):
        world.read(timeout=0)
    world.run(0)
    assert world.client.count("probe") == 1


def test_fresh_waits_for_no_fetch_that_began_before_it_was_asked(world: World) -> None:
    async def main() -> None:
        early = asyncio.ensure_future(aread(world))
        await settle()
        world.clock.now += 1
        fresh = asyncio.ensure_future(aread(world, fresh=True))
        await settle()
        assert world.fetches is not None
        assert len(world.fetches) == 1
        fetch(world)
        assert (await early).secret["value"] == "one"
        world.client.data[KEY] = {"value": "two"}
        await settle()
        fetch(world)
        assert (await fresh).secret["value"] == "two"

    asyncio.run(main())
    assert world.value() == "two"


def test_the_secret_stays_readable_while_a_fresh_one_is_fetched_and_where_it_cannot_be_had(world: World) -> None:
    world.fetches = None
    world.value()
    world.fetches = []
    with pytest.raises(SecretUnavailable):
        world.read(fresh=True, timeout=0)  # who wants it fresh is not given an old one without a word
    assert world.value() == "one"
    assert world.lines.lines[-1]["outcome"] == "hit"


def test_a_fetch_that_landed_between_the_look_and_the_lead_is_not_repeated(world: World) -> None:
    cache, real = world.engine.cache, world.engine.cache.lead

    def lead(key: str, **options: object) -> object:
        cache.lead = real  # type: ignore[method-assign]
        world.fetches = None
        world.value()  # by another thread
        world.fetches = []
        return real(key, **options)  # type: ignore[arg-type]

    cache.lead = lead  # type: ignore[method-assign,assignment]
    assert world.value() == "one"
    assert world.client.count("read") == 1
    assert world.fetches == []


# -- 403


def test_a_refusal_with_a_valid_token_is_the_policys_and_costs_one_look_up_in_five_seconds(world: World) -> None:
    world.fetches = None
    world.client.then("read", *[Forbidden()] * 10)
    for _ in range(49):
        with pytest.raises(SecretAccessDenied, match="add a line"):
            world.value()
        world.clock.now += 0.1
    assert world.client.count("read") == 1
    assert world.client.count("token_is_valid") == 1
    assert world.client.count("log_in") == 1
    world.clock.now += 0.2
    with pytest.raises(SecretAccessDenied):
        world.value()
    assert world.client.count("read") == 2


def test_a_refusal_with_an_invalid_token_is_read_again_once_after_a_new_log_in(world: World) -> None:
    world.fetches = None
    world.client.revoke_outside("token-1")
    assert world.value() == "one"
    assert [call.name for call in world.client.calls] == ["log_in", "read", "token_is_valid", "log_in", "read"]


def test_a_second_refusal_after_the_new_log_in_is_final(world: World) -> None:
    world.fetches = None
    world.client.then("read", Forbidden(), Forbidden(), Forbidden())
    world.client.then("token_is_valid", False)
    with pytest.raises(SecretAccessDenied):
        world.value()
    assert world.client.count("read") == 2
    assert world.client.count("log_in") == 2
    assert world.client.count("token_is_valid") == 1


def test_made_up_names_that_are_denied_share_a_look_up_a_second(world: World) -> None:
    world.fetches = None
    world.client.then("read", *[Forbidden()] * 30)
    for number in range(30):
        with pytest.raises(SecretAccessDenied):
            world.value(f"shared/made-up-{number}")
        world.clock.now += 0.1
    assert world.client.count("read") == 30
    assert world.client.count("token_is_valid") == 3


def test_a_secret_that_was_there_is_denied_only_after_a_look_up_of_its_own(world: World) -> None:
    world.fetches = None
    world.value()
    world.client.then("read", Forbidden())
    with pytest.raises(SecretAccessDenied):
        world.value("shared/made-up")
    world.client.revoke_outside("token-1")
    assert world.read(KEY, fresh=True).secret["value"] == "one"
    assert world.client.count("log_in") == 2


def test_what_a_token_was_denied_is_forgotten_with_it(world: World) -> None:
    world.fetches = None
    world.value()
    world.client.then("read", Forbidden(), Forbidden())
    for path in ("shared/made-up", KEY + "-2"):  # the second takes the first one's look-up at its word
        with pytest.raises(SecretAccessDenied):
            world.value(path)
    world.client.revoke_outside("token-1")
    world.read(KEY, fresh=True)
    world.client.data[KEY + "-2"] = {"value": "two"}
    assert world.value(KEY + "-2") == "two"


def test_many_who_are_refused_at_once_make_one_look_up(world: World) -> None:
    entered, go = threading.Event(), threading.Event()
    session = world.engine.session
    generation = session.current
    assert generation is not None

    def slow() -> bool:
        entered.set()
        assert go.wait(10)
        return False

    world.client.then("token_is_valid", slow)
    answers: list[bool] = []
    asking = threading.Semaphore(0)

    def ask() -> None:
        asking.release()
        answers.append(session.is_valid(generation, 10))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    for _ in threads:
        assert asking.acquire(timeout=10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert answers == [False] * 8
    assert world.client.count("token_is_valid") == 1


def test_a_refusal_whose_look_up_fails_is_not_taken_for_the_policys(world: World) -> None:
    world.fetches = None
    world.client.then("read", Forbidden())
    world.client.then("token_is_valid", DOWN)
    with pytest.raises(SecretUnavailable):
        world.value()
    assert world.value() == "one"


def test_a_mount_that_may_not_be_seen_is_a_refusal_too(world: World) -> None:
    world.fetches = None

    def refused(*_: object) -> object:
        raise Forbidden

    world.client.mount_of = refused  # type: ignore[method-assign,assignment]
    with pytest.raises(SecretAccessDenied):
        world.value()
    assert world.client.count("token_is_valid") == 1


# -- what is refused before any call


@pytest.mark.parametrize("path", ["", "kv/../other", "kv//x", "kv/x?list=true", "/kv/x"])
def test_a_malformed_path_costs_no_call_and_is_not_remembered(world: World, path: str) -> None:
    with pytest.raises(InvalidSecretPath):
        world.value(path)
    assert world.fetches == []
    assert world.engine.cache.refusal(path) is None


@pytest.mark.parametrize("version", [0, -1, True, "1"])
def test_a_version_is_a_whole_number_from_one(world: World, version: object) -> None:
    with pytest.raises(InvalidSecretPath):
        world.read((KEY, version))  # type: ignore[arg-type]
    assert world.fetches == []


def test_a_path_that_is_not_on_the_list_costs_no_call() -> None:
    world = World(allowed_paths="kv/public/*")
    with pytest.raises(SecretAccessDenied, match="VAULT_ALLOWED_PATHS"):
        world.value()
    assert world.client.calls == []


def test_hostile_names_leave_nothing_behind_but_their_refusals(world: World) -> None:
    world.fetches = None
    for number in range(100):
        with pytest.raises(SecretNotFound):
            world.value(f"kv/{number}")
    world.client.then("read", *[DOWN] * 100)
    for number in range(100, 200):
        with pytest.raises(SecretUnavailable):
            world.value(f"kv/{number}")
    fetcher, statics = world.engine.fetcher, world.engine.statics
    assert not fetcher._ailing
    assert not fetcher._last
    assert not statics._tasks
    world.run(90)
    assert not world.engine.cache._refusals


# -- a version of its own, and the executor


def test_a_version_is_an_entry_of_its_own(world: World) -> None:
    world.fetches = None
    world.value()
    world.read((KEY, 1))
    assert set(world.engine.cache.entries) == {KEY, (KEY, 1)}


def test_a_fault_of_our_own_in_a_fetch_lets_the_waiters_go(world: World) -> None:
    def fault(*_: object, **__: object) -> object:
        raise ZeroDivisionError

    world.client.read = fault  # type: ignore[method-assign,assignment]

    def then() -> None:
        with pytest.raises(ZeroDivisionError):
            fetch(world)

    errors = together(world, 3, then)
    assert {type(error) for error in errors} == {SecretUnavailable}
    assert world.engine.cache.under_way(KEY) is None


def test_a_rotation_and_a_read_that_miss_the_same_lease_are_one_fetch(world: World) -> None:
    world.fetches = None
    bad = world.creds()
    world.engine.reject(bad)
    world.fetches = []

    async def main() -> None:
        reader = asyncio.ensure_future(aread(world, key=CREDS, dynamic=True))
        await settle()
        rotation = threading.Thread(target=lambda: world.run(0))
        rotation.start()
        fetch(world)
        rotation.join(10)
        assert (await reader).secret != bad

    asyncio.run(main())
    assert world.client.count("read") == 2
