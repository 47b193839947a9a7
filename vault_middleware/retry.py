"""The retry strategies, as tenacity's wait and stop; the only room that knows how long to wait after a failure.

tenacity decides, but never sleeps here: a :class:`Backoff` is stepped by whoever owns the schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tenacity import DoSleep, RetryCallState, RetryError, Retrying
from tenacity.stop import stop_after_attempt, stop_any, stop_base, stop_never
from tenacity.wait import wait_base

__all__ = ["FLOOR", "Backoff", "Uniform", "for_lease", "for_login", "for_read", "lease_wait", "login_wait", "read_wait"]

#: ``random.uniform``, or a test's stand-in.
Uniform = Callable[[float, float], float]

#: No two tries of one task are closer than this, in seconds.
FLOOR = 0.1


def lease_wait(failures: int, left: float, uniform: Uniform) -> float:
    """Seconds to wait after the *failures*-th failure in a row (from 1), with *left* seconds of validity to go.

    ``max(min(1, left/4), min(10·2ⁿ, 300, left/4) · U(0.75, 1))``, at least 0.1: in proportion to what is left, so that
    several tries fit, with the Go lifetime watcher's back-off (10 s, doubling, to 5 min) where there is time for it.
    """
    quarter = max(left, 0.0) / 4
    # 2⁵ · 10 s is past the cap already; the bound keeps the power from overflowing after months of failures.
    backoff = min(10.0 * 2.0 ** min(failures - 1, 5), 300.0, quarter) * uniform(0.75, 1.0)
    return max(min(1.0, quarter), backoff, FLOOR)


def login_wait(failures: int, uniform: Uniform) -> float:
    """Seconds to wait after the *failures*-th failed log-in in a row: 1 s to 5 min, doubling, less 0–25 %, at least 1 s."""
    return max(min(2.0 ** min(failures - 1, 9), 300.0) * uniform(0.75, 1.0), 1.0)


def read_wait(failures: int, uniform: Uniform) -> float:
    """Seconds to wait after the *failures*-th failure of one read: 0.1 s, doubling, to 2 s, more or less a quarter."""
    return max(min(FLOOR * 2.0 ** min(failures - 1, 9), 2.0) * uniform(0.75, 1.25), FLOOR)


class _Wait(wait_base):
    def __init__(self, seconds: Callable[[int], float]) -> None:
        self._seconds = seconds

    def __call__(self, retry_state: RetryCallState) -> float:
        return self._seconds(retry_state.attempt_number)


class _StopWhenNoTryFits(stop_base):
    def __init__(self, left: Callable[[], float]) -> None:
        self._left = left

    def __call__(self, retry_state: RetryCallState) -> bool:
        return retry_state.upcoming_sleep >= self._left()


class Backoff:
    """One task's failures in a row: each is answered with the seconds until the next try, or None for "give up"."""

    def __init__(self, wait: wait_base, stop: Any = stop_never) -> None:
        self._retrying = Retrying(wait=wait, stop=stop)
        self._state = RetryCallState(self._retrying, None, (), {})
        self.failures = 0

    def failed(self, error: BaseException) -> float | None:
        """Note a failure; the seconds to wait before the next try, or None where no further try fits."""
        self.failures += 1
        self._retrying.begin()  # tenacity's statistics are per thread, and the next step may run on another
        self._state.set_exception((type(error), error.with_traceback(None), None))
        try:
            step = self._retrying.iter(self._state)
        except RetryError:
            return None
        self._state.prepare_for_next_attempt()
        return float(step) if isinstance(step, DoSleep) else None


def for_lease(left: Callable[[], float], uniform: Uniform, *, useful: Callable[[], float] | None = None) -> Backoff:
    """The tries of a task whose value is valid for ``left()`` seconds more; gives up when no further try fits.

    It fits within ``useful()`` seconds, where that is less: while there is time for something else.
    """
    return Backoff(_Wait(lambda failures: lease_wait(failures, left(), uniform)), _StopWhenNoTryFits(useful or left))


def for_login(uniform: Uniform) -> Backoff:
    """The tries of a log-in; never gives up, because a refusal can pass."""
    return Backoff(_Wait(lambda failures: login_wait(failures, uniform)))


def for_read(tries: int, left: Callable[[], float], at_least: Callable[[], float], uniform: Uniform) -> Backoff:
    """The further *tries* of one read while ``left()`` seconds remain; ``at_least()`` is what the server asks to wait."""
    return Backoff(
        _Wait(lambda failures: max(read_wait(failures, uniform), at_least())),
        stop_any(stop_after_attempt(tries + 1), _StopWhenNoTryFits(left)),
    )
