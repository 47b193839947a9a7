"""How an audit line is written: JSON in plain ASCII, on one line, of bounded length.

The parts of a line that do not change from read to read are rendered once: what there is to say of a request, and of a
secret. A read only puts them together. Every part is bounded, and together they are no longer than a line may be.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as escaped
from math import floor
from operator import itemgetter
from typing import Any, Final, TypeVar

__all__ = [
    "NOBODY",
    "PATH",
    "REASON",
    "TEXT",
    "Identity",
    "access_lines",
    "asked",
    "copied",
    "described",
    "escaped",
    "number",
    "other",
    "request_id",
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

#: Who asks, as it is kept until someone wants to know: the function that renders the part of a line about it, the one that
#: tells its id, and what the two need, which is not the request, as the line may be written after its end. It is a bare
#: tuple, as each request that reads makes one, and an object of a class takes more than twice the time.
Identity = tuple[Any, ...]


def asked(identity: Identity) -> str:
    """The part of a line about who asks."""
    part: str = identity[0](identity)
    return part


def request_id(identity: Identity) -> str | None:
    """What travels to Vault with a fetch, too."""
    told: str | None = identity[1](identity)
    return told


def copied(identity: Identity) -> Identity:
    """The same, found out now: all that it keeps are two texts."""
    return _PART, _ID, asked(identity), request_id(identity)


_PART, _ID = itemgetter(2), itemgetter(3)


def described(
    request_id: str | None, client: str | None, method: str | None, where: str | None, place: str | None
) -> str:
    """The part of a line about a request, whatever that is like: each text bounded and escaped.

    Parameters
    ----------
    where, place
        ``"route"`` and ``"/items/{id}"``, else ``"path"`` and ``"/items/7"``; None if it goes nowhere.
    """
    part = f',"request_id":{text(request_id)},"client":{text(client)},"method":{text(method, METHOD)}'
    return part if where is None else f'{part},"{where}":{text(place, PLACE)}'


@functools.cache
def _access_by_millisecond() -> tuple[str, ...]:
    """What follows the second in the line of an access."""
    return tuple(f'{number:03d}Z","event":"secret_access"' for number in range(1000))


def access_lines(
    clock: Callable[[], float], wall: Callable[[], float], write: Callable[[bytes, float], R] | None = None
) -> Callable[[str, str, str, float, float], R | str]:
    """A function that makes the line of an access, and hands it to *write* with the time; gives it back where there is none.

    It takes the parts about who asks and about the secret, the outcome, and on the monotonic *clock* until when the value is
    good and when it was read. It is on the way of every read, so what it needs is at hand without a look into any object; the
    time of day (*wall*) is looked at once a second.
    """
    stamp = (float("inf"), "")
    follows = _access_by_millisecond()

    def access(context: str, fragment: str, outcome: str, until: float, read: float) -> R | str:
        nonlocal stamp
        second, start = stamp  # one object, as threads come here side by side
        past = read - second
        if not 0.0 <= past < 1.0:
            day = wall() - (clock() - read)
            past = day % 1.0
            start = _start(day)
            stamp = (read - past, start)
        left = until - read
        whole = floor(left) if -BOUND < left < BOUND else "null"  # it may have no end
        line = f'{start}{follows[floor(past * 1000)]}{context}{fragment},"outcome":"{outcome}","ttl_left":{whole}}}\n'
        return line if write is None else write(line.encode(), read)

    return access


def other(event: str, rest: str, day: float) -> str:
    """A line of the rarer kind, about *event* at the time *day*."""
    return f'{_start(day)}{int(day % 1 * 1000):03d}Z","event":"{event}"{rest}}}\n'


def _start(day: float) -> str:
    return time.strftime('{"time":"%Y-%m-%dT%H:%M:%S.', time.gmtime(day))


def text(value: str | None, limit: int = TEXT) -> str:
    """*value* as a JSON string in plain ASCII, of at most *limit* bytes between its quotes."""
    if value is None:
        return "null"
    value = value[: limit + 1]
    if not value.isascii():
        value = value.encode(errors="replace").decode()  # half a surrogate pair is no text to most readers of JSON
    rendered = escaped(value)
    if len(rendered) <= limit + 2:
        return rendered
    whole = re.match(_WHOLE, rendered[1 : limit + 1 - len(_CUT)])
    return f'"{whole.group() if whole else ""}{_CUT}"'


#: The application itself, outside any request.
NOBODY: Final[Identity] = _PART, _ID, described(None, None, None, None, None), None


def number(value: float | None) -> str:
    """*value* in JSON, which knows no infinity; to the millisecond if it is no whole one."""
    if value is None or not -BOUND < value < BOUND:
        return "null"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
