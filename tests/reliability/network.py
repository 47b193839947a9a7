"""A network between the manager and its servers: one address that fails over, and a link that misbehaves."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from .relay import Pair, Relay, Side, host_and_port

__all__ = ["Balancer", "Chaos", "Counts"]


class Balancer(Relay):
    """One address in front of *upstreams*: new connections go to the one whose health says that it is the active node.

    While there is none they are reset. Connections to an upstream that does not answer any more are reset too; those to
    one that only lost its office stay.

    Attributes
    ----------
    switches : int
        How often an upstream took over; 1 after the start.

    Parameters
    ----------
    upstreams
        Their addresses (``http://127.0.0.1:8200``).
    every
        Seconds between two looks at their health.
    patience
        Seconds that an answer may take.
    """

    def __init__(self, upstreams: Sequence[str], *, every: float = 0.1, patience: float = 1.0) -> None:
        super().__init__("balancer")
        self._upstreams = tuple(upstreams)
        self._every = every
        self._patience = patience
        self._active: str | None = None
        self._dead: frozenset[str] = frozenset()
        self._looked = threading.Event()
        self.switches = 0
        self._watchers = [
            threading.Thread(target=self._check, args=(each,), name="balancer-health", daemon=True)
            for each in self._upstreams
        ]
        self._lock = threading.Lock()
        self._health: dict[str, int] = {}

    @property
    def active(self) -> str | None:
        """The upstream that new connections go to."""
        return self._active

    def start(self) -> Self:
        """Listen; returns when every upstream has been asked once."""
        super().start()
        for watcher in self._watchers:
            watcher.start()
        self._looked.wait(10)
        return self

    def close(self) -> None:
        """End every connection and all threads."""
        self._stopping.set()
        for watcher in self._watchers:
            if watcher.ident is not None:
                watcher.join(10)
        super().close()

    def _choose(self) -> str | None:
        return self._active

    def _look(self) -> None:
        dead = self._dead
        for pair in list(self._pairs):
            if pair.where in dead:
                self._end(pair, reset=True)

    def _check(self, upstream: str) -> None:
        while not self._stopping.is_set():
            status = self._ask(upstream)
            with self._lock:
                self._health[upstream] = status
                active = [each for each, found in self._health.items() if found == http.client.OK]
                if active and self._active not in active:
                    self.switches += 1
                if not active or self._active not in active:
                    self._active = active[0] if active else None
                self._dead = frozenset(each for each, found in self._health.items() if not found)
                if len(self._health) == len(self._upstreams):
                    self._looked.set()
            self._wake()
            self._stopping.wait(self._every)

    def _ask(self, upstream: str) -> int:
        connection = http.client.HTTPConnection(*host_and_port(upstream), timeout=self._patience)
        try:
            connection.request("GET", "/v1/sys/health")
            with connection.getresponse() as response:
                return response.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


@dataclass
class Counts:
    """What a `Chaos` did."""

    connections: int = 0
    responses: int = 0
    resets: int = 0
    truncated: int = 0


class Chaos(Relay):
    """A link to one upstream that is slow and breaks: each response is late, and some are reset or cut short.

    The fate of each request on each connection is drawn from *seed* and their numbers. Of the resets one half comes before
    the request has reached the upstream, and one half instead of its response.

    Attributes
    ----------
    calm : bool
        While true nothing breaks (but it is slow); may be set at any time.
    counts : Counts
        What it did so far.

    Parameters
    ----------
    upstream
        Its address (``http://127.0.0.1:8200``).
    latency
        Seconds that what comes from the upstream is under way.
    resets, truncated
        The share of the responses.
    """

    def __init__(
        self, upstream: str, *, seed: int, latency: float = 0.3, resets: float = 0.05, truncated: float = 0.01
    ) -> None:
        super().__init__("chaos")
        self._upstream = upstream
        self._seed = seed
        self._latency = latency
        self._shares = resets, truncated
        self.calm = False
        self.counts = Counts()
        self._links: dict[Pair, _Link] = {}

    def _choose(self) -> str | None:
        self.counts.connections += 1
        return self._upstream

    def _passes(self, pair: Pair, side: Side, data: bytes) -> float | None:
        link = self._links.get(pair)
        if link is None:
            link = self._links[pair] = _Link(random.Random(f"{self._seed}/{pair.number}"))
        if side is pair.client:
            if data and link.answered:
                link.answered = False
                link.fate = link.draw(*self._shares)
            if data and link.fate == "reset request" and not self.calm:
                self._break(pair)
                return None
            return 0.0
        if data and not link.answered:
            link.answered = True
            self.counts.responses += 1
            if not self.calm and link.fate in ("reset response", "truncate"):
                self._cut(pair, data) if link.fate == "truncate" else self._break(pair)
                return None
        return self._latency

    def _break(self, pair: Pair) -> None:
        self.counts.resets += 1
        self._end(pair, reset=True)

    def _cut(self, pair: Pair, data: bytes) -> None:
        """Send the client what comes before the middle of the body, or of what there is, and the end."""
        self.counts.truncated += 1
        head, separator, body = data.partition(b"\r\n\r\n")
        kept = data[: len(head + separator) + len(body) // 2] if body else data[: len(data) // 2]
        self._carry(pair.client, kept, self._latency)
        self._carry(pair.client, b"", self._latency)
        pair.upstream.finished = True

    def _end(self, pair: Pair, *, reset: bool = False) -> None:
        self._links.pop(pair, None)
        super()._end(pair, reset=reset)


class _Link:
    """How far one connection's requests and responses are, and what becomes of the present one."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.answered = True
        self.fate = ""

    def draw(self, resets: float, truncated: float) -> str:
        share = self._dice.random()
        if share < resets / 2:
            return "reset request"
        if share < resets:
            return "reset response"
        return "truncate" if share < resets + truncated else ""
