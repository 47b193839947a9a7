"""The tripwire, off by default: live values that turn up in a response or a log record raise an alarm, or are held back.

::

    VaultMiddleware(app, tripwire="alarm")           # or "block"; VaultWSGIMiddleware too
    handler.addFilter(TripwireFilter(manager))       # a logging handler's records

What it knows of a value is hashes: of each few bytes, by Python's own keyed hash, and of the whole by BLAKE2 under a random
key. It sees values of 12 bytes or more as they are, and as JSON, a URL or Base64 write them, in headers and in the first
``max_body`` bytes of a body; not what was compressed or encrypted further in, and no part of a value.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from .accessor import RequestSecrets
from .errors import ConfigurationError
from .events import LeakFound
from .manager import SecretsManager

__all__ = ["Tripwire", "TripwireFilter", "Watch", "checked"]

_log = logging.getLogger("vault_middleware")

#: A value is found by the hash of some of its bytes; a text is looked at in steps of STEP bytes.
WINDOW, STEP = 8, 4

#: The shortest value that is known, and how much of a longer one is, in bytes.
SHORTEST, LONGEST = WINDOW + STEP, 256

#: How much of a body is looked at, in bytes.
MAX_BODY: Final = 16_384

#: A text is looked at in blocks of so many bytes, in windows that are made once.
_BLOCK: Final = 4096
_WINDOWS: Final = tuple(slice(at, at + WINDOW) for at in range(0, _BLOCK, STEP))

#: Keys whose values are no secret, wherever they are.
PUBLIC: Final = frozenset({"username", "user", "host", "hostname", "port", "url", "database", "dbname"})


class _Print(NamedTuple):
    """One way of writing one value: where in it the window lies, how long it is, the hash of all of it, whose it is."""

    offset: int
    length: int
    digest: bytes
    path: str


class Tripwire:
    """Looks for the live values of *manager*: of cached secrets and leases, and its token.

    Parameters
    ----------
    manager
        Whose values; its metrics and audit get the alarm.
    mode
        ``alarm``: count, audit and log. ``block``: also hold back what holds the value.
    max_body
        How much of a body is looked at, in bytes.
    public
        Keys of secrets whose values may be shown.

    Raises
    ------
    ConfigurationError
        *mode* is neither.
    """

    def __init__(
        self,
        manager: SecretsManager,
        mode: str = "alarm",
        *,
        max_body: int = MAX_BODY,
        public: Iterable[str] = PUBLIC,
    ) -> None:
        self.blocks = checked(mode) == "block"
        self.max_body = max_body
        self._manager = manager
        self._public = frozenset(public)
        self._key = os.urandom(32)
        self._known: dict[int, tuple[weakref.ref[Any], list[tuple[int, _Print]]]] = {}
        self._token: tuple[int, list[tuple[int, _Print]]] = (0, [])
        self._prints: dict[int, list[_Print]] = {}
        self._hashes: frozenset[int] = frozenset()
        self._gone = False
        self._lock = threading.Lock()
        manager._metrics.expect_leaks()

    # -- what is live

    def refresh(self) -> None:
        """Learn what is live now, and forget what is no more; a look at each secret, work only for those that are new."""
        engine = self._manager._engine
        secrets = {id(entry.secret): entry.secret for entry in list(engine.cache.entries.values())}
        for leased in engine.leases.live():
            secrets[id(leased.secret)] = leased.secret
        generation = engine.session.current
        token = generation.token.value if generation is not None else ""
        if not self._gone and secrets.keys() == self._known.keys() and hash(token) == self._token[0]:
            return
        with self._lock:
            self._gone = False  # what is in secrets lives until the end of this
            known = {}
            for number, secret in secrets.items():
                old = self._known.get(number)
                if old is not None and old[0]() is secret:
                    known[number] = old
                else:
                    known[number] = weakref.ref(secret, self._went), list(self._printed(secret.path, secret))
            if hash(token) != self._token[0]:
                self._token = hash(token), list(self._print_of("the token", token))
            prints: dict[int, list[_Print]] = {}
            for each in (*(pairs for _, pairs in known.values()), self._token[1]):
                for window, print_ in each:
                    prints.setdefault(window, []).append(print_)
            self._known, self._prints, self._hashes = known, prints, frozenset(prints)

    def _went(self, _secret: weakref.ref[Any]) -> None:
        """One that is known is no more: what comes next may have its very id."""
        self._gone = True

    def _printed(self, path: str, value: Any) -> Iterator[tuple[int, _Print]]:
        """The prints of every text in *value*, a tree of JSON."""
        if isinstance(value, str):
            yield from self._print_of(path, value)
        elif isinstance(value, Mapping):
            for key, each in value.items():
                if key not in self._public:
                    yield from self._printed(path, each)
        elif isinstance(value, tuple | list):
            for each in value:
                yield from self._printed(path, each)

    def _print_of(self, path: str, text: str) -> Iterator[tuple[int, _Print]]:
        raw = text.encode(errors="replace")
        forms = {raw, json.dumps(text)[1:-1].encode(), quote(raw, safe="").encode(), base64.b64encode(raw).rstrip(b"=")}
        forms.add(text.encode("latin-1", errors="replace"))  # as a header has it
        for form in forms:
            known = form[:LONGEST]
            if len(known) >= SHORTEST:
                digest = self._digest(known)
                for offset in range(STEP):
                    yield hash(known[offset : offset + WINDOW]), _Print(offset, len(known), digest, path)

    def _digest(self, data: bytes) -> bytes:
        return blake2b(data, key=self._key, digest_size=16).digest()

    # -- the search

    def find(self, data: bytes) -> str | None:
        """The path of a secret of which a value stands in *data*; None where there is none."""
        for begin in range(0, len(data), _BLOCK):
            block = data[begin : begin + _BLOCK + WINDOW - STEP]
            windows = _WINDOWS[: max(0, (len(block) - WINDOW) // STEP + 1)]
            if not self._hashes.isdisjoint(map(hash, map(block.__getitem__, windows))):
                return self._which(data)
        return None

    def _which(self, data: bytes) -> str | None:
        """The same, after a hash was met."""
        for at in range(0, len(data) - WINDOW + 1, STEP):
            for print_ in self._prints.get(hash(data[at : at + WINDOW]), ()):
                start = at - print_.offset
                if start >= 0 and self._digest(data[start : start + print_.length]) == print_.digest:
                    return print_.path
        return None

    def alarm(self, path: str, where: str, request_id: str | None) -> None:
        """Say, to metrics, audit and log, that a value of *path* was found in a ``header``, a ``body`` or a ``log`` record."""
        action = "held back" if self.blocks else "let through"
        self._manager._emit(LeakFound(path, where, action, request_id or ""))
        _log.error(
            "a live value of %r was found in a %s and %s (request %s); find out who put it there, and replace the secret",
            path[:200],
            where,
            action,
            request_id or "none",
        )

    def watch(self, secrets: RequestSecrets | None = None) -> Watch:
        """For one response: that to the request behind *secrets*."""
        return Watch(self, secrets)


class Watch:
    """One response: its headers, and its body piece by piece. Raises one alarm at most."""

    def __init__(self, tripwire: Tripwire, secrets: RequestSecrets | None) -> None:
        self._tripwire = tripwire
        self._secrets = secrets
        self._tail = b""
        self._left = tripwire.max_body
        self.found = False

    def headers(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a value stands in one of them."""
        self._tripwire.refresh()
        return self._look(b"\n".join(value for _, value in headers), "header")

    def body(self, piece: bytes) -> bool:
        """Whether a value stands in the body so far; one that *piece* only ends is found too."""
        if self._left <= 0 or not piece:
            return self.found
        piece = bytes(piece[: self._left])
        self._left -= len(piece)
        data = self._tail + piece
        self._tail = data[1 - LONGEST :]
        return self._look(data, "body")

    def _look(self, data: bytes, where: str) -> bool:
        if not self.found and (path := self._tripwire.find(data)) is not None:
            self.found = True
            self._tripwire.alarm(path, where, None if self._secrets is None else self._secrets.request_id)
        return self.found


