"""The cache and the holds under threads: one fetch a key, bounds that hold, and no lease revoked while it is held.

The interleavings of a reader and a rotation are not left to luck: threads are stopped at every line of the holds, and the
orders in which they could go on are tried one by one.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from vault_middleware.cache import Entry, Key, Outcome, SecretCache
from vault_middleware.errors import SecretNotFound, SecretUnavailable, VaultMiddlewareError
from vault_middleware.holds import Holds
from vault_middleware.secret import DynamicSecret, Lease, Secret

WAIT = 30.0


def static(path: str = "a") -> Entry:
    return Entry(Secret(path, {}), fetched=0.0, fresh_until=1.0, stale_until=1.0)


def leased(holds: Holds) -> Entry:
    secret = DynamicSecret("db", {}, Lease("x", 1.0, True, 1.0))
    return Entry(secret, fetched=0.0, fresh_until=1.0, stale_until=1.0, holds=holds)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What *work* gives in *count* threads that begin at the same moment."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait(WAIT)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return [future.result(WAIT) for future in [pool.submit(run, number) for number in range(count)]]


# -- one fetch a key


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("failing", [False, True])
def test_64_threads_that_miss_one_key_make_one_fetch_and_share_its_outcome(failing: bool) -> None:
    cache = SecretCache(max_entries=8)
    fetches: list[str] = []
    asked, all_asked = threading.Semaphore(0), 63

    def get(_: int) -> Outcome:
        flight, mine = cache.lead("a")
        assert flight is not None
        if not mine:
            asked.release()
            return flight.result(WAIT)
        fetches.append("a")
        outcome: Outcome = static()
        for _ in range(all_asked):  # the fetch takes until everyone has asked
            assert asked.acquire(timeout=WAIT)
        if failing:
            outcome = SecretUnavailable("a", "no answer")
        elif isinstance(outcome, Entry):
            cache.put("a", outcome)
        cache.land("a", flight, outcome)
        return outcome

    outcomes = together(64, get)
    assert fetches == ["a"]
    assert len({id(outcome) for outcome in outcomes}) == 1
    assert isinstance(outcomes[0], VaultMiddlewareError) is failing
    assert cache.under_way("a") is None


@pytest.mark.usefixtures("switching")
def test_threads_that_come_while_a_fetch_lands_find_its_value_or_join_it() -> None:
    """Nobody fetches again once a fetch has begun: what was put before the landing is seen after the lead."""
    for _ in range(100):
        cache = SecretCache(max_entries=8)
        fetches: list[int] = []

        def get(number: int, cache: SecretCache = cache, fetches: list[int] = fetches) -> Outcome:
            entry = cache.entries.get("a")
            if entry is not None:
                return entry
            flight, mine = cache.lead("a")
            assert flight is not None
            if not mine:
                return flight.result(WAIT)
            current = cache.entries.get("a")
            if current is None:
                fetches.append(number)
                current = static()
                cache.put("a", current)
            cache.land("a", flight, current)
            return current

        assert len({id(outcome) for outcome in together(8, get)}) == 1
        assert len(fetches) == 1


@pytest.mark.usefixtures("switching")
def test_fetches_of_different_keys_do_not_wait_for_each_other() -> None:
    cache = SecretCache(max_entries=64)
    meeting = threading.Barrier(16)

    def get(number: int) -> Outcome:
        key = f"k{number}"
        flight, mine = cache.lead(key)
        assert mine
        assert flight is not None
        meeting.wait(WAIT)  # all sixteen are under way at once
        entry = static(key)
        cache.put(key, entry)
        cache.land(key, flight, entry)
        return flight.result(WAIT)

    together(16, get)
    assert len(cache.entries) == 16


# -- the table


@pytest.mark.usefixtures("switching")
def test_the_bound_holds_and_the_count_does_not_drift_whatever_threads_do_at_once() -> None:
    bound = 6
    cache = SecretCache(max_entries=bound, clock=lambda: 0.0)
    keys: list[Key] = ["a", "b", "c", "d", "e", "f", "g", "h", ("a", 1), ("b", 2)]
    over: list[int] = []

    def work(number: int) -> None:
        choose = random.Random(number)
        for _ in range(400):
            key = choose.choice(keys)
            current = cache.entries.get(key)
            if current is not None:
                current.last_read = choose.random()
            match choose.randrange(8):
                case 0 | 1 | 2:
                    cache.put(key, static())
                case 3:
                    cache.put(key, leased(Holds(lambda: None)))
                case 4 if current is not None:
                    cache.drop(key, current)
                case 5 if current is not None:
                    cache.swap(key, current, static() if current.holds is None else leased(current.holds))
                case 6:
                    cache.refuse(key, SecretNotFound("x", "no"), choose.choice([-1.0, 1.0]))
                    cache.refusal(key)
                    cache.forget_refusals(0.0)
                case _:
                    child = SecretCache(max_entries=bound)
                    child.inherit(cache)
                    if len(child.entries) > bound:
                        over.append(len(child.entries))

    together(8, work)
    # A list taken without the lock may see one entry go and another come, so `over` allows for the writers there were.
    assert all(count <= bound + 8 for count in over)
    for key, entry in list(cache.entries.items()):
        if entry.holds is not None:
            cache.drop(key, entry)
    assert len(cache.entries) <= bound
    # The count is right: exactly the bound fits in, no less and no more.
    for number in range(3 * bound):
        cache.put(f"new{number}", static())
    assert len(cache.entries) == bound


@pytest.mark.usefixtures("switching")
def test_of_many_threads_that_swap_or_drop_one_entry_one_succeeds() -> None:
    for _ in range(100):
        cache = SecretCache(max_entries=2)
        entry = static()
        cache.put("a", entry)

        def change(number: int, cache: SecretCache = cache, entry: Entry = entry) -> bool:
            return cache.swap("a", entry, static()) if number % 2 else cache.drop("a", entry)

        assert sum(together(8, change)) == 1


@pytest.mark.usefixtures("switching")
def test_of_many_threads_that_end_one_flight_one_is_heard_and_none_fails() -> None:
    for _ in range(50):
        cache = SecretCache(max_entries=2)
        flight, _ = cache.lead("a")
        assert flight is not None
        outcomes: list[Outcome] = [static() for _ in range(8)]
        heard: list[Outcome] = []
        flight.add_done_callback(lambda done, heard=heard: heard.append(done.result()))  # type: ignore[misc]

        def end(
            number: int, cache: SecretCache = cache, flight: Any = flight, outcomes: list[Outcome] = outcomes
        ) -> None:
            if number == 0:
                cache.release_waiters(lambda path: SecretUnavailable(path, "down"))
            else:
                cache.land("a", flight, outcomes[number])

        together(8, end)
        assert heard == [flight.result(0)]
        assert cache.under_way("a") is None


# -- holds: every interleaving of readers and a rotation


def here() -> None:
    """A place outside the holds at which a paced thread stops too."""
    return


CODE = frozenset({here.__code__, *(member.__code__ for member in vars(Holds).values() if hasattr(member, "__code__"))})


class Paced:
    """A thread that stops at each line of the holds, and :func:`here`, until it is told to go on."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self.done = False
        self.failure: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        assert self._go.acquire(timeout=WAIT)
        sys.settrace(self._trace)
        try:
            self._work()
        except BaseException as error:
            self.failure = error
        finally:
            sys.settrace(None)
            self.done = True
            self._stopped.release()

    def _trace(self, frame: FrameType, _event: str, _argument: object) -> Any:
        return self._stop if frame.f_code in CODE else None

    def _stop(self, _frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            self._stopped.release()
            assert self._go.acquire(timeout=WAIT)
        return self._stop

    def step(self) -> None:
        """Run to the next line."""
        self._go.release()
        assert self._stopped.acquire(timeout=WAIT)


def interleavings(start: Callable[[], list[Callable[[], None]]], check: Callable[[], None], switches: int) -> int:
    """Run what *start* gives in every order with at most *switches* changes away from one that could go on."""
    plan: list[int] = []
    count = 0
    while True:
        threads = [Paced(work) for work in start()]
        path: list[tuple[int, list[int]]] = []
        last, left = 0, switches
        while runnable := [number for number, thread in enumerate(threads) if not thread.done]:
            free = last not in runnable
            options = runnable if free or left else [last]
            options = sorted(options, key=lambda number: number != last)
            chosen = plan[len(path)] if len(path) < len(plan) else options[0]
            left -= not free and chosen != last
            path.append((chosen, options))
            threads[chosen].step()
            last = chosen
        failures = [thread.failure for thread in threads if thread.failure is not None]
        assert not failures, failures
        check()
        count += 1
        while path and path[-1][0] == path[-1][1][-1]:
            path.pop()
        if not path:
            return count
        chosen, options = path[-1]
        plan = [each for each, _ in path[:-1]] + [options[options.index(chosen) + 1]]


class World:
    """One lease, its readers and its rotation, as the gate and the keeper go about it."""

    def __init__(self, holders: int) -> None:
        self.cache = SecretCache(max_entries=1)
        self.revoked = False
        self.violations: list[str] = []
        self.served = 0
        self.holds = Holds(self.tend)
        self.cache.put("db", leased(self.holds))
        self.works: list[Callable[[], None]] = [lambda: self.read(object()) for _ in range(holders)]
        self.works.append(self.rotate)

    def tend(self) -> None:
        """What the keeper does about a lease that drains."""
        if not self.holds:
            self.revoked = True

    def read(self, holder: object) -> None:
        entry = self.cache.entries["db"]
        holds = entry.holds
        assert holds is not None
        holds.take(holder)
        here()
        current = self.cache.entries.get("db")
        got = current is not None and current.holds is holds
        if got and holds is self.holds:
            self.served += 1
            self.use()
        holds.give_back(holder)

    def use(self) -> None:
        before = self.revoked
        here()
        if before or self.revoked:
            self.violations.append("revoked while it was held")

    def rotate(self) -> None:
        here()
        self.cache.put("db", leased(Holds(lambda: None)))
        self.holds.drain()


@pytest.mark.parametrize(("holders", "switches"), [(1, 4), (2, 2)])
def test_no_lease_is_revoked_while_it_is_held_and_none_is_forgotten(holders: int, switches: int) -> None:
    worlds: list[World] = []

    def start() -> list[Callable[[], None]]:
        worlds[:] = [World(holders)]
        return worlds[0].works

    served: set[int] = set()

    def check() -> None:
        world = worlds[0]
        assert world.violations == []
        assert world.revoked, "the last holder has ended, and nobody revoked the lease"
        served.add(world.served)

    assert interleavings(start, check, switches) > 100
    assert served == set(range(holders + 1))  # the orders tried are different ones indeed


def test_a_holder_that_takes_a_lease_twice_gives_it_back_once() -> None:
    drained: list[int] = []
    holds = Holds(lambda: drained.append(1))
    holder = object()
    holds.take(holder)
    holds.take(holder)
    holds.drain()
    assert holds
    assert drained == []
    holds.give_back(holder)
    assert not holds
    assert drained == [1]


def test_holders_that_are_equal_are_still_different_holders() -> None:
    drained: list[int] = []
    holds = Holds(lambda: drained.append(1))
    first, second = [0], [0]  # equal, and not even hashable
    holds.take(first)
    holds.take(second)
    holds.drain()
    holds.give_back(first)
    assert drained == []
    holds.give_back(second)
    assert drained == [1]


def test_a_holder_that_never_took_the_lease_ends_nothing() -> None:
    drained: list[int] = []
    holds = Holds(lambda: drained.append(1))
    holder = object()
    holds.take(holder)
    holds.give_back(object())
    assert holds
    holds.give_back(holder)
    assert drained == []  # nothing drains before a rotation
    holds.drain()
    assert drained == [1]
    assert holds.draining


@pytest.mark.usefixtures("switching")
def test_the_last_of_64_holders_and_no_earlier_one_ends_a_draining_lease() -> None:
    for _ in range(10):
        held_at_the_end: list[bool] = []
        holds: Holds = Holds(lambda: held_at_the_end.append(bool(holds)))  # noqa: B023  # called within the round
        holders = [object() for _ in range(64)]
        together(64, lambda number: holds.take(holders[number]))  # noqa: B023
        holds.drain()
        assert held_at_the_end == []
        together(64, lambda number: holds.give_back(holders[number]))  # noqa: B023
        assert held_at_the_end
        assert not any(held_at_the_end)
