"""The audit: one JSON line for each secret that a request obtains, and for what happens to log-in and leases."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from ..errors import AuditError
from ..events import Event
from ..secret import DynamicSecret, Secret
from .buffer import Buffer, Record
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
    strict
        Whether a line is written before the value is returned, and so who asks has to be rendered for it.
    access
        Called as ``access(context, fragment, outcome, until, now)``, with who asks (where :attr:`strict`, rendered), what
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
        self.strict = mode == "strict" and not self._off
        self.access: Callable[[Any, str, str, float, float], object]
        if self._off:
            self.access = _nothing
        elif self.strict:
            self.access = access_lines(clock, wall, sink.write)
        else:
            self._buffer = Buffer(sink, _later(access_lines(clock, wall)), clock=clock)
            self.access = self._buffer.access

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

    def _write(self, event: str, rest: str) -> None:
        line = other(event, rest, self._wall())
        if self._buffer is None:
            self._sink.write(line.encode())
        else:
            self._buffer.put(line)

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
            self._write("secret_access", _rendered(context) + rest)

    def repeats(self, context: Context, fragment: str, count: int) -> None:
        """The request has ended, and had read the secret *count* times more. Raises nothing: the value is long out."""
        if not self._off:
            self._tell("secret_repeats", f'{_rendered(context)}{fragment},"count":{number(count)}')

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
        self._tell(event.name, "".join(parts))

    def _tell(self, event: str, rest: str) -> None:
        """Write a line that nobody waits for; that it cannot be written is logged once, and that it can again."""
        failure: AuditError | None = None
        try:
            self._write(event, rest)
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


def _later(render: Callable[[str, str, str, float, float], str]) -> Callable[[Record], str]:
    """What makes a line of what waited in the queue: a line as it is, or the arguments of :attr:`Audit.access`."""
    known: Context = ""
    part = ""

    def late(record: Record) -> str:
        nonlocal known, part
        if isinstance(record, str):
            return record
        context, fragment, outcome, until, now = record
        if context is not known:  # the secrets of one request come one after the other
            part = context if type(context) is str else context[0](context)
            known = context
        return render(part, fragment, outcome, until, now)

    return late


def _rendered(context: Context) -> str:
    return context if isinstance(context, str) else asked(context)


def _nothing(_context: Context, _fragment: str, _outcome: str, _until: float, _now: float) -> None:
    """What an access costs with the audit off."""
