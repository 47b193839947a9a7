"""The cache: what it keeps, what it lets go, what it remembers of refusals, and one fetch a key."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Hashable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from vault_middleware import cache as cache_module
from vault_middleware.cache import Entry, Flight, SecretCache
from vault_middleware.errors import SecretAccessDenied, SecretNotFound, SecretUnavailable
from vault_middleware.holds import Holds
from vault_middleware.secret import DynamicSecret, Lease, Secret

CANARY = "c4n4ry"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> SecretCache:
    return SecretCache(max_entries=3, clock=clock)


def static(path: str = "a", *, read: float = 0.0) -> Entry:
    return Entry(
        Secret(path, {"value": CANARY}), fetched=0.0, fresh_until=300.0, stale_until=3900.0, fragment="", last_read=read
    )


def leased(path: str = "db", *, read: float = 0.0) -> Entry:
    secret = DynamicSecret(path, {"value": CANARY}, Lease("id", 60.0, True, 160.0))
    return Entry(secret, fetched=0.0, fresh_until=160.0, stale_until=160.0, holds=Holds(lambda: None), last_read=read)


def keys(cache: SecretCache) -> set[Hashable]:
    return set(cache.entries)


# -- entries


def test_an_entry_counts_as_read_when_it_was_fetched_unless_it_is_said_otherwise() -> None:
    secret = Secret("a", {})
    assert Entry(secret, fetched=7.0, fresh_until=9.0, stale_until=9.0).last_read == 7.0
    assert Entry(secret, fetched=7.0, fresh_until=9.0, stale_until=9.0, last_read=0.0).last_read == 0.0


def test_nothing_in_the_cache_prints_a_value(cache: SecretCache) -> None:
    entry = static()
    cache.put("a", entry)
    flight, _ = cache.lead("b")
    assert flight is not None
    flight.settle(entry)
    for shown in (repr(entry), repr(cache), repr(cache.entries), repr(flight)):
        assert CANARY not in shown


def test_what_is_put_is_current_and_what_it_replaces_is_returned(cache: SecretCache) -> None:
    first, second = static(), static()
    assert cache.put("a", first) is None
    assert cache.entries["a"] is first
    assert cache.put("a", second) is first
    assert cache.entries["a"] is second


def test_a_version_that_was_asked_for_is_an_entry_of_its_own(cache: SecretCache) -> None:
    current, old = static(), static()
    cache.put("a", current)
    cache.put(("a", 1), old)
    assert cache.entries["a"] is current
    assert cache.entries["a", 1] is old


def test_the_least_recently_read_static_entry_makes_room(cache: SecretCache) -> None:
    for name, read in (("a", 5.0), ("b", 1.0), ("c", 3.0)):
        cache.put(name, static(name, read=read))
    cache.entries["b"].last_read = 9.0  # as the hit path does
    cache.put("d", static("d", read=10.0))
    assert keys(cache) == {"a", "b", "d"}


def test_what_nobody_came_back_to_makes_room_before_what_is_in_use(cache: SecretCache) -> None:
    def put(name: str, fetched: float, read: float) -> None:
        secret = Secret(name, {"value": CANARY})
        cache.put(name, Entry(secret, fetched=fetched, fresh_until=300.0, stale_until=300.0, last_read=read))

    put("a", fetched=0.0, read=1.0)
    put("refreshed", fetched=2.0, read=1.0)
    for number in range(9):
        put(f"made-up-{number}", fetched=3.0 + number, read=3.5 + number)
    assert keys(cache) == {"a", "refreshed", "made-up-8"}


def test_replacing_an_entry_makes_no_other_give_way(cache: SecretCache) -> None:
    for name in "abc":
        cache.put(name, static(name))
    cache.put("a", static("a"))
    assert keys(cache) == {"a", "b", "c"}


def test_leases_neither_count_nor_give_way(cache: SecretCache) -> None:
    for number in range(10):
        cache.put(f"db{number}", leased(read=-1.0))
    for name in "abcd":
        cache.put(name, static(name))
    assert {key for key in keys(cache) if str(key).startswith("db")} == {f"db{number}" for number in range(10)}
    assert len(cache.entries) == 13


def test_a_place_is_free_again_when_its_entry_was_dropped_or_became_a_lease(cache: SecretCache) -> None:
    entries = {name: static(name) for name in "abc"}
    for name, entry in entries.items():
        cache.put(name, entry)
    assert cache.drop("a", entries["a"])
    cache.put("b", leased("b"))
    cache.put("d", static("d"))
    cache.put("e", static("e"))
    assert keys(cache) == {"b", "c", "d", "e"}
    cache.put("b", static("b", read=50.0))  # static again: one of the three gives way
    assert len(cache.entries) == 3
    assert "b" in cache.entries


def test_a_swap_replaces_only_what_is_still_current(cache: SecretCache) -> None:
    first, second, third = static(), static(), static()
    cache.put("a", first)
    assert cache.swap("a", first, second)
    assert cache.entries["a"] is second
    assert not cache.swap("a", first, third)
    assert cache.entries["a"] is second
    assert not cache.swap("b", first, third)
    assert "b" not in cache.entries


def test_a_drop_forgets_only_what_is_still_current(cache: SecretCache) -> None:
    first, second = static(), static()
    cache.put("a", first)
    cache.put("a", second)
    assert not cache.drop("a", first)
    assert cache.entries["a"] is second
    assert cache.drop("a", second)
    assert not cache.drop("a", second)
    assert keys(cache) == set()


def test_a_child_process_takes_over_the_static_entries_and_no_lease(clock: Clock) -> None:
    parent = SecretCache(max_entries=3, clock=clock)
    for name in "abc":
        parent.put(name, static(name))
    parent.put("db", leased())
    parent.refuse("x", SecretNotFound("x", "no"), 200.0)
    flight, _ = parent.lead("y")
    child = SecretCache(max_entries=3, clock=clock)
    child.inherit(parent)
    assert keys(child) == {"a", "b", "c"}
    assert child.entries["a"] is parent.entries["a"]
    assert child.under_way("y") is None
    child.put("d", static("d"))
    assert len(child.entries) == 3
    assert len(parent.entries) == 4
    assert flight is not None


# -- refusals


def test_a_refusal_is_remembered_until_its_time_and_each_asker_gets_a_copy(cache: SecretCache, clock: Clock) -> None:
    error = SecretNotFound("a", "no such secret")
    cache.refuse("a", error, 160.0)
    first, second = cache.refusal("a"), cache.refusal("a")
    assert isinstance(first, SecretNotFound)
    assert (first.path, str(first)) == ("a", "no such secret")
    assert len({id(error), id(first), id(second)}) == 3
    clock.now = 159.9
    assert cache.refusal("a") is not None
    clock.now = 160.0
    assert cache.refusal("a") is None


def test_a_remembered_refusal_keeps_no_traceback(cache: SecretCache) -> None:
    with pytest.raises(SecretNotFound) as caught:
        raise SecretNotFound("a", "no")
    cache.refuse("a", caught.value, 200.0)
    assert caught.value.__traceback__ is None


def test_a_later_refusal_replaces_the_earlier_one(cache: SecretCache) -> None:
    cache.refuse("a", SecretNotFound("a", "no"), 200.0)
    cache.refuse("a", SecretAccessDenied("a", "denied"), 105.0)
    assert isinstance(cache.refusal("a"), SecretAccessDenied)


def test_a_value_ends_the_refusal_of_its_own_key_alone(cache: SecretCache) -> None:
    cache.refuse("a", SecretNotFound("a", "no"), 200.0)
    cache.refuse(("a", 1), SecretNotFound("a", "no"), 200.0)
    cache.put("a", static())
    assert cache.refusal("a") is None
    assert cache.refusal(("a", 1)) is not None


def test_refusals_have_a_bound_of_their_own_and_evict_nothing_else(
    cache: SecretCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MAX_REFUSALS", 3)
    cache.put("kept", static())
    for name in "abc":
        cache.refuse(name, SecretNotFound(name, "no"), 200.0)
    cache.refuse("a", SecretNotFound("a", "no"), 200.0)  # refused again: now the newest
    cache.refuse("d", SecretNotFound("d", "no"), 200.0)
    assert [name for name in "abcd" if cache.refusal(name) is not None] == ["a", "c", "d"]
    assert keys(cache) == {"kept"}


def test_refusals_that_have_run_out_can_be_forgotten_and_the_others_stay(cache: SecretCache) -> None:
    cache.refuse("a", SecretNotFound("a", "no"), 110.0)
    cache.refuse("b", SecretNotFound("b", "no"), 120.0)
    cache.forget_refusals(110.0)
    assert cache.refusal("a") is None
    assert cache.refusal("b") is not None


# -- one fetch a key


def test_the_first_who_asks_leads_and_the_others_get_the_same_flight(cache: SecretCache) -> None:
    assert cache.under_way("a") is None
    flight, mine = cache.lead("a")
    assert mine
    assert cache.under_way("a") is flight
    assert cache.lead("a") == (flight, False)
    other, also_mine = cache.lead("b")
    assert also_mine
    assert other is not flight


def test_the_end_of_a_flight_reaches_all_who_wait_and_the_next_one_leads_anew(cache: SecretCache) -> None:
    flight, _ = cache.lead("a")
    assert flight is not None
    entry = static()
    cache.land("a", flight, entry)
    assert flight.result(0) is entry
    assert cache.under_way("a") is None
    again, mine = cache.lead("a")
    assert mine
    assert again is not flight


def test_a_failure_is_the_value_of_a_flight_and_not_raised_by_it(cache: SecretCache) -> None:
    flight, _ = cache.lead("a")
    assert flight is not None
    error = SecretUnavailable("a", "gone")
    cache.land("a", flight, error)
    assert flight.result(0) is error


def test_who_asks_for_a_fresh_value_does_not_join_a_fetch_from_before(cache: SecretCache, clock: Clock) -> None:
    flight, _ = cache.lead("a")
    clock.now = 101.0
    assert cache.lead("a", since=101.0) == (None, False)
    assert cache.under_way("a") is flight
    assert cache.lead("a", since=100.0) == (flight, False)
    assert flight is not None
    cache.land("a", flight, static())
    fresh, mine = cache.lead("a", since=101.0)
    assert mine
    assert fresh is not None
    assert fresh.started == 101.0


def test_a_flight_cannot_be_cancelled_by_one_who_waits() -> None:
    flight = Flight(0.0)
    assert not flight.cancel()
    assert not flight.cancelled()
    with pytest.raises(FutureTimeout):
        flight.result(0)
    entry = static()
    flight.settle(entry)
    assert flight.result(0) is entry


def test_only_the_first_outcome_of_a_flight_counts() -> None:
    flight = Flight(0.0)
    first = static()
    flight.settle(first)
    flight.settle(SecretUnavailable("a", "late"))
    assert flight.result(0) is first


def test_a_coroutine_that_is_cancelled_leaves_the_fetch_to_the_others() -> None:
    flight, entry = Flight(0.0), static()

    async def main() -> None:
        async def wait() -> object:
            return await asyncio.wrap_future(flight)

        gone, stays = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises((asyncio.CancelledError, CancelledError)):
            await gone
        assert not flight.cancelled()
        threading.Thread(target=flight.settle, args=(entry,)).start()
        assert await stays is entry

    asyncio.run(main())


def test_waiters_can_be_let_go_while_the_fetch_still_hangs(cache: SecretCache) -> None:
    hanging, _ = cache.lead("a")
    versioned, _ = cache.lead(("b", 2))
    assert hanging is not None
    assert versioned is not None
    cache.release_waiters(lambda path: SecretUnavailable(path, f"no answer for {path}"))
    assert str(hanging.result(0)) == "no answer for a"
    assert str(versioned.result(0)) == "no answer for b"
    # The next one does not wait for what hangs, and what hangs does not end the next one's fetch.
    flight, mine = cache.lead("a")
    assert mine
    assert flight is not None
    cache.land("a", hanging, static())
    assert cache.under_way("a") is flight
    assert not flight.done()
    cache.land("a", flight, static())
    assert cache.under_way("a") is None


def test_who_asks_for_a_fresh_value_leads_when_the_one_before_was_let_go(cache: SecretCache, clock: Clock) -> None:
    cache.lead("a")
    cache.release_waiters(lambda path: SecretUnavailable(path, "no"))
    clock.now = 105.0
    _, mine = cache.lead("a", since=105.0)
    assert mine
