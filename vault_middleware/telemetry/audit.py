"""The audit: one JSON line for each secret that a request obtains, and for what happens to log-in and leases."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Protocol

from ..errors import AuditError
from ..events import Event
from ..secret import DynamicSecret, Secret
from .buffer import Buffer
from .lines import PATH, REASON, TEXT, Identity, access_lines, asked, number, other, text
from .sinks import Off, Sink

__all__ = ["Audit", "Context"]

_log = logging.getLogger("vault_middleware")

#: Lease ids are keys to the lease; a line has a hash of them under these names.
_LEASES = {"lease_id": "lease", "old_lease_id": "old_lease"}

#: An event's field, where the audit line has another use for its name.
_NAMES = {**_LEASES, "method": "auth_method"}

_LIMITS = {"secret_path": PATH, "reason": REASON}

#: The part of a line about who asks: rendered, or (buffered) who it is, for the writer to render.
Context = str | Identity


class Asking(Protocol):
    """Who reads."""

    @property
    def identity(self) -> Identity:
        """For whom."""


class Audit:
    """Writes audit lines to *sink*.

    Parameters
    ----------
    sink
        Where they go; with :class:`Off` nothing is rendered at all.
    mode
        ``strict``: a line is written before the value is returned. ``buffered``: within 100 ms.
    clock, wall
        A monotonic clock, and the time of day for the lines, in seconds.
    salt
        Of the hashes of lease ids; by default a random one, so that lines of one process join and no others.

    Attributes
    ----------
    context
        Called as ``context(by)`` with who reads: the part about who asks, as :attr:`access` takes it.
    access
        Called as ``access(context, fragment, outcome, until, now)``, with what :attr:`context` and
        :meth:`secret_fragment` gave, and on the monotonic clock until when the value is good and what time it is now; for
        a secret that is about to be handed over. Raises :class:`AuditError`; then it must not be.
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
        self.access: Callable[..., object]
        self.context: Callable[[Asking], Context] = _asked
        if self._off:
            self.access = _nothing
            self.context = _nobody
        elif mode == "buffered":
            self.context = attrgetter("identity")  # the writer renders it
            self._buffer = Buffer(sink, _later(access_lines(clock, wall, bytes)), clock=clock)
            self.access = self._write = self._buffer.put
        else:
            self.access = access_lines(clock, wall, sink.write)

    def secret_fragment(self, secret: Secret, kind: str) -> str:
        """The part about a secret of *kind* ``static`` or ``dynamic``; no value, and of a lease only a hash."""
        if self._off:
            return ""
        lease = self._hashed(secret.lease.lease_id) if isinstance(secret, DynamicSecret) else None
        return (
            f',"secret_path":{text(secret.path, PATH)},"kind":{text(kind)},"version":{number(secret.version)}'
            f',"lease":{text(lease)},"vault_request_id":{text(secret.request_id or None)}'
        )

    # -- lines

    def _other(self, event: str, rest: str) -> bytes:
        return other(event, rest, self._wall())

    def failure(self, context: Context, path: str, kind: str, outcome: str, reason: str) -> None:
        """A read of *path* that gave nothing.

        Raises
        ------
        AuditError
            The line could not be written.
        """
        if not self._off:
            rest = (
                f',"secret_path":{text(path, PATH)},"kind":{text(kind)},"outcome":{text(outcome)}'
                f',"reason":{text(reason, REASON)}'
            )
            self._write(self._other("secret_access", _rendered(context) + rest))

    def repeats(self, context: Context, fragment: str, count: int) -> None:
        """The request has ended, and had read the secret *count* times more. Raises nothing: the value is long out."""
        if not self._off:
            context = _rendered(context)
            self._tell(self._other("secret_repeats", f'{context}{fragment},"count":{number(count)}'))

    def __call__(self, event: Event) -> None:
        """A line about *event*. Raises no AuditError, as a listener may not hurt a renewal."""
        if self._off:
            return
        parts = []
        for field in dataclasses.fields(event):
            value = getattr(event, field.name)
            name = _NAMES.get(field.name, field.name)
            if field.name in _LEASES:
                rendered = text(self._hashed(value))
            elif isinstance(value, str):
                rendered = text(value, _LIMITS.get(name, TEXT))
            else:
                rendered = number(value)
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


def _later(render: Callable[[str, str, str, float, float], bytes]) -> Callable[[tuple[Any, ...]], bytes]:
    """What makes a line of what waited in the queue: a line as it is, or the arguments of :attr:`Audit.access`."""
    known: tuple[Context, str] = ("", "")

    def late(record: tuple[Any, ...]) -> bytes:
        nonlocal known
        if len(record) == 1:
            return bytes(record[0])
        context, fragment, outcome, until, now = record
        if context is not known[0]:  # the secrets of one request come one after the other
            known = context, context if isinstance(context, str) else asked(context)
        return render(known[1], fragment, outcome, until, now)

    return late


def _rendered(context: Context) -> str:
    return context if isinstance(context, str) else asked(context)


def _asked(by: Asking) -> str:
    return asked(by.identity)


def _nobody(_by: Asking) -> str:
    """With the audit off nobody looks at who asks."""
    return "off"


def _nothing(_context: Context, _fragment: str, _outcome: str, _until: float, _now: float) -> None:
    """What an access costs with the audit off."""
