"""The mounts: each is asked for once, whoever wants to know at the same time, and nobody fails for another's question."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.waiting import eventually, in_threads
from vault_middleware.errors import VaultUnavailable
from vault_middleware.vault.mounts import Mounts
from vault_middleware.vault.paths import Mount

#: Seconds: longer than anything here takes.
LONG = 120.0

APP = Mount("lotabots/app/", "kv", 2)


class Looks:
    """The clock; counts who has looked at it: once when it begins to look for a mount, again before it waits or asks."""

    def __init__(self) -> None:
        self.of: Counter[int] = Counter()

    def __call__(self) -> float:
        self.of[threading.get_ident()] += 1
        return time.monotonic()

    def wait_for(self, readers: int) -> None:
        """Until so many readers wait or ask."""
        eventually(lambda: sum(looks >= 2 for looks in list(self.of.values())) >= readers, f"{readers} readers")


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def mounts(looks: Looks) -> Mounts:
    return Mounts(clock=looks)


def never(_left: float) -> Mount:
    raise AssertionError("it was asked for again")


def test_a_mount_is_known_by_the_paths_in_it(mounts: Mounts) -> None:
    assert mounts.of("lotabots/shared/jwt") is None
    shared = Mount("lotabots/shared/", "kv", 2)
    nested = Mount("lotabots/team/database/", "database", None)
    mounts.add(shared)
    mounts.add(nested)
    assert mounts.of("lotabots/shared/jwt") is shared
    assert mounts.of("lotabots/shared/deep/er") is shared
    assert mounts.of("lotabots/team/database/creds/app") is nested
    assert mounts.of("lotabots/team/other") is None
    assert mounts.of("lotabots/shared") is None
    assert mounts.of("lotabots/shared2/jwt") is None
    assert mounts.of("other/lotabots/shared/jwt") is None
    assert mounts.of("") is None


def test_a_mount_that_was_changed_replaces_what_was_known_of_it(mounts: Mounts) -> None:
    mounts.add(Mount("shared/", "kv", 1))
    mounts.add(Mount("shared/", "kv", 2))
    found = mounts.of("shared/jwt")
    assert found is not None
    assert found.kv_version == 2


def test_eight_readers_of_eight_paths_in_one_mount_ask_once(mounts: Mounts, looks: Looks) -> None:
    asked: list[float] = []

    def ask(left: float) -> Mount:
        asked.append(left)
        looks.wait_for(8)
        return APP

    found = in_threads(8, lambda index: mounts.find(f"lotabots/app/{index}", "app", LONG, ask))
    assert found == [APP] * 8
    assert len(asked) == 1
    assert 0 < asked[0] <= LONG
    assert mounts.find("lotabots/app/later", "app", LONG, never) is APP


def test_first_segments_that_differ_are_asked_for_side_by_side(mounts: Mounts) -> None:
    both = threading.Barrier(2)

    def find(index: int) -> Mount:
        def ask(_left: float) -> Mount:
            both.wait(20)
            return Mount(f"lotabots/{index}/", "kv", 2)

        return mounts.find(f"lotabots/{index}/key", str(index), LONG, ask)

    assert [mount.path for mount in in_threads(2, find)] == ["lotabots/0/", "lotabots/1/"]


def test_mounts_that_share_their_first_segment_are_each_asked_for_once(mounts: Mounts, looks: Looks) -> None:
    asked: list[str] = []

    def find(index: int) -> Mount:
        path = f"lotabots/team/{index % 2}/"

        def ask(_left: float) -> Mount:
            asked.append(path)
            looks.wait_for(8)
            return Mount(path, "kv", 2)

        return mounts.find(f"{path}key-{index}", "team", LONG, ask)

    assert [mount.path for mount in in_threads(8, find)] == [f"lotabots/team/{index % 2}/" for index in range(8)]
    assert sorted(asked) == ["lotabots/team/0/", "lotabots/team/1/"]


def failing_first(then: Callable[[], Mount], looks: Looks, readers: int) -> Callable[[float], Mount]:
    """The first to ask fails once all *readers* are there; the others get what *then* gives."""
    turns = iter(range(readers))

    def ask(_left: float) -> Mount:
        if next(turns) == 0:
            looks.wait_for(readers)
            raise VaultUnavailable("it broke off")
        return then()

    return ask


def test_a_question_that_fails_fails_nobody_else_and_the_others_ask_side_by_side(mounts: Mounts, looks: Looks) -> None:
    rest = threading.Barrier(3)

    def answered() -> Mount:
        rest.wait(20)
        return APP

    ask = failing_first(answered, looks, 4)

    def find(index: int) -> Mount | str:
        try:
            return mounts.find(f"lotabots/app/{index}", "app", LONG, ask)
        except VaultUnavailable as error:
            return str(error)

    found = in_threads(4, find)
    assert sorted(map(str, found)) == sorted(["it broke off", *[str(APP)] * 3])
    assert mounts.find("lotabots/app/later", "app", LONG, never) is APP


def test_after_a_question_that_failed_the_next_reader_asks_anew(mounts: Mounts) -> None:
    def broken(_left: float) -> Mount:
        raise VaultUnavailable("it broke off")

    for _ in range(2):
        with pytest.raises(VaultUnavailable, match="it broke off"):
            mounts.find("lotabots/app/key", "app", LONG, broken)
    assert mounts.find("lotabots/app/key", "app", LONG, lambda _left: APP) is APP


class Hangs(threading.Event):
    """The end of a question that does not come; whoever waits for it has the time pass."""

    def __init__(self, now: list[float]) -> None:
        super().__init__()
        self._now = now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._now[0] += timeout
        return False


def test_who_waits_for_a_question_that_hangs_asks_after_half_of_its_time_with_the_rest() -> None:
    now = [100.0]
    mounts = Mounts(clock=lambda: now[0])
    left: list[float] = []

    def hanging(_left: float) -> Mount:
        mounts._questions["app"].ended = Hangs(now)

        def ask(seconds: float) -> Mount:
            left.append(seconds)
            if len(left) == 1:
                raise VaultUnavailable("no answer in time")
            return APP

        with pytest.raises(VaultUnavailable, match="no answer in time"):
            mounts.find("lotabots/app/two", "app", 8.0, ask)
        assert mounts.find("lotabots/app/three", "app", 4.0, ask) is APP
        return APP

    assert mounts.find("lotabots/app/one", "app", 10.0, hanging) is APP
    assert left == [4.0, 2.0]
