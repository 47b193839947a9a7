"""Secret paths: what may be asked for, how it is written into a URL, and what is said of one that is wrong."""

from __future__ import annotations

import unicodedata
from typing import Final, NamedTuple
from urllib.parse import quote

from ..errors import InvalidSecretPath

__all__ = ["MAX_BYTES", "Mount", "encode", "hint", "validate"]

#: The longest path, in bytes of UTF-8.
MAX_BYTES: Final = 1024

#: Characters that mean something in a URL, or to a proxy on the way.
_FORBIDDEN: Final = frozenset("?#%\\")

#: What a character may turn into where something on the way normalises it, and must not.
_DANGEROUS: Final = frozenset("./\\%?#")

#: First segments that belong to the server itself, and never hold a secret.
_RESERVED: Final = frozenset({"auth", "cubbyhole", "identity", "sys"})


def validate(path: object, namespace: str = "") -> str:
    """*path* itself, if it is safe to send; a hostile part of it can then reach nothing beside or above it.

    It is relative to *namespace*, which serves for the message alone.

    Raises
    ------
    InvalidSecretPath
        It is no string, empty or too long; begins or ends with ``/``; has an empty segment, ``.`` or ``..``; holds
        ``?``, ``#``, ``%``, a backslash, a control character, white space at a segment's edge, a character that normalises
        to one of these, or something that is not UTF-8; or belongs to the server (``sys``, ``auth``).
    """
    problem = _problem(path, namespace)
    if problem is None:
        assert isinstance(path, str)
        return path
    shown = repr(path[:80]) if isinstance(path, str) else f"a {type(path).__name__}"
    raise InvalidSecretPath(path if isinstance(path, str) else "", f"the secret path {shown} is refused: {problem}")


def _problem(path: object, namespace: str) -> str | None:
    if not isinstance(path, str):
        return "a path is a string such as 'api-gateway/api-key'; pass one"
    if not path:
        return "it is empty; pass one such as 'api-gateway/api-key'"
    if path.startswith("/"):
        return f"a path is relative to VAULT_NAMESPACE; write it as {_relative(path.lstrip('/'), namespace)[:80]!r}"
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8; check where it comes from"
    if size > MAX_BYTES:
        return f"it is longer than {MAX_BYTES} bytes; check where it comes from"
    if not path.isascii() or not path.isprintable():
        for character in path:
            if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp"):
                return "it holds a control character; check where it comes from"
            if not character.isascii() and _DANGEROUS.intersection(unicodedata.normalize("NFKC", character)):
                return f"it holds {character!r}, which some servers read as another character; use plain ones"
    if not _FORBIDDEN.isdisjoint(path):
        return "it holds one of ? # % \\, which would change the request; use names without them"
    segments = path.split("/")
    for segment in segments:
        if not segment:
            return "it has an empty segment; write single slashes, and none at the end"
        if segment in (".", ".."):
            return "it has a segment '.' or '..', which would reach elsewhere; check where it comes from"
        if segment != segment.strip():
            return "a segment begins or ends with white space; check where it comes from"
    if unicodedata.normalize("NFKC", segments[0]).casefold() in _RESERVED:
        return f"{segments[0]!r} belongs to the server and holds no secrets; name a mount of secrets"
    return None


def encode(path: str) -> str:
    """*path* as it goes into a URL: each segment percent-encoded."""
    return "/".join(quote(segment, safe="") for segment in path.split("/"))


def hint(path: str, namespace: str) -> str:
    """What to add to the message about a *path* that failed: the right spelling, if it repeats the namespace."""
    right = _relative(path, namespace)
    return "" if right == path else f" (paths are relative to VAULT_NAMESPACE={namespace}: write {right[:80]!r})"


def _relative(path: str, namespace: str) -> str:
    """*path* without the namespace, if it repeats it."""
    return path.removeprefix(f"{namespace}/") if namespace else path


class Mount(NamedTuple):
    """A secrets engine: its full path with the namespace and a trailing slash, its type, and the version if it is KV."""

    path: str
    type: str
    kv_version: int | None
