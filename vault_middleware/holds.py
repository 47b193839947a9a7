"""Who holds a lease: the requests that have read it and not ended yet."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Holds"]


class Holds:
    """The holders of one lease.

    Lock-free: a reader first takes its hold and then looks whether the lease is still the current one; a rotation first
    publishes the new lease and then looks for holders. Whatever the interleaving, one of the two sees the other.
    """

    __slots__ = ("_drained", "_holders", "draining", "unbounded")

    def __init__(self, drained: Callable[[], None]) -> None:
        self._holders: dict[int, object] = {}
        self._drained = drained
        #: The lease has been replaced; it ends with its last holder.
        self.draining = False
        #: It was read outside any request, so that nobody can say when its user has ended: it is left to its deadline.
        self.unbounded = False

    def take(self, holder: object) -> None:
        """*holder* has the lease until it gives it back."""
        self._holders[id(holder)] = holder

    def give_back(self, holder: object) -> None:
        """*holder* has ended. The last one to end, of a lease that drains, lets the lease be revoked."""
        self._holders.pop(id(holder), None)
        if self.draining and not self._holders:
            self._drained()

    def drain(self) -> None:
        """The lease has been replaced: from now on it only waits for its holders to end."""
        self.draining = True
        if not self._holders:
            self._drained()

    def __bool__(self) -> bool:
        return bool(self._holders)
