"""One token of ours, from its log-in until it is revoked or over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..renewal.renewer import Task
from ..retry import Backoff
from ..vault.client import Token

if TYPE_CHECKING:
    from .leases import Leased

__all__ = ["Generation"]


class Generation:
    """One log-in of ours: its token as last renewed, and the leases that were made with it and still live.

    Attributes
    ----------
    granted : float
        What the log-in granted, in seconds; renewals near the max TTL give less.
    retired : bool
        A newer generation has taken over; this one is kept for the sake of its leases, and revoked after the last.
    dead : bool
        The server does not know the token any more; its leases are gone with it.
    revoked : bool
        We have revoked its token.
    valid_at : float
        When the last look-up began that found the token valid, on the monotonic clock in seconds.
    readers : int
        Reads under way with the token, each of which may bring one more lease; counted under the session's lock.
    """

    __slots__ = ("backoff", "dead", "granted", "leases", "readers", "retired", "revoked", "task", "token", "valid_at")

    def __init__(self, token: Token) -> None:
        self.token = token
        self.granted = token.lease_duration
        self.leases: set[Leased] = set()
        self.valid_at = float("-inf")
        self.readers = 0
        self.retired = False
        self.revoked = False
        self.dead = False
        self.backoff: Backoff | None = None
        self.task: Task | None = None

    def left(self, now: float) -> float | None:
        """The share of what was granted that is left of the token at *now*; None where it has no end."""
        if not self.granted or self.token.deadline == float("inf"):
            return None
        return max(0.0, self.token.deadline - now) / self.granted
