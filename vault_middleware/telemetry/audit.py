"""The audit: one JSON line for each secret that a request obtains, and for what happens to log-in and leases.

The parts of a line that do not change from read to read are rendered once: what there is to say of a request, and of a
secret. A read only puts them together. Every part is bounded, and together they are no longer than a line may be.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import time
from collections.abc import Callable
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from typing import Any, Protocol, TypeVar

from ..errors import AuditError
from ..events import Event
from ..secret import DynamicSecret, Secret
from .buffer import Buffer
from .sinks import Off, Sink

__all__ = ["Audit", "Context", "Described", "Identity"]

_log = logging.getLogger("vault_middleware")

#: The most that a text may take in a line, in bytes as rendered; together with the rest they stay below 4,096.
PATH, PLACE, REASON, TEXT, METHOD = 1024, 768, 768, 192, 32

#: A whole number of rendered characters; a pair of surrogates is one.
_WHOLE = re.compile(r"(?:[^\\]|\\u(?:d[89ab]..\\u....|(?!d[89ab])....)|\\[^u])*")

#: Ends a text that was cut: an ellipsis.
_CUT = r"\u2026"

#: Past this, in seconds or whatever it counts, a number stands for none.
BOUND = 1e15

#: Lease ids are keys to the lease; a line has a hash of them under these names.
_LEASES = {"lease_id": "lease", "old_lease_id": "old_lease"}

#: An event's field, where the audit line has another use for its name.
_NAMES = {**_LEASES, "method": "auth_method"}

_LIMITS = {"secret_path": PATH, "reason": REASON}

#: What follows the second, for each millisecond; and the same for the line of an access.
_MILLISECONDS = tuple(f'{number:03d}Z","event":' for number in range(1000))
_ACCESS = tuple(f'{start}"secret_access"' for start in _MILLISECONDS)

R = TypeVar("R")


#: What an audit line says of a request: its id, the client's address, the HTTP method, and where it goes:
#: ``("route", "/items/{id}")``, else ``("path", "/items/7")``.
Described = tuple[str | None, str | None, str | None, tuple[str, str] | None]


class Identity(Protocol):
    """Who asks. Looked at only when something is read."""

    @property
    def request_id(self) -> str | None:
        """What travels to Vault with a fetch, too."""

    def described(self) -> Described:
        """What the audit line says of it."""

    def settle(self) -> None:
        """Keep what is to be described, and let go of the request: the line about it may be written after its end."""


#: The part of a line about who asks: rendered, or (buffered) who it is, for the writer to render.
Context = str | Identity


class Audit:
    """Writes audit lines to *sink*.

    Parameters
    ----------
    sink
        Where they go; with :class:`Off` nothing is rendered at all.
    mode
        ``strict``: a line is written before the value is returned. ``buffered``: within 100 ms.
    clock, wall
        A monotonic clock for waits, and the time of day for the lines, in seconds.
    salt
        Of the hashes of lease ids; by default a random one, so that lines of one process join and no others.

    Attributes
    ----------
    context
        Called as ``context(identity)``: the part about who asks, as :attr:`access` takes it.
    access
        Called as ``access(context, fragment, outcome, ttl_left)``, with what :meth:`context` and
        :meth:`secret_fragment` gave, for a secret that is about to be handed over. Raises :class:`AuditError`; then it
        must not be.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        mode: str = "strict",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        salt: bytes | None = None,
    ) -> None:
        self._sink = sink
        self._off = isinstance(sink, Off)
        self._wall = wall
        self._salt = os.urandom(16) if salt is None else salt
        self._lost = 0
        self._buffer: Buffer | None = None
        self._write: Callable[[bytes], object] = sink.write
        self.access: Callable[[Context, str, str, float], object]
        self.context: Callable[[Identity | None], Context] = self.context_fragment
        if self._off:
            self.access = _nothing
        elif mode == "buffered":
            self.context = self._context_to_keep
            self._buffer = Buffer(sink, self._later(_access(wall, bytes)), clock=clock, wall=wall)
            self.access = self._write = self._buffer.put
        else:
            self.access = _access(wall, sink.write)

    def _later(self, render: Callable[..., bytes]) -> Callable[[float, tuple[Any, ...]], bytes]:
        """What makes a line of what waited in the queue: a line as it is, or the arguments of :attr:`access`."""
        known: tuple[Context, str] = ("", "")

        def late(now: float, record: tuple[Any, ...]) -> bytes:
            nonlocal known
            if len(record) == 1:
                return bytes(record[0])
            context, fragment, outcome, ttl_left = record
            if context is not known[0]:  # the secrets of one request come one after the other
                known = context, self._rendered(context)
            return render(known[1], fragment, outcome, ttl_left, now)

        return late

    # -- parts that are rendered once

    def _context_to_keep(self, identity: Identity | None) -> Context:
        """Buffered, it is *identity* itself, which the queue then keeps for as long as the line waits."""
        if identity is None:
            return self.context_fragment(None)
        identity.settle()
        return identity

    def _rendered(self, context: Context) -> str:
        return context if isinstance(context, str) else self.context_fragment(context)

    def context_fragment(self, identity: Identity | None = None) -> str:
        """The part about who asks; None is the application itself, outside any request."""
        if self._off:
            return ""
        if identity is None:
            return ',"request_id":null,"client":null,"method":null'
        request_id, client, method, place = identity.described()
        if request_id and client and method and place is not None and len(method) <= METHOD:
            together = f"{request_id}{client}{method}{place[1]}"
            if len(together) <= TEXT and len(encode_basestring_ascii(together)) == len(together) + 2:
                # Short, and nothing to escape, as nearly always: as they are.
                return f',"request_id":"{request_id}","client":"{client}","method":"{method}","{place[0]}":"{place[1]}"'
        where = "" if place is None else f',"{place[0]}":{_text(place[1], PLACE)}'
        return f',"request_id":{_text(request_id)},"client":{_text(client)},"method":{_text(method, METHOD)}{where}'

    def secret_fragment(self, secret: Secret, kind: str) -> str:
        """The part about a secret of *kind* ``static`` or ``dynamic``; no value, and of a lease only a hash."""
        if self._off:
            return ""
        lease = self._hashed(secret.lease.lease_id) if isinstance(secret, DynamicSecret) else None
        return (
            f',"secret_path":{_text(secret.path, PATH)},"kind":{_text(kind)},"version":{_number(secret.version)}'
            f',"lease":{_text(lease)},"vault_request_id":{_text(secret.request_id or None)}'
        )

    # -- lines

    def _other(self, event: str, rest: str) -> bytes:
        """A line of the rarer kind."""
        now = self._wall()
        return f'{_start(now)}{_MILLISECONDS[int(now % 1 * 1000)]}"{event}"{rest}}}\n'.encode()

    def failure(self, context: Context, path: str, kind: str, outcome: str, reason: str) -> None:
        """A read of *path* that gave nothing.

        Raises
        ------
        AuditError
            The line could not be written.
        """
        if not self._off:
            rest = (
                f',"secret_path":{_text(path, PATH)},"kind":{_text(kind)},"outcome":{_text(outcome)}'
                f',"reason":{_text(reason, REASON)}'
            )
            self._write(self._other("secret_access", self._rendered(context) + rest))

    def repeats(self, context: Context, fragment: str, count: int) -> None:
        """The request has ended, and had read the secret *count* times more. Raises nothing: the value is long out."""
        if not self._off:
            context = self._rendered(context)
            self._tell(self._other("secret_repeats", f'{context}{fragment},"count":{_number(count)}'))

    def __call__(self, event: Event) -> None:
        """A line about *event*. Raises no AuditError, as a listener may not hurt a renewal."""
        if self._off:
            return
        parts = []
        for field in dataclasses.fields(event):
            value = getattr(event, field.name)
            name = _NAMES.get(field.name, field.name)
            if field.name in _LEASES:
                rendered = _text(self._hashed(value))
            elif isinstance(value, str):
                rendered = _text(value, _LIMITS.get(name, TEXT))
            else:
                rendered = _number(value)
            parts.append(f',"{name}":{rendered}')
        self._tell(self._other(event.name, "".join(parts)))

    def _tell(self, line: bytes) -> None:
        """Write a line that nobody waits for; that it cannot be written is logged once, and that it can again."""
        failure: AuditError | None = None
        try:
            self._write(line)
        except AuditError as error:
            failure = error
        if failure is None:
            lost, self._lost = self._lost, 0
            if lost:
                _log.warning("the audit log takes lines again; %d about events were lost meanwhile", lost)
            return
        self._lost += 1
        if self._lost == 1:
            _log.error("%s. Reads fail meanwhile", failure)

    def _hashed(self, lease_id: str) -> str:
        return blake2b(lease_id.encode(errors="replace"), key=self._salt, digest_size=16).hexdigest()

    def flush(self) -> None:
        """Write what waits to be written."""
        if self._buffer is not None:
            self._buffer.flush()

    def after_fork(self) -> None:
        """In a forked child: what waits to be written is the parent's to write."""
        self._lost = 0
        self._sink.after_fork()
        if self._buffer is not None:
            self._buffer.after_fork()


