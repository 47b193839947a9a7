"""Fuzzed paths and hostile answers against real managers; the full numbers are those of ``python -m tests.security``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vault_middleware import SecretsManager
from vault_middleware.errors import InvalidSecretPath

from .campaign import campaign
from .oracles import lands_below
from .scale import ANSWERS, FULL, PATHS
from .stub import Asked, stubbed

FRAGMENTS = [
    *("..", ".", "/", "//", "\\", "%2e", "%2E%2e", "%252e", "%25", "%c0%ae", "%2f", "%5c", "%00", "..;", ";"),
    *("?", "#", "?list=true", "#x", "\x00", "\r\n", "\r\nX-Vault-Token: x", "\t", " ", "\x7f", "\x85", "\u2028"),
    *("．", "／", "․", "‥", "…", "∕", "⁄", "＼", "％", "﹒", "。", "\u202e", "\ufeff", "\u200b", "\ud800", "\udcff"),
    *(
        "sys",
        "auth",
        "SYS",
        "data",
        "metadata",
        "lotabots",
        "jwt",
        "a" * 300,
        "é",
        "e\u0301",
        "日本",
        "𝟘",
        "~",
        "@",
        ":",
    ),
]
tenants = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=6).map("".join)


@pytest.fixture(scope="module")
def manager() -> Iterator[tuple[SecretsManager, Asked]]:
    with stubbed(cache_max_entries=64) as (manager, asked):
        yield manager, asked


#: Tenants an example; each is tried in two places.
EACH = 10


@settings(
    max_examples=PATHS // (2 * EACH),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(names=st.lists(tenants, min_size=EACH, max_size=EACH))
@pytest.mark.timeout(3600 if FULL else 180)
def test_whatever_a_tenant_is_called_nothing_but_its_own_secret_is_asked_for(
    manager: tuple[SecretsManager, Asked], names: list[str]
) -> None:
    secrets, asked = manager
    for path in [f"shared/{name}" for name in names] + [f"{name}/x" for name in names]:
        asked.paths.clear()
        try:
            secret = secrets.get_secret(path, fresh=True)
        except InvalidSecretPath:
            assert not asked.paths
            continue
        assert secret.path == path
        *mounts, target = asked.paths
        lands_below("/v1/lotabots/shared/data/" if path.startswith("shared/") else "/v1/lotabots/", target)
        assert unquote(target, errors="strict").replace("/data/", "/", 1) == f"/v1/lotabots/{path}"
        for mount in mounts:
            lands_below("/v1/sys/internal/ui/mounts/lotabots/", mount)


@pytest.mark.timeout(3600 if FULL else 180)
def test_a_hostile_server_gets_only_documented_errors_in_time_and_the_cache_goes_on(tmp_path: Path) -> None:
    report = campaign(ANSWERS, tmp_path)
    assert not report.problems, str(report)
    assert sum(report.answers.values()) >= ANSWERS
    assert len(report.answers) == 12, f"an endpoint was never reached: {report.answers}"
