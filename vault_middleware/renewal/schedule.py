"""When to renew, rotate, refresh and log in: pure functions of durations in seconds and a source of randomness.

Every delay is a fraction of the whole, so that a lease of five seconds and one of a month are treated alike, and is
drawn at random, so that a fleet that started at one instant does not come back at one instant.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = [
    "AFTER_OUTAGE",
    "after_outage",
    "first_renewal",
    "granted_short",
    "in_time",
    "refresh",
    "relogin_margin",
    "renewal",
    "renewed_until",
    "rotation",
]

Uniform = Callable[[float, float], float]

#: What an outage held up is made up for within so many seconds of its end. A fleet spreads out over them; with the pause
#: between two probes they are the 5 s in which everything works again.
AFTER_OUTAGE = 3.5


def first_renewal(duration: float, uniform: Uniform) -> float:
    """Seconds until a process renews something of *duration* for the first time; wide, to spread a fleet out."""
    return duration * uniform(0.05, 0.77)


def renewal(duration: float, uniform: Uniform) -> float:
    """Seconds until each later renewal: 67–77 % of the duration, as Vault Secrets Operator does."""
    return duration * uniform(0.67, 0.77)


def rotation(duration: float, uniform: Uniform) -> float:
    """Seconds until a lease that cannot be renewed is replaced: 70–80 % of its duration."""
    return duration * uniform(0.7, 0.8)


def in_time(delay: float, left: float, kept_back: float) -> float:
    """*delay*, or less where *left* seconds remain whose last *kept_back* are not handed out any more.

    A tenth of the time is for the call itself. Matters for what lives a few seconds only: of a minute, the last second is
    no part that a renewal at 77 % could miss. Never less than a quarter of *left*, and 0.1 s.
    """
    return min(delay, max(0.9 * left - kept_back, 0.25 * left, 0.1))


def refresh(ttl: float, uniform: Uniform) -> float:
    """Seconds until a static secret in use is read again, ahead of its TTL."""
    return ttl * uniform(0.5, 0.8)


def after_outage(left: float, uniform: Uniform) -> float:
    """Seconds from the end of an outage until what is valid for *left* seconds more has its turn."""
    return uniform(0.0, min(AFTER_OUTAGE, max(left, 0.0) / 4))


def granted_short(asked: float, granted: float) -> bool:
    """Whether a renewal was cut because the max TTL is near: by more than ``min(1 s, 10 %)`` of what was asked."""
    return granted < asked - min(1.0, 0.1 * asked)


def renewed_until(known: float, granted: float) -> float:
    """Until when something is good that was so until *known*, and has been renewed until *granted*; any one clock.

    Servers tell what is left in whole seconds, cut off: near a max TTL a renewal seems to end up to one second before what
    was known already, and has taken nothing away.
    """
    return known if 0.0 < known - granted < 1.0 else granted


def relogin_margin(duration: float) -> float:
    """Seconds before a token's end at which a renewal is no longer relied on, and a new log-in takes its place."""
    return max(0.1 * duration, min(10.0, 0.2 * duration))
