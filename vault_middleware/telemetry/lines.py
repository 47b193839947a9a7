"""How an audit line is written: JSON in plain ASCII, on one line, of bounded length.

The parts of a line that do not change from read to read are rendered once: what there is to say of a request, and of a
secret. A read only puts them together. Every part is bounded, and together they are no longer than a line may be.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _json
from typing import Final, Protocol, TypeVar

__all__ = [
    "NOBODY",
    "PATH",
    "REASON",
    "TEXT",
    "Described",
    "Identity",
    "access_lines",
    "asked",
    "number",
    "other",
    "text",
]

#: The most that a text may take in a line, in bytes as rendered; together with the rest they stay below 4,096.
PATH, PLACE, REASON, TEXT, METHOD = 1024, 768, 768, 192, 32

#: A whole number of rendered characters; a pair of surrogates is one.
_WHOLE = r"(?:[^\\]|\\u(?:d[89ab]..\\u....|(?!d[89ab])....)|\\[^u])*"

#: Ends a text that was cut: an ellipsis.
_CUT = r"\u2026"

#: Past this, in seconds or whatever it counts, a number stands for none.
BOUND = 1e15

R = TypeVar("R")

#: What an audit line says of a request: its id, the client's address, the HTTP method, and where it goes: ``"route"`` and
#: ``"/items/{id}"``, else ``"path"`` and ``"/items/7"``.
Described = tuple[str | None, str | None, str | None, str | None, str | None]


class Identity(Protocol):
    """Who asks. It has let go of the request, as the line about it may be written after its end."""

    @property
    def request_id(self) -> str | None:
        """What travels to Vault with a fetch, too."""

    def described(self) -> Described:
        """What the audit line says of it."""


class _Nobody:
    """The application itself, outside any request."""

    request_id: Final = None

    def described(self) -> Described:
        return None, None, None, None, None


NOBODY: Final[Identity] = _Nobody()


def asked(identity: Identity) -> str:
    """The part of a line about who asks."""
    request_id, client, method, where, place = identity.described()
    if request_id and client and method and place and len(method) <= METHOD:
        part = f',"request_id":{_json(request_id)},"client":{_json(client)},"method":{_json(method)},"{where}":{_json(place)}'
        if len(part) <= TEXT and "\\" not in part:  # short, and nothing was escaped, as nearly always
            return part
    part = f',"request_id":{text(request_id)},"client":{text(client)},"method":{text(method, METHOD)}'
    return part if where is None else f'{part},"{where}":{text(place, PLACE)}'


@functools.cache
def _access_by_millisecond() -> tuple[str, ...]:
    """What follows the second in the line of an access."""
    return tuple(f'{number:03d}Z","event":"secret_access"' for number in range(1000))


def access_lines(
    clock: Callable[[], float], wall: Callable[[], float], finish: Callable[[bytes], R]
) -> Callable[[str, str, str, float, float], R]:
    """A function that makes the line of an access, and gives what *finish* makes of it.

    It takes the parts about who asks and about the secret, the outcome, and on the monotonic *clock* until when the value is
    good and when it was read. It is on the way of every read, so what it needs is at hand without a look into any object; the
    time of day (*wall*) is looked at once a second.
    """
    stamp = (float("inf"), "")
    follows = _access_by_millisecond()

    def access(context: str, fragment: str, outcome: str, until: float, read: float) -> R:
        nonlocal stamp
        second, start = stamp  # one object, as threads come here side by side
        past = read - second
        if not 0.0 <= past < 1.0:
            day = wall() - (clock() - read)
            past = day % 1.0
            start = _start(day)
            stamp = (read - past, start)
        left = until - read
        whole = int(left) if -BOUND < left < BOUND else "null"  # it may have no end
        return finish(
            f'{start}{follows[int(past * 1000)]}{context}{fragment},"outcome":"{outcome}","ttl_left":{whole}}}\n'.encode()
        )

    return access


def other(event: str, rest: str, day: float) -> bytes:
    """A line of the rarer kind, about *event* at the time *day*."""
    return f'{_start(day)}{int(day % 1 * 1000):03d}Z","event":"{event}"{rest}}}\n'.encode()


def _start(day: float) -> str:
    return time.strftime('{"time":"%Y-%m-%dT%H:%M:%S.', time.gmtime(day))


def text(value: str | None, limit: int = TEXT) -> str:
    """*value* as a JSON string in plain ASCII, of at most *limit* bytes between its quotes."""
    if value is None:
        return "null"
    value = value[: limit + 1]
    if not value.isascii():
        value = value.encode(errors="replace").decode()  # half a surrogate pair is no text to most readers of JSON
    rendered = _json(value)
    if len(rendered) <= limit + 2:
        return rendered
    whole = re.match(_WHOLE, rendered[1 : limit + 1 - len(_CUT)])
    return f'"{whole.group() if whole else ""}{_CUT}"'


def number(value: float | None) -> str:
    """*value* in JSON, which knows no infinity; to the millisecond if it is no whole one."""
    if value is None or not -BOUND < value < BOUND:
        return "null"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
