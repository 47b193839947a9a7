"""A secret that one request reads again and again: everything that such a read needs, at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ..cache import Entry

__all__ = ["Repeat"]


class Repeat:
    """What a request reads again, valid before the monotonic time *until*.

    Attributes
    ----------
    draws
        Each number drawn from it counts a read: for this request, and in the metrics, as it draws from *hits*. A draw is
        one call into C, which no other thread divides, where ``+=`` on an integer loses updates between threads.
    """

    __slots__ = ("draws", "entry", "leased", "secret", "until")

    def __init__(self, entry: Entry, until: float, hits: Iterator[int]) -> None:
        self.entry: Final = entry
        self.secret: Final = entry.secret
        self.leased: Final = entry.holds is not None
        self.until: Final = until
        self.draws: Final = enumerate(hits)

    @property
    def reads(self) -> int:
        """How many were counted. Asking counts nothing, as a draw would."""
        state: Any = self.draws.__reduce__()
        return int(state[1][1])
