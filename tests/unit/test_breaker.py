"""The breaker: when it opens, how it asks, and what its closing wakes; see docs/lifecycle.md."""

from __future__ import annotations

import threading

import pytest
from prometheus_client import CollectorRegistry

from tests.engine_fakes import KEY, Clock, World, at, middle
from tests.scripted import ScriptedServer, answer
from tests.waiting import eventually
from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.engine.breaker import Breaker
from vault_middleware.errors import SecretUnavailable, VaultUnavailable
from vault_middleware.events import Event, ServerDown, ServerUp
from vault_middleware.renewal.schedule import AFTER_OUTAGE

DOWN = VaultUnavailable("the server does not answer; look at it")
WAIT = 10.0


class Probed:
    """A breaker whose probes answer as the test says: each an error or None, and the seconds it takes."""

    def __init__(self, *script: tuple[VaultUnavailable | None, float]) -> None:
        self.clock = Clock()
        self.script = list(script)
        self.probes: list[float] = []
        self.events: list[Event] = []
        self.told: list[str] = []
        self.started = 0
        self.breaker = Breaker(
            self.probe,
            emit=self.events.append,
            uniform=middle,
            clock=self.clock,
            opened=lambda: self.told.append(f"opened {self.breaker.down}"),
            closed=lambda: self.told.append(f"closed {self.breaker.down}"),
        )
        self.breaker._start = self._start  # type: ignore[method-assign]

    def _start(self) -> None:
        self.started += 1

    def probe(self, timeout: float) -> None:
        assert timeout <= 0.6
        self.probes.append(self.clock.now)
        failure, seconds = self.script.pop(0)
        self.clock.now += seconds
        if failure is not None:
            raise failure.again()


def test_it_opens_on_a_failed_probe_and_on_nothing_else() -> None:
    probed = Probed((None, 0.0))
    probed.breaker.suspect()
    assert not probed.breaker.down
    assert probed.breaker._look() is None
    assert not probed.breaker.down
    assert probed.told == []


def test_a_slow_failure_opens_it_at_once() -> None:
    probed = Probed((DOWN, 0.6))
    probed.breaker.suspect()
    assert probed.breaker._look() == 1.0
    assert probed.breaker.down
    assert probed.breaker.reason == str(DOWN)
    assert probed.told == ["opened True"]
    assert [type(event) for event in probed.events] == [ServerDown]


def test_a_quick_failure_may_be_one_lost_connection_and_is_asked_about_again() -> None:
    probed = Probed((DOWN, 0.01), (None, 0.01))
    probed.breaker.suspect()
    assert probed.breaker._look() is None
    assert not probed.breaker.down
    twice = Probed((DOWN, 0.01), (DOWN, 0.01))
    twice.breaker.suspect()
    assert twice.breaker._look() is not None
    assert twice.breaker.down


def test_while_it_is_open_each_look_is_one_probe_and_the_outage_is_told_once() -> None:
    probed = Probed((DOWN, 0.6), (DOWN, 0.01), (DOWN, 0.01), (None, 0.01))
    probed.breaker.suspect()
    for _ in range(3):
        assert probed.breaker._look() is not None
    assert probed.breaker._look() is None
    assert len(probed.probes) == 4
    assert probed.told == ["opened True", "closed False"]
    assert [type(event) for event in probed.events] == [ServerDown, ServerUp]
    up = probed.events[1]
    assert isinstance(up, ServerUp)
    assert up.seconds == pytest.approx(0.63)


@pytest.mark.parametrize(("share", "pause"), [(0.0, 0.5), (1.0, 1.5)])
def test_the_next_probe_comes_after_half_a_second_to_one_and_a_half(share: float, pause: float) -> None:
    world = World(uniform=at(share))
    world.client.down = DOWN
    world.engine.breaker.suspect()
    world.run(30)
    probes = world.client.times("probe")
    assert probes[-1] - probes[-2] == pytest.approx(pause)


def test_suspicions_of_many_are_one_probe_at_a_time() -> None:
    probed = Probed((DOWN, 0.6))
    for _ in range(10):
        probed.breaker.suspect()
    assert probed.started == 1
    probed.breaker._look()
    probed.breaker.suspect()
    assert probed.started == 1  # it is being watched already


def test_after_a_good_answer_a_suspicion_is_not_followed_up_for_a_quarter_of_a_second() -> None:
    probed = Probed((None, 0.0), (None, 0.0))
    probed.breaker.suspect()
    probed.breaker._look()
    probed.clock.now += 0.2
    probed.breaker.suspect()
    assert probed.started == 1
    probed.clock.now += 0.1
    probed.breaker.suspect()
    assert probed.started == 2


def test_a_stopped_breaker_asks_no_more_and_says_nothing_of_a_probe_under_way() -> None:
    probed = Probed((DOWN, 0.6))
    probed.breaker.suspect()
    real = probed.probe

    def stopped_meanwhile(timeout: float) -> None:
        probed.breaker.stop()
        real(timeout)

    probed.breaker._probe = stopped_meanwhile
    assert probed.breaker._look() is None
    assert not probed.breaker.down
    assert probed.told == []
    probed.breaker.suspect()
    assert probed.started == 1


