"""The work that a read cannot leave out, in one function each: what bounds ours from below, measured beside it.

What the contract asks of every read is in it: the value checked against the clock, a lease noticed, the count without a
loss, the value pinned for the request and for all its threads alike, an end that is noticed, who asks kept apart from the
request, a bounded queue whose writer is roused, a line with all its fields, bounded and escaped, and a look at the file once a
second. No layers, no errors, no fetch, no rotation, no allow-lists and no scopes are: where they begin, it gives up.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from json.encoder import encode_basestring_ascii
from math import floor
from typing import Any

__all__ = ["Bare", "BareMiddleware", "BareRequest"]

#: The line's parts about a secret, and about nobody.
_FRAGMENT = (
    ',"secret_path":"api-gateway/api-key","kind":"static","version":3,"lease":null,'
    '"vault_request_id":"0af7651916cd43dd8448eb211c80319c"'
)
_NOBODY = ',"request_id":null,"client":null,"method":null'
_MILLISECONDS = [f"{number:03d}" for number in range(1000)]

#: What the server answers to a read.
_ANSWER = (
    b'{"request_id":"0af76519-16cd-43dd-8448-eb211c80319c","lease_id":"","renewable":false,"lease_duration":0,'
    b'"data":{"data":{"value":"x"},"metadata":{"created_time":"2026-01-01T00:00:00.0Z","custom_metadata":null,'
    b'"deletion_time":"","destroyed":false,"version":3}},"wrap_info":null,"warnings":null,"auth":null}'
)

#: As many records may wait as the queue is ever given between two flushes.
_ROOM = 100_000

_current: ContextVar[BareRequest] = ContextVar("bare")
_numbers = itertools.count()


class _Entry:
    __slots__ = ("fragment", "last_read", "lease", "secret", "until")

    def __init__(self, secret: Any) -> None:
        self.secret = secret
        self.until = time.monotonic() + 1e9
        self.lease = None
        self.fragment = _FRAGMENT
        self.last_read = 0.0


class Bare:
    """A cache of one secret, its count, and where lines go: *file* (strict), or a queue that :meth:`flush` writes off."""

    def __init__(self, path: str, file: int, *, strict: bool) -> None:
        self.entries = {path: _Entry({"value": "x"})}
        self.numbers = itertools.count()
        self.strict = strict
        self.file = file
        self.queue: deque[tuple[Any, str, str, float, float]] = deque()
        self.awake = True
        self.look_at = float("inf")  # when to look whether the file is still there
        # It lasts for ever, where others find the time of day anew each second.
        self.second = time.monotonic() - 0.5, '{"time":"2026-01-01T10:00:00.'

    def get_secret(self, path: str) -> Any:
        """Outside a request, strict."""
        entry = self.entries.get(path)
        now = time.monotonic()
        if entry is None or now >= entry.until or entry.lease is not None:
            raise LookupError(path)
        entry.last_read = now
        next(self.numbers)
        self.write(_NOBODY, entry, now)
        return entry.secret

    def write(self, asked: str, entry: _Entry, now: float) -> None:
        """The line of an access, at once."""
        line = _line(self.second, asked, entry.fragment, "hit", entry.until, now).encode()
        if now >= self.look_at or os.write(self.file, line) < len(line):
            raise OSError

    def refresh(self, path: str) -> None:
        """Another value took the place of the one at *path*: the server's answer, read and published."""
        self.entries[path] = _Entry(json.loads(_ANSWER)["data"]["data"])

    def flush(self) -> None:
        """Write what waits, 64 KiB at once."""
        lines: list[str] = []
        size = 0
        while self.queue:
            told, fragment, outcome, until, now = self.queue.popleft()
            lines.append(_line(self.second, _asked(told), fragment, outcome, until, now))
            size += len(lines[-1])
            if size > 65_000:
                os.write(self.file, "".join(lines).encode())
                lines, size = [], 0
        os.write(self.file, "".join(lines).encode())


class BareRequest:
    """What one request has of it."""

    __slots__ = ("_cache", "_number", "_open", "_pins", "_repeats", "_scope", "_told")

    def __init__(self, cache: Bare, scope: dict[str, Any]) -> None:
        self._cache = cache
        self._scope: Any = scope
        self._number = next(_numbers)
        self._told: Any = None
        self._pins: dict[str, _Entry] = {}
        self._repeats: dict[str, _Entry] = {}
        self._open = True

    def get_secret(
        self, path: str, *, version: int | None = None, fresh: bool = False, timeout: float | None = None
    ) -> Any:
        """The secret, the first time or again."""
        repeat = self._repeats.get(path)
        if repeat is not None and version is None and not fresh and time.monotonic() < repeat.until:
            next(self._cache.numbers)
            return repeat.secret
        cache = self._cache
        entry = cache.entries.get(path)
        now = time.monotonic()
        if entry is None or now >= entry.until or entry.lease is not None or fresh or not self._open:
            raise LookupError(path)
        if path in self._pins:
            self._repeats[path] = entry
        entry.last_read = now
        next(cache.numbers)
        told = self._told
        if told is None:
            scope = self._scope
            told = self._told = (
                scope["type"],
                scope["headers"],
                scope["client"],
                scope["method"],
                scope["path"],
                scope.get("route"),
                self._number,
            )
            if cache.strict:
                told = self._told = _asked(told)
        if cache.strict:
            cache.write(told, entry, now)
        else:
            queue = cache.queue
            if len(queue) >= _ROOM:
                raise OverflowError
            queue.append((told, entry.fragment, "hit", entry.until, now))
            if not cache.awake:
                raise RuntimeError
        if self._pins.setdefault(path, entry) is entry and self._open:
            return entry.secret
        raise LookupError(path)

    def close(self) -> None:
        """The end of the request."""
        self._open = False
        self._scope = None
        self._pins.clear()


class BareMiddleware:
    """The least that gives each request an accessor, and closes it."""

    def __init__(self, app: Callable[..., Awaitable[None]], cache: Bare) -> None:
        self._app = app
        self._cache = cache

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        secrets = BareRequest(self._cache, scope)
        scope.setdefault("state", {})["secrets"] = secrets
        token = _current.set(secrets)
        try:
            await self._app(scope, receive, send)
        finally:
            _current.reset(token)
            secrets.close()


def _asked(told: tuple[Any, ...]) -> str:
    kind, headers, client, method, place, route, number = told
    if kind != "http":
        raise LookupError(number)
    where = "path"
    if route is not None:
        where, place = "route", route.path
    for name, value in headers:
        if name == b"x-request-id" and len(value) <= 128 and value.replace(b"-", b"").isalnum():
            part = (
                f',"request_id":"{value.decode()}","client":{encode_basestring_ascii(client[0])}'
                f',"method":{encode_basestring_ascii(method)},"{where}":{encode_basestring_ascii(place)}'
            )
            if len(part) <= 192 and len(method) <= 32 and "\\" not in part:
                return part
    raise LookupError(headers)


def _line(second: tuple[float, str], asked: str, fragment: str, outcome: str, until: float, now: float) -> str:
    begin, start = second
    past = (now - begin) % 1.0
    return (
        f'{start}{_MILLISECONDS[floor(past * 1000)]}Z","event":"secret_access"{asked}{fragment}'
        f',"outcome":"{outcome}","ttl_left":{floor(until - now)}}}\n'
    )
