"""The gate of a closed manager: a read that comes too late is counted and audited as any other that gives nothing."""

from __future__ import annotations

from collections.abc import Callable

from ..cache import Entry, Key
from ..errors import SecretError, VaultMiddlewareError
from .fetcher import unavailable
from .gate import Gate, Reading, no_hit

__all__ = ["ClosedGate"]


class ClosedGate(Gate):
    """Refuses every read."""

    def _quick(self) -> Callable[[Key, bool, Reading], None]:
        """Nothing: no value outlives the manager."""
        return no_hit

    def read(self, key: Key, dynamic: bool, _fresh: bool, _timeout: float | None, by: Reading) -> Entry:
        """Raise what there is to say."""
        raise self._failed(key, self._refusal(key), "", dynamic, by)

    async def aread(self, key: Key, dynamic: bool, _fresh: bool, _timeout: float | None, by: Reading) -> Entry:
        """As :meth:`read`."""
        raise self._failed(key, self._refusal(key), "", dynamic, by)

    def _refusal(self, key: Key) -> SecretError:
        try:
            path = self._reader.check(key)
        except SecretError as error:
            return error.with_traceback(None)
        why = "the secrets manager is closed; read secrets before it is, or start() it again"
        return unavailable(path, why)

    def _failed(
        self, key: Key, failure: VaultMiddlewareError, outcome: str, dynamic: bool, by: Reading
    ) -> VaultMiddlewareError:
        failure = super()._failed(key, failure, outcome, dynamic, by)
        self._metrics.flush()  # which the renewer did, while there was one
        return failure
