"""Verify before publish: a user's probe of each new credential of a path, before anyone is handed it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import SecretUnavailable
from ..retry import Uniform, for_read
from ..secret import Secret

__all__ = ["Probe", "Verification"]

_log = logging.getLogger("vault_middleware")

#: How often a probe is called again of one credential: after 0.1, 0.2, 0.4 and 0.8 s, as a new database user may need a
#: moment to reach every replica.
TRIES = 4

#: Where no credential of a path serves, and the last one did not pass, the next is fetched only after so many seconds: each
#: makes a database user, say.
PAUSE = 2.0

#: Passes by returning, unless what it returns is False.
Probe = Callable[[Any], object]


class Verification:
    """The probes by path, and what became of them."""

    def __init__(
        self,
        probes: dict[str, Probe],
        *,
        closing: threading.Event,
        uniform: Uniform = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probes = probes
        self._wait: Callable[[float], bool] = closing.wait
        self._uniform = uniform
        self._clock = clock
        self._paused: dict[str, float] = {}

    def may_fetch(self, path: str) -> None:
        """Before a fetch of *path*, for which nothing is served.

        Raises
        ------
        SecretUnavailable
            The last credential did not pass, a moment ago.
        """
        if self._clock() < self._paused.get(path, float("-inf")):
            raise SecretUnavailable(
                path, f"the secret {path!r} cannot be had now: a moment ago a new one did not pass its probe"
            )

    def check(self, secret: Secret, timeout: float) -> None:
        """Have *secret* probed, if its path has a probe, on the calling thread; tries end after *timeout* seconds.

        Raises
        ------
        SecretUnavailable
            It did not pass.
        """
        path = secret.path
        probe = self._probes.get(path)
        if probe is None:
            return
        deadline = self._clock() + timeout
        backoff = for_read(TRIES, lambda: deadline - self._clock(), lambda: 0.0, self._uniform)
        while (fault := _fault(probe, secret)) is not None:
            failure = SecretUnavailable(
                path,
                f"the secret {path!r} cannot be had now: the new one did not pass its probe in {backoff.failures + 1} tries "
                f"({fault}); see that whatever it is for takes it",
            )
            pause = backoff.failed(failure)
            if pause is None or self._wait(pause):
                self._paused[path] = self._clock() + PAUSE
                _log.error("a new secret for %r did not pass its probe (%s), and is not published", path, fault)
                raise failure
        self._paused.pop(path, None)


def _fault(probe: Probe, secret: Secret) -> str | None:
    """What the probe says against *secret*, or None. Of an exception only its type: it may well hold the credential."""
    try:
        return "it returned False" if probe(secret) is False else None
    except Exception as error:
        return type(error).__name__
