"""Secret paths: which are safe to send, how they are written, and what is said of one that is wrong."""

from __future__ import annotations

import pytest

from vault_middleware.errors import InvalidSecretPath
from vault_middleware.vault.paths import MAX_BYTES, encode, hint, validate


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "api-gateway/api-key",
        "database/creds/api-gateway",
        "shared/jwt",
        "shared/with space inside",
        "shared/a.b",
        "shared/...",
        "shared/..a",
        "shared/.hidden",
        "shared/a:b@c+d=e&f;g,h!i$j'k(l)m*n~o",
        "shared/größe/日本",
        "shared/e\u0301",
        "shared/sys",
        "shared/auth/x",
        "system/x",
        "x" * MAX_BYTES,
    ],
)
def test_a_plain_path_is_taken_as_it_is(path: str) -> None:
    assert validate(path) == path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty"),
        ("/shared/jwt", "write it as 'shared/jwt'"),
        ("//", "relative"),
        ("shared/jwt/", "empty segment"),
        ("shared//jwt", "empty segment"),
        ("..", "reach elsewhere"),
        (".", "reach elsewhere"),
        ("shared/../api-gateway/api-key", "reach elsewhere"),
        ("shared/./jwt", "reach elsewhere"),
        ("shared/..", "reach elsewhere"),
        ("shared/%2e%2e/api-gateway", "would change the request"),
        ("shared/%2E./x", "would change the request"),
        ("shared/%", "would change the request"),
        ("shared/jwt#x", "would change the request"),
        ("shared/jwt?list=true", "would change the request"),
        ("shared\\..\\x", "would change the request"),
        ("shared/a\nb", "control"),
        ("shared/a\x00b", "control"),
        ("shared/a\x7fb", "control"),
        ("shared/a\x85b", "control"),
        ("shared/a\tb", "control"),
        ("shared/\u202egnp", "control"),
        ("shared/\ufeffx", "control"),
        ("shared/a\u200bb", "control"),
        ("shared/a\u2028b", "control"),
        ("shared/ jwt", "white space"),
        ("shared/jwt ", "white space"),
        (" shared/jwt", "white space"),
        ("shared/ ", "white space"),
        ("shared/\xa0/x", "white space"),
        ("shared/\u3000", "white space"),
        ("shared/\uff0e\uff0e/x", "another character"),
        ("shared/\u2025/x", "another character"),
        ("shared/\u2024\u2024/x", "another character"),
        ("shared\uff0fx", "another character"),
        ("shared/a\uff05b", "another character"),
        ("shared/a\u2048b", "another character"),
        ("shared/a\uff1fb", "another character"),
        ("shared/\ud800", "UTF-8"),
        ("sys/mounts", "belongs to the server"),
        ("auth/token/lookup-self", "belongs to the server"),
        ("SYS/mounts", "belongs to the server"),
        ("identity/entity", "belongs to the server"),
        ("cubbyhole/x", "belongs to the server"),
        ("sys", "belongs to the server"),
        ("x" * (MAX_BYTES + 1), "longer than"),
        ("ä" * (MAX_BYTES // 2 + 1), "longer than"),
    ],
)
def test_a_path_that_could_reach_elsewhere_is_refused_and_the_message_says_why(path: str, why: str) -> None:
    with pytest.raises(InvalidSecretPath, match=why) as caught:
        validate(path)
    assert caught.value.path == path
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700
    assert caught.value.__context__ is None


@pytest.mark.parametrize("path", [None, 5, b"shared/jwt", ["shared"], object()])
def test_what_is_no_string_is_refused_without_being_shown(path: object) -> None:
    with pytest.raises(InvalidSecretPath, match=f"a {type(path).__name__} ") as caught:
        validate(path)
    assert caught.value.path == ""
    assert "shared" not in str(caught.value)


def test_each_segment_is_percent_encoded_and_the_slashes_stay() -> None:
    assert encode("shared/a b/ö:@&=+$,;") == "shared/a%20b/%C3%B6%3A%40%26%3D%2B%24%2C%3B"
    assert encode("api-gateway/api_key.v1~x") == "api-gateway/api_key.v1~x"


def test_a_path_that_repeats_the_namespace_is_shown_in_its_right_spelling() -> None:
    assert "write 'shared/jwt'" in hint("lotabots/shared/jwt", "lotabots")
    assert hint("shared/jwt", "lotabots") == ""
    assert hint("lotabots-x/jwt", "lotabots") == ""
    assert hint("lotabots", "lotabots") == ""
    assert hint("/x", "") == ""


@pytest.mark.parametrize(
    ("path", "namespace", "right"),
    [
        ("/shared/jwt", "lotabots", "shared/jwt"),
        ("/lotabots/api-gateway/api-key", "lotabots", "api-gateway/api-key"),
        ("//lotabots/shared/jwt", "lotabots", "shared/jwt"),
        ("/a/b/shared/jwt", "a/b", "shared/jwt"),
        ("/lotabots-x/shared/jwt", "lotabots", "lotabots-x/shared/jwt"),
        ("/lotabots/shared/jwt", "", "lotabots/shared/jwt"),
    ],
)
def test_a_path_that_begins_with_a_slash_is_shown_in_its_right_spelling(path: str, namespace: str, right: str) -> None:
    with pytest.raises(InvalidSecretPath) as caught:
        validate(path, namespace)
    assert f"write it as {right!r}" in str(caught.value)
    assert validate(right, namespace) == right
    assert hint(right, namespace) == ""
