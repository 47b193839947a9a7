"""Made-up names: however many tenants someone invents, they push out nobody else's secret and cost the server little."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from vault_middleware import cache as cache_module
from vault_middleware.cache import SecretCache
from vault_middleware.errors import (
    LeaseLimitReached,
    SecretAccessDenied,
    SecretError,
    SecretNotFound,
    VaultMiddlewareError,
)

from .scale import FULL, NAMES
from .stub import stubbed

#: The secrets of somebody else, read before; one in the folder of the made-up names, which someone came back to.
THEIRS = ["api-gateway/api-key", "api-gateway/other", "team/a/b", "shared/theirs"]
LEASED = "db/creds/app"

#: A leased one that is read for the first time only afterwards.
LATER = "db/other/creds/app"

#: Names a kind.
EACH = NAMES


def none(endpoint: str, path: str) -> tuple[int, dict[str, Any]] | None:
    """A server that knows no made-up name."""
    if "made-up" not in path or endpoint == "mount":
        return None
    return (400, {"errors": ['unknown role: "x"']}) if endpoint == "lease" else (404, {"errors": []})


def forbidden(endpoint: str, path: str) -> tuple[int, dict[str, Any]] | None:
    """A server whose policy permits no made-up name."""
    return (403, {"errors": ["permission denied"]}) if "made-up" in path and endpoint != "mount" else None


def all_of_them(endpoint: str, path: str) -> tuple[int, dict[str, Any]] | None:
    """A server that has every secret that anybody makes up."""
    return None


@pytest.mark.timeout(3600 if FULL else 180)
@pytest.mark.parametrize(
    ("answering", "name", "ends"),
    [
        (none, "shared/made-up-{}", {SecretNotFound}),
        (none, "db/creds/made-up-{}", {SecretNotFound}),
        (forbidden, "shared/made-up-{}", {SecretAccessDenied}),
        (all_of_them, "shared/made-up-{}", set()),
        (all_of_them, "db/creds/made-up-{}", {LeaseLimitReached}),
    ],
    ids=["not found", "leased, not found", "denied", "found", "leased, found"],
)
def test_made_up_names_push_out_nothing_and_cost_one_request_each(
    answering: Callable[[str, str], tuple[int, dict[str, Any]] | None],
    name: str,
    ends: set[type[SecretError]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The remembering of a refusal by the policy ends after 5 s, which a run on a busy machine may take.
    monkeypatch.setattr("vault_middleware.engine.fetcher.DENIED_TTL", 3600.0)
    with stubbed(answering, cache_negative_ttl=3600.0, cache_max_entries=256, max_leases=32) as (manager, asked):
        theirs = [manager.get_secret(path) for path in THEIRS]
        manager._engine.cache.entries[THEIRS[-1]].last_read += 2.0  # as whoever comes back to it does
        lease = manager.get_dynamic_secret(LEASED)
        asked.paths.clear()
        asked.look_ups = 0
        begun = time.monotonic()
        met: Counter[type[VaultMiddlewareError] | None] = Counter()
        for number in range(EACH):
            for _ in range(2):
                try:
                    manager.get_secret(name.format(number))
                    met[None] += 1
                except VaultMiddlewareError as error:
                    met[type(error)] += 1
        assert set(met) - {None} == ends
        if ends != {LeaseLimitReached} and ends:
            for number in range(0, EACH, 7):  # remembered to the last
                with pytest.raises(SecretError):
                    manager.get_secret(name.format(number))
        reads = Counter(path for path in asked.paths if "/mounts/" not in path)
        assert max(reads.values()) == 1
        assert len(reads) == (23 if ends == {LeaseLimitReached} else EACH)  # what is over the bound is not asked for
        assert len(asked.paths) - len(reads) <= 1, "one question for the mount"
        assert asked.look_ups <= time.monotonic() - begun + 1, "one a second, however many are denied"
        assert [manager.get_secret(path) for path in THEIRS] == theirs
        assert all(manager.get_secret(path) is secret for path, secret in zip(THEIRS, theirs, strict=True))
        assert manager.get_dynamic_secret(LEASED) is lease
        assert manager.get_dynamic_secret(LATER)
        cache = manager._engine.cache
        assert len(cache.entries) <= 256 + 32
        assert cache._refusal_bytes <= cache_module.MAX_REFUSAL_BYTES
        assert not manager._engine.fetcher._ailing
        assert len(manager._engine.fetcher._last) <= 32


def test_made_up_mounts_are_not_remembered_where_the_version_is_given() -> None:
    with stubbed(none, kv_version=2) as (manager, _asked):
        for number in range(300):
            with pytest.raises(SecretNotFound):
                manager.get_secret(f"made-up-{number}/x")
        assert not manager._engine.client._mounts._by_path


def refused(cache: SecretCache, path: str, text: str) -> None:
    cache.refuse(path, SecretNotFound(path, text), 100.0)


def test_long_names_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MAX_REFUSAL_BYTES", 100_000)
    cache = SecretCache(max_entries=4, clock=lambda: 0.0)
    for number in range(1000):
        path = f"shared/{number:01000d}"
        refused(cache, path, f"there is no secret {path!r}; check the path")
    assert 50 < len(cache._refusals) < 100
    assert cache.refusal(f"shared/{999:01000d}") is not None
    assert cache.refusal(f"shared/{0:01000d}") is None
    cache.forget_refusals(100.0)
    assert cache._refusal_bytes == 0


@pytest.mark.parametrize("path", ["shared/x", "e", "shared/e", "a/a/a", "é/日本", "'\"/{}", "x/\U0001f600"])
def test_a_remembered_refusal_says_what_the_first_one_said(path: str) -> None:
    cache = SecretCache(max_entries=4, clock=lambda: 0.0)
    mount, _, rest = path.partition("/")
    for text in (
        f"there is no secret {path!r} in the mount '{mount}/'; check the path",
        f'the policy does not permit reading {path!r}; add this line: path "{mount}/data/{rest}" {{…}}',
        "something without it",
    ):
        refused(cache, path, text)
        remembered = cache.refusal(path)
        assert isinstance(remembered, SecretNotFound)
        assert (str(remembered), remembered.path) == (text, path)


def test_the_wording_is_kept_once_for_all_names_of_a_mount() -> None:
    cache = SecretCache(max_entries=4, clock=lambda: 0.0)
    for number in range(100):
        path = f"shared/tenant-{number}"
        refused(cache, path, f"the policy does not permit {path!r}; add shared/data/tenant-{number}")
    assert len(cache._wordings) == 1


def test_a_full_folder_makes_room_and_no_other() -> None:
    with stubbed(cache_max_entries=8) as (manager, _asked):
        for path in ("a/1", "b/c/2", "b/c/3"):
            manager.get_secret(path)
        for number in range(50):
            manager.get_secret(f"shared/{number}")
        entries = manager._engine.cache.entries
        assert {"a/1", "b/c/2", "b/c/3", "shared/49"} <= set(entries)
        assert len(entries) == 8
