"""No path that is taken can reach another place than the one that it names, whatever decodes or normalises it."""

from __future__ import annotations

import posixpath
import unicodedata
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vault_middleware.errors import InvalidSecretPath
from vault_middleware.vault.mounts import Mounts
from vault_middleware.vault.paths import MAX_BYTES, Mount, encode, validate

#: Text in which what could do harm is frequent.
hostile = st.text(
    st.one_of(
        st.sampled_from("./\\%?#;:@&=+2eEfF5cC \t\n\r\x00\x7f\u2024\u2025\uff0e\uff0f\u2044\u2215\u29f8"),
        st.characters(),
    ),
    max_size=30,
)
plain = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12)


def refused(path: str) -> bool:
    try:
        validate(path)
    except InvalidSecretPath as error:
        message = str(error)
    else:
        return False
    assert message.isprintable()
    message.encode()
    return True


@given(hostile)
@example("\u2026")
@example("\u2100")
def test_a_tenant_can_reach_only_what_lies_under_the_prefix(tenant: str) -> None:
    path = f"shared/{tenant}"
    assume(not refused(path))
    url = f"http://vault/v1/lotabots/{encode(path)}"
    parts = urlsplit(url)
    assert (parts.netloc, parts.query, parts.fragment) == ("vault", "", "")
    prefix = "/v1/lotabots/shared/"
    for seen in (
        parts.path,
        unquote(parts.path),
        unquote(unquote(parts.path)),
        unicodedata.normalize("NFKC", unquote(parts.path)),
        unicodedata.normalize("NFKD", unquote(parts.path)),
        unquote(parts.path).replace("\\", "/"),
    ):
        assert posixpath.normpath(seen).startswith(prefix), seen
        assert seen.count("/") == parts.path.count("/"), seen
        assert "//" not in seen[1:]


@given(hostile)
def test_the_server_decodes_exactly_the_path_that_was_asked_for(path: str) -> None:
    assume(not refused(path))
    assert unquote(encode(path), errors="strict") == path
    assert encode(path).isascii()
    assert "?" not in encode(path)
    assert validate(path) is path


@given(hostile | st.text(max_size=MAX_BYTES * 2))
def test_a_path_is_taken_or_refused_and_nothing_else_is_raised(path: str) -> None:
    refused(path)


@given(st.lists(plain, min_size=1, max_size=4), st.data())
def test_one_hostile_segment_spoils_any_path(segments: list[str], data: st.DataObject) -> None:
    path = "/".join(segments)
    assume(not refused(path))
    bad = data.draw(
        st.sampled_from([".", "..", "", " ", "a?", "a#", "%2e%2e", "%2F", "..\\x", "\x00", "a\r\nb", "\uff0e."])
    )
    at = data.draw(st.integers(0, len(segments)))
    assert refused("/".join([*segments[:at], bad, *segments[at:]]))


@given(st.sampled_from(["sys", "auth", "identity", "cubbyhole"]), st.lists(plain, max_size=3))
def test_the_servers_own_paths_are_never_reached(first: str, rest: list[str]) -> None:
    assert refused("/".join([first, *rest]))
    assert refused("/".join([first.upper(), *rest]))
    assert refused("/".join([quote(first).replace("s", "%73", 1).replace("a", "%61", 1), "%", *rest]))


@given(
    st.dictionaries(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), st.just(0), max_size=5),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=6).map("/".join),
)
def test_a_path_lies_in_the_mount_that_is_its_prefix(names: dict[str, int], path: str) -> None:
    # Mounts do not nest.
    names = {name: 0 for name in names if not any(name != other and name.startswith(other + "/") for other in names)}
    mounts = Mounts()
    for name in names:
        mounts.add(Mount(name + "/", "kv", 2))
    found = mounts.of(path)
    expected = [name for name in names if path.startswith(name + "/")]
    assert ([] if found is None else [found.path]) == [name + "/" for name in expected]


@pytest.mark.parametrize("code", range(0x110000 // 0x1000), ids=lambda code: f"U+{code:02X}000")
def test_every_character_that_normalises_to_a_dangerous_one_is_refused(code: int) -> None:
    for point in range(code * 0x1000, (code + 1) * 0x1000):
        character = chr(point)
        if not 0xD800 <= point <= 0xDFFF:
            forms = {unicodedata.normalize(form, character) for form in ("NFC", "NFD", "NFKC", "NFKD")}
            if point > 0x7F and any(set("./\\%?#") & set(form) for form in forms):
                assert refused(f"a{character}b"), f"U+{point:04X}"
