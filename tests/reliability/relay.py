"""What carries bytes between a client and an upstream: one thread around a selector, and no socket left at the end."""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

__all__ = ["Pair", "Relay", "Side", "host_and_port"]

_CHUNK = 65_536

#: A side that is this far ahead of the other, in bytes, is not read from for a while.
_AHEAD = 1_048_576

#: Sent at close: a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)


def host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    assert parts.hostname is not None, address
    assert parts.port is not None, address
    return parts.hostname, parts.port


@dataclass
class Side:
    """One end of a connection: what is on its way to it, and what of it was seen."""

    socket: socket.socket
    #: Chunks to send to it, each with the time (monotonic) before which it is under way; b"" is the end.
    queue: collections.deque[tuple[float, bytes]] = field(default_factory=collections.deque)
    queued: int = 0
    #: It has sent its end, and its end was sent to it.
    finished: bool = False
    shut: bool = False


class Pair:
    """A client's connection and the one to the upstream that serves it."""

    def __init__(self, number: int, client: socket.socket, upstream: socket.socket, where: str) -> None:
        self.number = number
        self.client = Side(client)
        self.upstream = Side(upstream)
        self.where = where
        self.closed = False

    def other(self, side: Side) -> Side:
        return self.upstream if side is self.client else self.client


class Relay:
    """Listens on a free port of the loopback and carries what comes to the upstream that `_choose` names."""

    def __init__(self, name: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._selector = selectors.DefaultSelector()
        self._wakers = socket.socketpair()
        for waker in self._wakers:
            waker.setblocking(False)
        self._pairs: set[Pair] = set()
        self._accepted = 0
        self._now = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """End every connection and the thread."""
        self._stopping.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(10)
        assert not self._thread.is_alive(), "the relay hangs"
        for pair in list(self._pairs):
            self._end(pair)
        self._selector.close()
        for each in (self._listener, *self._wakers):
            each.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for the subclasses

    def _choose(self) -> str | None:
        """The upstream's address for a new connection; None: reset it."""
        raise NotImplementedError

    def _passes(self, pair: Pair, side: Side, data: bytes) -> float | None:
        """How long *data* from *side* is under way, in seconds; None if the connection was dealt with otherwise."""
        return 0.0

    def _look(self) -> None:
        """Called on the thread after each wake-up."""

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full, or closed: it wakes anyway
            self._wakers[1].send(b"w")

    # -- the loop

    def _main(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakers[0], selectors.EVENT_READ)
        while not self._stopping.is_set():
            for key, events in self._selector.select(self._until_due()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wakers[0]:
                    with contextlib.suppress(BlockingIOError):
                        self._wakers[0].recv(_CHUNK)
                else:
                    pair, side = key.data
                    if events & selectors.EVENT_READ and not pair.closed:
                        self._read(pair, side)
            self._look()
            self._now = time.monotonic()
            for pair in list(self._pairs):
                for side in (pair.client, pair.upstream):
                    self._send(pair, side)
                self._settle(pair)

    def _until_due(self) -> float | None:
        """Seconds until the next chunk has arrived; None if none is under way."""
        heads = (side.queue[0][0] for pair in self._pairs for side in (pair.client, pair.upstream) if side.queue)
        # What was due in the last round and was not taken waits for its receiver, of which the selector tells.
        due = min((due for due in heads if due > self._now), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                self._accepted += 1
                where = self._choose()
                upstream = None
                if where is not None:
                    with contextlib.suppress(OSError):
                        upstream = socket.create_connection(host_and_port(where), timeout=0.5)
                if where is None or upstream is None:
                    _reset(client)
                    continue
                for each in (client, upstream):
                    each.setblocking(False)
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pair = Pair(self._accepted, client, upstream, where)
                self._pairs.add(pair)

    def _read(self, pair: Pair, side: Side) -> None:
        try:
            data = side.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._end(pair, reset=True)
            return
        if not data:
            side.finished = True
        delay = self._passes(pair, side, data)
        if delay is not None:
            self._carry(pair.other(side), data, delay)

    @staticmethod
    def _carry(to: Side, data: bytes, delay: float) -> None:
        to.queue.append((time.monotonic() + delay, data))
        to.queued += len(data)

    def _send(self, pair: Pair, to: Side) -> None:
        """Send what has arrived by now to *to*, as far as it takes it."""
        while not pair.closed and to.queue and to.queue[0][0] <= self._now:
            due, data = to.queue[0]
            try:
                sent = to.socket.send(data) if data else 0
                if not data:
                    to.shut = True
                    to.socket.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                return
            except OSError:
                self._end(pair, reset=True)
                return
            to.queue.popleft()
            to.queued -= sent
            if sent < len(data):
                to.queue.appendleft((due, data[sent:]))

    def _settle(self, pair: Pair) -> None:
        """Close *pair* if it is over; else watch each side for what is wanted of it now."""
        if pair.closed:
            return
        if pair.client.shut and (pair.upstream.shut or pair.upstream.finished):
            self._end(pair)
            return
        for side in (pair.client, pair.upstream):
            wanted = 0
            if not side.finished and pair.other(side).queued < _AHEAD:
                wanted |= selectors.EVENT_READ
            if side.queue and side.queue[0][0] <= self._now:
                wanted |= selectors.EVENT_WRITE
            self._watch(pair, side, wanted)

    def _watch(self, pair: Pair, side: Side, wanted: int) -> None:
        watched = self._selector.get_map().get(side.socket)
        if watched is None:
            if wanted:
                self._selector.register(side.socket, wanted, (pair, side))
        elif not wanted:
            self._selector.unregister(side.socket)
        elif watched.events != wanted:
            self._selector.modify(side.socket, wanted, (pair, side))

    def _end(self, pair: Pair, *, reset: bool = False) -> None:
        if pair.closed:
            return
        pair.closed = True
        self._pairs.discard(pair)
        for side in (pair.client, pair.upstream):
            self._watch(pair, side, 0)
            if reset:
                _reset(side.socket)
            else:
                side.socket.close()


def _reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
