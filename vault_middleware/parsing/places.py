"""Places: addresses, and paths on the server and on this machine."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from .words import as_text, shown

__all__ = [
    "address",
    "audit_log",
    "file_path",
    "folder",
    "globs",
    "host",
    "mount",
    "namespace",
    "paths",
    "proxy",
    "readable_file",
]

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME: Final = rf"{_LABEL}(?:\.{_LABEL})*\.?"

_ADDRESS: Final = "write http://host:8200, https://host:8200 or unix:///path/to/socket"
_PROXY: Final = "write http://host:3128 or https://host:3128"


def host(value: object) -> str:
    """A host's name or address."""
    word = as_text(value)
    if not _is_host(word):
        raise ValueError("it is no host's name or address; give one such as vault.example.org")
    return word


def _is_host(word: str) -> bool:
    if ":" in word:
        try:
            ipaddress.IPv6Address(word)
        except ValueError:
            return False
        return "%" not in word
    return len(word) <= 253 and re.fullmatch(_NAME, word) is not None


def address(value: object) -> str:
    """The server's: http, https or a unix socket, and nothing behind the port."""
    word = as_text(value)
    if word[:7].lower() == "unix://":
        if not word[7:].startswith("/") or not word.isprintable():
            raise ValueError(f"the socket's path does not begin with /; {_ADDRESS}")
        return "unix://" + word[7:]
    scheme, netloc, user, rest = _split(word, _ADDRESS)
    if user:
        raise ValueError(f"it holds a user or password before an @, which Vault does not take; {_ADDRESS}")
    if rest:
        raise ValueError(f"it has a path, query or fragment behind the host; {_ADDRESS}")
    return f"{scheme}://{netloc}"


def proxy(value: object) -> str:
    """The HTTP proxy's; it may hold a user and password."""
    scheme, netloc, user, rest = _split(as_text(value), _PROXY)
    if rest:
        raise ValueError(f"it has a path, query or fragment behind the host; {_PROXY}")
    return f"{scheme}://{user}{netloc}"


def _split(word: str, accepted: str) -> tuple[str, str, str, str]:
    """Scheme, host with port, user info with its @, and whatever else there is behind the host."""
    # urlsplit drops tabs and newlines without a word.
    if not word.isascii() or not word.isprintable() or " " in word or "\\" in word:
        raise ValueError(f"it holds white space or a character that no address has; {accepted}")
    scheme, colon, rest = word.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in ("http", "https"):
        raise ValueError(f"it does not begin with a known scheme; {accepted}")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        name = parts.hostname or ""
    except ValueError:
        name = ""
        parts = urlsplit("")
    if not _is_host(name) or ("[" in parts.netloc) != (":" in name):
        raise ValueError(f"it has no host, or one that is no name or address; {accepted}")
    user, at, netloc = parts.netloc.rpartition("@")
    port = re.fullmatch(r"(?:\[[^]]*\]|[^:]*)(?::([0-9]{0,5}))?", netloc)
    if port is None or (port[1] and not 1 <= int(port[1]) <= 65535):
        raise ValueError(f"its port is no number from 1 to 65535; {accepted}")
    behind = (parts.path if parts.path != "/" else "") + ("?" if "?" in rest else "") + ("#" if "#" in rest else "")
    return scheme, netloc.removesuffix(":"), user + at, behind


# -- paths on the server

_RESERVED: Final = frozenset({"auth", "cubbyhole", "identity", "sys"})


def _segments(word: str) -> None:
    """Refuse what would reach beside or above the place that *word* names."""
    if not word.isprintable() or not {"?", "#", "%", "\\"}.isdisjoint(word):
        raise ValueError(
            f"{shown(word)} holds a control character or one of ? # % \\; use plain names and single slashes"
        )
    for segment in word.split("/"):
        if segment in ("", ".", "..") or segment != segment.strip():
            raise ValueError(
                f"{shown(word)} has an empty segment, '.', '..' or white space at a slash; "
                "use plain names and single slashes, and none in front"
            )


def namespace(value: object) -> str:
    """A namespace without slashes around it; empty for none."""
    word = "" if value is None else as_text(value)
    word = word.removesuffix("/") if word != "/" else word
    if word:
        _segments(word)
        if not word.isascii() or " " in word or word.split("/", 1)[0].lower() in _RESERVED:
            raise ValueError(
                f"{shown(word)} cannot be a namespace; give its name, such as team or team/project, or nothing"
            )
    return word


def mount(value: object) -> str:
    """Where an auth method is mounted, without ``auth/``; empty for where it usually is."""
    word = as_text(value).removesuffix("/")
    if word:
        _segments(word)
        if not word.isascii() or " " in word or word.startswith("auth/"):
            raise ValueError(f"{shown(word)} is no mount; write it without auth/, such as kubernetes or k8s/prod")
    return word


def _listed(value: object) -> Iterable[str]:
    if isinstance(value, str):
        return [item for item in (item.strip() for item in value.split(",")) if item]
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(item, str) for item in value):
        return [item.strip() for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    raise ValueError(f"{shown(value)} is no list; give paths with commas between them, or a list of strings")


def paths(value: object) -> tuple[str, ...]:
    """Secret paths, comma-separated; ``dynamic:`` in front of one says nothing that the server does not, and goes."""
    found = [item.removeprefix("dynamic:").strip() for item in _listed(value)]
    for item in found:
        _segments(item)
    return tuple(dict.fromkeys(found))


def globs(value: object) -> tuple[str, ...]:
    """Patterns of secret paths, comma-separated."""
    found = list(_listed(value))
    for item in found:
        if not item or item.startswith("/") or not item.isprintable():
            raise ValueError(f"{shown(item)} matches no path; give patterns such as shared/*, without a slash in front")
    return tuple(dict.fromkeys(found))


# -- files


def file_path(value: object) -> str:
    """A file's path; the file may come later."""
    word = as_text(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if not word or "\0" in word:
        raise ValueError("it is no file's path; give one")
    return word


def readable_file(value: object) -> str:
    """The path of a file that is there and can be read."""
    word = file_path(value)
    if not os.path.isfile(word) or not os.access(word, os.R_OK):
        raise ValueError(f"{shown(word)} is not there, no file or not readable; give a PEM file's path")
    return word


def folder(value: object) -> str:
    """The path of a folder that is there."""
    word = file_path(value)
    if not os.path.isdir(word):
        raise ValueError(f"{shown(word)} is not there, or no folder; give the path of a folder with PEM files")
    return word


def audit_log(value: object) -> str:
    """``stderr``, ``stdout``, ``logging``, ``off``, or a file's path, which holds a slash."""
    word = file_path(value)
    if "/" not in word:
        if word.lower() in ("stderr", "stdout", "logging", "off"):
            return word.lower()
        raise ValueError(
            f"{shown(word)} is not known; give stderr, stdout, logging, off or a file's path with a slash in it, "
            "as in /var/log/audit.log or ./audit.log"
        )
    if os.path.isdir(word) or not os.path.isdir(os.path.dirname(word)):
        raise ValueError(
            f"{shown(word)} cannot be a file: its folder is not there, or it is a folder; create the folder"
        )
    return word
