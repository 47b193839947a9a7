"""SecretConfig under arbitrary input: it is either refused in our own words, or comes out usable and unchanging."""

from __future__ import annotations

import dataclasses
import math
import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vault_middleware.config import VARIABLES, SecretConfig
from vault_middleware.errors import ConfigurationError

NAMES = [name for variable in VARIABLES for name in (variable.name, variable.also) if name]
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
#: What may stand in an environment: any text without NUL, bytes that are not UTF-8 included.
texts = st.text(st.characters(exclude_characters="\0"), max_size=40)
likely = st.sampled_from(
    [
        "",
        "0",
        "1",
        "2",
        "true",
        "5m",
        "1h30m",
        "token",
        "jwt",
        "off",
        "a/b",
        "a/*",
        "10:20",
        "https://vault:8200",
        "/tmp",
    ]
)
environments = st.dictionaries(st.sampled_from(NAMES), texts | likely)
segments = st.text(string.ascii_letters + string.digits + "-_.~", min_size=1, max_size=8).filter(
    lambda text: text not in (".", "..", "sys", "auth", "identity", "cubbyhole")
)
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.binary(max_size=5), st.lists(texts, max_size=3)
)


def attempt(build: Callable[[], SecretConfig]) -> SecretConfig | str:
    """The settings, or the message about what is wrong with them."""
    try:
        return build()
    except ConfigurationError as error:
        return str(error)


@given(environments)
@example({"VAULT_ADDR": "http://[::ffff:%]"})
@example({"VAULT_CLIENT_TIMEOUT": "9" * 5000})
@example({"VAULT_CACERT": "\udc80"})
def test_any_environment_gives_usable_settings_or_one_error_that_names_variables(environ: dict[str, str]) -> None:
    check(attempt(lambda: SecretConfig.from_env(environ)))


@given(st.dictionaries(st.sampled_from([variable.field for variable in VARIABLES]), values, max_size=5))
def test_any_keywords_give_usable_settings_or_one_error_that_names_them(keywords: dict[str, Any]) -> None:
    check(attempt(lambda: SecretConfig(**keywords)))


def check(config: SecretConfig | str) -> None:
    if isinstance(config, str):
        first, *lines = config.splitlines()
        assert first == "the configuration is wrong:"
        assert lines
        assert all(line.startswith("  VAULT_") and len(line) < 400 for line in lines)
        return
    for name in ("client_timeout", "request_timeout", "cache_ttl", "startup_timeout"):
        assert 0 < getattr(config, name) < math.inf
    for name in ("cache_negative_ttl", "cache_stale_ttl", "lease_min_validity", "lease_idle_ttl", "shutdown_timeout"):
        assert 0 <= getattr(config, name) < math.inf
    assert config.vault_addr.startswith(("http://", "https://", "unix:///"))
    assert config.auth_method in ("kubernetes", "jwt", "approle", "token", "proxy")
    assert config.auth_mount
    assert not config.namespace.startswith("/")
    assert not config.namespace.endswith("/")
    assert ".." not in config.namespace.split("/")
    # The result, given again, is the result: so `dataclasses.replace` works.
    assert dataclasses.replace(config) == config
    hash(config)
    repr(config)
    config.warnings()


@given(st.lists(st.tuples(st.integers(0, 500), st.sampled_from(sorted(UNITS))), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    total = sum(number * UNITS[unit] for number, unit in parts)
    assert math.isclose(SecretConfig.from_env({"VAULT_CACHE_STALE_TTL": text}).cache_stale_ttl, total, abs_tol=1e-9)


@given(st.floats(min_value=1e-6, max_value=3e8).filter(lambda number: "e" not in repr(number)))
def test_a_number_of_seconds_survives_the_environment(seconds: float) -> None:
    assert SecretConfig.from_env({"VAULT_CACHE_TTL": repr(seconds)}).cache_ttl == seconds


@given(st.lists(segments, min_size=1, max_size=4).map("/".join), st.sampled_from(["", "/"]))
def test_a_plain_namespace_is_taken_as_it_is_but_for_a_slash_at_its_end(namespace: str, end: str) -> None:
    assert SecretConfig(namespace=namespace + end).namespace == namespace


@given(st.lists(segments, min_size=1, max_size=4).map("/".join), st.data())
def test_a_namespace_that_would_reach_elsewhere_is_refused(namespace: str, data: st.DataObject) -> None:
    hostile = data.draw(st.sampled_from(["..", ".", "", "%2e%2e", "a?b", "a#b", "a\\b", "a\tb", "a\x7f", "a\x85b"]))
    parts = namespace.split("/")
    parts.insert(data.draw(st.integers(0, len(parts) - 1)), hostile)
    with pytest.raises(ConfigurationError, match="VAULT_NAMESPACE"):
        SecretConfig(namespace="/".join(parts))


# In capitals, of which a message has no twelve in a row by itself.
@given(st.text(string.ascii_uppercase + string.digits, min_size=12, max_size=30), st.sampled_from("\x01\n\x7f\u2028é"))
def test_whatever_is_wrong_with_a_credential_it_is_not_shown(secret: str, flaw: str) -> None:
    for environ in (
        {"VAULT_TOKEN": f"x{secret}{flaw}{secret}"},
        {"VAULT_SECRET_ID": f"x{secret}\x01"},
        {"VAULT_ROLE_ID": f"x{secret}\x01"},
        {"VAULT_ADDR": f"https://user:{secret}{flaw}@vault"},
        {"VAULT_PROXY_ADDR": f"https://user:{secret}{flaw}@vault:port"},
    ):
        broken = {**environ, "VAULT_CACHE_TTL": "?"}
        shown = attempt(lambda broken=broken: SecretConfig.from_env(broken))  # type: ignore[misc]
        assert isinstance(shown, str)
        assert secret not in shown
