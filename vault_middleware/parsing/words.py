"""Words and numbers: names, credentials, switches, durations, rates."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = [
    "as_text",
    "boolean",
    "choice",
    "credential",
    "duration",
    "kv_version",
    "optional",
    "rate_limit",
    "shown",
    "text",
    "token",
    "whole",
]

T = TypeVar("T")

#: The longest duration, in seconds: ten years. A longer one is a unit mistaken.
LONGEST: Final = 10 * 365 * 86400.0

_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
# Patterns are compiled when first used: most settings are left at their defaults, and each costs an import its time.
_NUMBER: Final = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_PART: Final = rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h|d)"
_WHOLE: Final = r"[0-9]{1,18}"
_RATE: Final = rf"({_NUMBER})(?::({_WHOLE}))?"

_DURATION: Final = "write seconds (90) or Vault's form (90s, 5m, 1h30m, 250ms)"


def shown(value: object) -> str:
    """*value* as a message may show it: short, on one line, and only if it is text or a number."""
    if not isinstance(value, str | int | float):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and abs(value) > 10**18:
        return "a number of many digits"
    short = repr(value)
    return short if len(short) <= 48 else short[:40] + "…"


def as_text(value: object) -> str:
    """*value* without the white space around it (a newline that an ``echo`` has left, say)."""
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} is no text; give a string")  # noqa: TRY004  # the kind that is caught
    return value.strip()


def optional(parse: Callable[[object], T]) -> Callable[[object], T | None]:
    """*parse*, where nothing and an empty text mean None."""

    def parse_or_none(value: object) -> T | None:
        return None if value is None or (isinstance(value, str) and not value.strip()) else parse(value)

    return parse_or_none


def text(value: object) -> str:
    """Printable text, at least one character."""
    word = as_text(value)
    if not word or not word.isprintable():
        raise ValueError(f"it is {'not printable' if word else 'empty'}; give a name of printable characters")
    return word


def credential(value: object) -> str:
    """A credential that travels in a request's body; never shown."""
    word = as_text(value)
    if not word or not word.isprintable():
        raise ValueError("it is empty or holds a character that is not printable; check how it is set")
    return word


def token(value: object) -> str:
    """A credential that travels in a header; never shown."""
    word = as_text(value)
    if not word or not word.isascii() or not word.isprintable() or " " in word:
        raise ValueError("it is empty, or holds white space or a character that no token has; check how it is set")
    return word


def choice(*words: str) -> Callable[[object], str]:
    """One of *words*, in whatever case."""

    def parse(value: object) -> str:
        word = as_text(value).lower()
        if word not in words:
            raise ValueError(f"{shown(value)} is not known; give one of {', '.join(filter(None, words))}")
        return word

    return parse


def boolean(value: object) -> bool:
    """True or False, spelt as Vault's client takes them."""
    if isinstance(value, bool):
        return value
    word = as_text(value).lower()
    if word in ("1", "t", "true"):
        return True
    if word in ("0", "f", "false"):
        return False
    raise ValueError(f"{shown(value)} is neither true nor false; give true, false, 1 or 0")


def whole(low: int, high: int) -> Callable[[object], int]:
    """A whole number from *low* to *high*."""

    def parse(value: object) -> int:
        number: int | None = None
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif isinstance(value, str) and re.fullmatch(_WHOLE, value.strip()):
            number = int(value)
        if number is None or not low <= number <= high:
            raise ValueError(f"{shown(value)} is no whole number from {low} to {high}; give one")
        return number

    return parse


def kv_version(value: object) -> int:
    """1 or 2, with or without Vault's ``v``."""
    return whole(1, 2)(value.strip().lower().removeprefix("v") if isinstance(value, str) else value)


def duration(*, zero: bool = True) -> Callable[[object], float]:
    """Seconds, as a number or in Go's form; more than 0 unless *zero*."""

    def parse(value: object) -> float:
        seconds = _seconds(value)
        if seconds is None or math.isnan(seconds):
            raise ValueError(f"{shown(value)} is no duration; {_DURATION}")
        if seconds < 0 or (seconds == 0 and not zero):
            raise ValueError(f"{shown(value)} is {'negative' if zero else 'not more than 0'}; {_DURATION}")
        if seconds > LONGEST:
            raise ValueError(f"{shown(value)} is more than ten years; {_DURATION}")
        return seconds

    return parse


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if not isinstance(value, str):
        return None
    word = value.strip()
    sign = -1.0 if word.startswith("-") else 1.0
    word = word.removeprefix("-")
    if re.fullmatch(_NUMBER, word):
        return sign * float(word)
    parts = re.findall(_PART, word)
    if not parts or "".join(number + unit for number, unit in parts) != word:
        return None
    return sign * math.fsum(float(number) * _UNITS[unit] for number, unit in parts)


def rate_limit(value: object) -> tuple[float, int]:
    """``rate[:burst]``: requests a second, and how many at once; the burst is the rate's whole part, at least 1."""
    rate, burst = math.nan, None
    if isinstance(value, tuple | list) and len(value) == 2:
        rate, burst = _number(value[0]), value[1]
    elif isinstance(value, str) and (match := re.fullmatch(_RATE, value.strip())):
        rate, burst = float(match[1]), None if match[2] is None else int(match[2])
    else:
        rate = _number(value)
    if 0 < rate <= 1e9:
        whole_burst = max(1, int(rate)) if burst is None else burst
        if isinstance(whole_burst, int) and not isinstance(whole_burst, bool) and 1 <= whole_burst <= 1e9:
            return rate, whole_burst
    raise ValueError(
        f"{shown(value)} is no rate limit; write rate or rate:burst (requests a second, how many at once), as in 50:100"
    )


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e9:
        return float(value)
    return math.nan
