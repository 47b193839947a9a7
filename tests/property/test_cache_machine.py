"""SecretCache against a simple model of it, in whatever order things are done."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vault_middleware.cache import COME_BACK, Entry, Flight, Key, SecretCache
from vault_middleware.errors import SecretNotFound, SecretUnavailable
from vault_middleware.holds import Holds
from vault_middleware.secret import DynamicSecret, Lease, Secret

KEYS: list[Key] = ["a", "b", "c", "d", ("a", 1), ("a", 2)]
keys = st.sampled_from(KEYS)


class Model(RuleBasedStateMachine):
    """The cache, and beside it what it should hold."""

    @initialize(bound=st.integers(1, 4))
    def start(self, bound: int) -> None:
        self.now = 0.0
        self.bound = bound
        self.cache = SecretCache(max_entries=bound, clock=lambda: self.now)
        self.entries: dict[Key, Entry] = {}
        self.gone: list[tuple[Key, Entry]] = []
        self.refused: dict[Key, float] = {}
        self.flights: dict[Key, Flight] = {}
        self.started: dict[Flight, float] = {}
        self.adrift: list[tuple[Key, Flight]] = []

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    def static(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.holds is None]

    def make(self, key: Key, leased: bool) -> Entry:
        path = key if isinstance(key, str) else key[0]
        secret = DynamicSecret(path, {}, Lease("x", 1.0, True, 1.0)) if leased else Secret(path, {})
        return Entry(
            secret, fetched=self.tick(), fresh_until=0.0, stale_until=0.0, holds=Holds(lambda: None) if leased else None
        )

    # -- entries

    @rule(key=keys, leased=st.booleans())
    def put(self, key: Key, leased: bool) -> None:
        entry = self.make(key, leased)
        before = self.entries.get(key)
        expected = dict(self.entries)
        if not leased and (before is None or before.holds is not None) and len(self.static()) >= self.bound:
            # First what was not read again a second after it was fetched.
            oldest = min(self.static(), key=lambda each: (each.last_read - each.fetched >= COME_BACK, each.last_read))
            victim = next(each for each in expected if expected[each] is oldest)
            self.gone.append((victim, expected.pop(victim)))
        assert self.cache.put(key, entry) is before
        if before is not None:
            self.gone.append((key, before))
        self.entries = {**expected, key: entry}
        self.refused.pop(key, None)

    @rule(key=keys)
    def read(self, key: Key) -> None:
        entry = self.cache.entries.get(key)
        assert entry is self.entries.get(key)
        if entry is not None:
            entry.last_read = self.tick()

    @rule(key=keys)
    def swap(self, key: Key) -> None:
        before = self.entries.get(key)
        if before is not None:
            entry = self.make(key, before.holds is not None)
            assert self.cache.swap(key, before, entry)
            self.entries[key] = entry
            self.gone.append((key, before))

    @rule(key=keys)
    def drop(self, key: Key) -> None:
        before = self.entries.pop(key, None)
        if before is not None:
            assert self.cache.drop(key, before)
            self.gone.append((key, before))

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def come_too_late(self, data: st.DataObject) -> None:
        key, entry = data.draw(st.sampled_from(self.gone))
        assert not self.cache.swap(key, entry, self.make(key, entry.holds is not None))
        assert not self.cache.drop(key, entry)

    @rule(key=keys)
    def a_child_inherits(self, key: Key) -> None:
        child = SecretCache(max_entries=self.bound, clock=lambda: self.now)
        child.inherit(self.cache)
        expected = {each: entry for each, entry in self.entries.items() if entry.holds is None}
        assert child.entries == expected
        child.put(key, self.make(key, leased=False))
        assert len(child.entries) == min(self.bound, len(expected.keys() | {key}))

    # -- refusals

    @rule(key=keys, ttl=st.integers(0, 10))
    def refuse(self, key: Key, ttl: int) -> None:
        until = self.now + ttl
        self.cache.refuse(key, SecretNotFound("x", str(until)), until)
        self.refused[key] = until

    @rule()
    def forget_refusals(self) -> None:
        self.cache.forget_refusals(self.now)

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    # -- flights

    @rule(key=keys, age=st.none() | st.integers(0, 10))
    def lead(self, key: Key, age: int | None) -> None:
        self.tick()
        since = None if age is None else self.now - age
        known = self.flights.get(key)
        flight, mine = self.cache.lead(key, since=since)
        if known is None or known.done():
            assert mine
            assert flight is not None
            assert flight is not known
            assert flight.started == self.now
            if known is not None:
                self.adrift.append((key, known))
            self.flights[key] = flight
        elif since is not None and known.started < since:
            assert (flight, mine) == (None, False)
        else:
            assert (flight, mine) == (known, False)

    @rule(key=keys)
    def land(self, key: Key) -> None:
        flight = self.flights.pop(key, None)
        if flight is not None:
            known = flight.result(0) if flight.done() else None
            outcome = self.make(key, leased=False)
            self.cache.land(key, flight, outcome)
            assert flight.result(0) is (outcome if known is None else known)

    @rule()
    def release_waiters(self) -> None:
        self.cache.release_waiters(lambda path: SecretUnavailable(path, "down"))
        assert all(flight.done() for flight in self.flights.values())

    @precondition(lambda self: self.adrift)
    @rule()
    def land_what_was_passed_by(self) -> None:
        key, flight = self.adrift.pop()
        self.cache.land(key, flight, self.make(key, leased=False))

    # -- always

    @invariant()
    def the_cache_holds_what_the_model_holds(self) -> None:
        assert self.cache.entries == self.entries
        assert len(self.static()) <= self.bound
        for key in KEYS:
            assert self.cache.under_way(key) is self.flights.get(key)
            until = self.refused.get(key)
            refusal = self.cache.refusal(key)
            assert (refusal is None) == (until is None or until <= self.now)
            assert refusal is None or str(refusal) == str(until)


TestCacheAgainstItsModel = Model.TestCase
TestCacheAgainstItsModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