def _access(wall: Callable[[], float], finish: Callable[[bytes], R]) -> Callable[..., R]:
    """A function that makes the line of an access and gives what *finish* makes of it.

    It is on the way of every read, so what it needs is at hand without a look into any object.
    """
    stamp = (-1.0, "")

    def access(context: Context, fragment: str, outcome: str, ttl_left: float, now: float | None = None) -> R:
        nonlocal stamp
        if now is None:
            now = wall()
        second, start = stamp  # one object, as threads come here side by side
        past = now - second
        if not 0.0 <= past < 1.0:
            second = now // 1
            start = _start(second)
            stamp = (second, start)
            past = now - second
        event = _ACCESS[int(past * 1000)]
        left = int(ttl_left) if -BOUND < ttl_left < BOUND else "null"  # it may have no end
        return finish(f'{start}{event}{context}{fragment},"outcome":"{outcome}","ttl_left":{left}}}\n'.encode())

    return access


def _start(now: float) -> str:
    return time.strftime('{"time":"%Y-%m-%dT%H:%M:%S.', time.gmtime(now))


def _nothing(_context: Context, _fragment: str, _outcome: str, _ttl_left: float) -> None:
    """What an access costs with the audit off."""


def _text(text: str | None, limit: int = TEXT) -> str:
    """*text* as a JSON string in plain ASCII, of at most *limit* bytes between its quotes."""
    if text is None:
        return "null"
    text = text[: limit + 1]
    if not text.isascii():
        text = text.encode(errors="replace").decode()  # half a surrogate pair is no text to most readers of JSON
    rendered = encode_basestring_ascii(text)
    if len(rendered) <= limit + 2:
        return rendered
    whole = _WHOLE.match(rendered, 1, limit + 1 - len(_CUT))
    return f'"{whole.group() if whole else ""}{_CUT}"'


def _number(number: float | None) -> str:
    """*number* in JSON, which knows no infinity; to the millisecond if it is no whole one."""
    if number is None or not -BOUND < number < BOUND:
        return "null"
    return str(number) if isinstance(number, int) else f"{number:.3f}"