def test_its_thread_probes_until_the_server_answers() -> None:
    answers: list[VaultUnavailable | None] = [DOWN, DOWN, DOWN, None]
    closed = threading.Event()

    def probe(_timeout: float) -> None:
        failure = answers.pop(0)
        if failure is not None:
            raise failure

    breaker = Breaker(
        probe, emit=lambda _: None, uniform=lambda _low, _high: 0.0, opened=lambda: None, closed=closed.set
    )
    breaker.suspect()
    assert closed.wait(WAIT)
    assert not breaker.down
    assert answers == []


# -- in its place


def test_a_database_that_fails_behind_a_healthy_server_is_no_reason_to_open(world: World) -> None:
    world.client.then("read", *[VaultUnavailable("500")] * 100)
    for _ in range(20):
        with pytest.raises(SecretUnavailable):
            world.creds()
        world.run(1)
    assert world.client.count("probe") >= 10
    assert not world.engine.breaker.down


def test_a_read_that_the_rate_limit_leaves_no_turn_for_says_so_and_is_no_reason_to_open() -> None:
    with ScriptedServer() as server:
        mount = {"path": "app/", "type": "kv", "options": {"version": "2"}}
        server.on("/v1/sys/internal/ui/mounts/app/key", answer({"data": mount}))
        server.on("/v1/sys/health", answer({"initialized": True, "sealed": False}))
        config = SecretConfig(
            vault_addr=server.url,
            auth_method="proxy",
            namespace="",
            rate_limit="0.1:1",  # type: ignore[arg-type]
            request_timeout=2.0,
            startup="lazy",
            audit_log="off",
        )
        with SecretsManager(config, registry=CollectorRegistry()) as manager:
            with pytest.raises(SecretUnavailable, match="VAULT_RATE_LIMIT leaves no request"):
                manager.get_secret("app/key")
            eventually(lambda: not manager._engine.breaker._probing, "the question for the health to be answered")
            assert server.to("/v1/sys/health")
            assert manager.health()["server"] == {"up": True, "last_error": None}
            # The next one is not told of an outage either.
            with pytest.raises(SecretUnavailable, match="VAULT_RATE_LIMIT leaves no request"):
                manager.get_secret("app/key")


@pytest.fixture
def world() -> World:
    return World(cache_ttl=100)


@pytest.mark.parametrize("who", ["reader", "lease", "token", "log-in", "hanging"])
def test_whoever_meets_a_failure_has_the_server_asked(world: World, who: str) -> None:
    if who != "log-in":
        world.creds()
    if who == "token":
        world.client.then("renew_token", DOWN)
        world.run(1477)
    elif who == "lease":
        world.client.then("renew_lease", DOWN)
        world.run(25)
    elif who == "hanging":
        world.client.hangs_for = 0.4
        world.run(0.5)
    elif who == "log-in":
        world.client.then("log_in", DOWN)
        with pytest.raises(VaultUnavailable):
            world.engine.session.get(1)
        world.run(0)
    else:
        world.client.then("read", DOWN)
        with pytest.raises(SecretUnavailable):
            world.value()
        world.run(0)
    assert world.client.count("probe") >= 1


def test_while_it_is_open_a_read_fails_at_once_and_without_a_call(world: World) -> None:
    world.client.down = DOWN
    world.engine.breaker.suspect()
    world.run(0)
    calls = len(world.client.calls)
    with pytest.raises(SecretUnavailable, match="does not answer"):
        world.value()
    assert len(world.client.calls) == calls


def test_who_waits_for_a_fetch_when_it_opens_goes_on_at_once(world: World) -> None:
    world.value()
    world.clock.now += 150
    world.fetches = []
    answer: list[object] = []
    entered = threading.Event()
    cache = world.engine.cache
    real = cache.lead

    def lead(key: object, **options: object) -> object:
        led = real(key, **options)  # type: ignore[arg-type]
        entered.set()
        return led

    cache.lead = lead  # type: ignore[method-assign,assignment]
    thread = threading.Thread(target=lambda: answer.append(world.value()))
    thread.start()
    assert entered.wait(WAIT)
    world.client.down = DOWN
    world.engine.breaker._probing = True  # no second one from the waiter
    assert world.engine.breaker._look() is not None
    thread.join(WAIT)
    assert answer == ["one"]  # the stale value, while the fetch itself still hangs
    assert world.engine.cache.under_way(KEY) is not None


def test_when_it_closes_the_log_in_the_leases_and_the_static_secrets_go_on(world: World) -> None:
    world.client.lease_ttl = 600
    world.value()
    world.creds()
    world.client.down = DOWN
    world.run(400)
    world.client.down = None
    back = world.now
    world.run(1.5 + AFTER_OUTAGE)
    names = {call.name for call in world.client.calls if call.at >= back}
    assert {"probe", "renew_lease", "read"} <= names
    assert world.engine.breaker.reason
    assert world.engine.health()["server"]["up"]