class TripwireFilter(logging.Filter):
    """For a logging handler: records in which a live value stands raise an alarm; with ``block`` their text is replaced.

    Parameters are those of :class:`Tripwire`; ``max_body`` bounds what is looked at of a record.
    """

    def __init__(self, manager: SecretsManager, mode: str = "alarm", **more: Any) -> None:
        super().__init__()
        self._tripwire = Tripwire(manager, mode, **more)
        self._busy = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, with its own text or without."""
        if getattr(self._busy, "busy", False):  # the alarm's own record
            return True
        self._busy.busy = True
        try:
            self._look(record)
        finally:
            self._busy.busy = False
        return True

    def _look(self, record: logging.LogRecord) -> None:
        tripwire = self._tripwire
        tripwire.refresh()
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f"\n{record.exc_info[1]}"
        path = tripwire.find(text[: tripwire.max_body].encode(errors="replace"))
        if path is None:
            return
        tripwire.alarm(path, "log", None)
        if tripwire.blocks:
            record.msg, record.args = (
                f"a record of {record.name} was held back: a live value of a secret stood in it",
                (),
            )
            record.exc_info = record.exc_text = record.stack_info = None


def checked(mode: str) -> str:
    """*mode*, if it is one.

    Raises
    ------
    ConfigurationError
        It is not.
    """
    if mode not in ("alarm", "block"):
        raise ConfigurationError(f"tripwire={mode!r} is neither 'alarm' nor 'block'; give one of them, or None")
    return mode
