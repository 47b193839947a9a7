"""The work that a read cannot leave out, in one function: what bounds ours from below, measured beside it.

No layers, no errors, no leases, no allow-lists, no bounds on what a line holds, no file that is rotated; only what is asked of
every read: its value checked against the clock, counted without a loss, pinned for the request, and a line about it with the
request behind it.
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
from operator import itemgetter
from typing import Any

__all__ = ["Bare", "BareMiddleware", "BareRequest"]

_TOLD = itemgetter("headers", "client", "method", "path")

#: The line's parts about a secret, and about nobody.
_FRAGMENT = (
    ',"secret_path":"api-gateway/api-key","kind":"static","version":3,"lease":null,'
    '"vault_request_id":"0af7651916cd43dd8448eb211c80319c"'
)
_MILLISECONDS = [f"{number:03d}" for number in range(1000)]
_NOBODY = ',"request_id":null,"client":null,"method":null'

#: What the server answers to a read.
_ANSWER = (
    b'{"request_id":"0af76519-16cd-43dd-8448-eb211c80319c","lease_id":"","renewable":false,"lease_duration":0,'
    b'"data":{"data":{"value":"x"},"metadata":{"created_time":"2026-01-01T00:00:00.0Z","custom_metadata":null,'
    b'"deletion_time":"","destroyed":false,"version":3}},"wrap_info":null,"warnings":null,"auth":null}'
)

_current: ContextVar[BareRequest] = ContextVar("bare")


class _Entry:
    __slots__ = ("secret", "until")

    def __init__(self, secret: Any) -> None:
        self.secret = secret
        self.until = time.monotonic() + 1e9


class Bare:
    """A cache of one secret, its count, and where lines go: *file* (strict), or a queue that :meth:`flush` writes off."""

    def __init__(self, path: str, file: int, *, strict: bool) -> None:
        self.entries = {path: _Entry({"value": "x"})}
        self.numbers = itertools.count()
        self.strict = strict
        self.file = file
        self.queue: deque[tuple[Any, float, float]] = deque()
        self.second = time.monotonic() - 0.5  # it lasts for ever, where others find the time of day anew each second

    def get_secret(self, path: str) -> Any:
        """Outside a request, strict."""
        entry = self.entries[path]
        now = time.monotonic()
        if now >= entry.until:
            raise LookupError(path)
        next(self.numbers)
        os.write(self.file, _line(_NOBODY, now - self.second, entry.until - now).encode())
        return entry.secret

    def refresh(self, path: str) -> None:
        """Another value took the place of the one at *path*: the server's answer, read and published."""
        self.entries[path] = _Entry(json.loads(_ANSWER)["data"]["data"])

    def flush(self) -> None:
        """Write what waits, 64 KiB at once."""
        lines: list[str] = []
        size = 0
        while self.queue:
            told, now, left = self.queue.popleft()
            lines.append(_line(_asked(told), now - self.second, left))
            size += len(lines[-1])
            if size > 65_000:
                os.write(self.file, "".join(lines).encode())
                lines, size = [], 0
        os.write(self.file, "".join(lines).encode())


class BareRequest:
    """What one request has of it."""

    __slots__ = ("_cache", "_pins", "_repeats", "_scope")

    def __init__(self, cache: Bare, scope: dict[str, Any]) -> None:
        self._cache = cache
        self._scope = scope
        self._pins: dict[str, _Entry] = {}
        self._repeats: dict[str, _Entry] = {}

    def get_secret(
        self, path: str, *, version: int | None = None, fresh: bool = False, timeout: float | None = None
    ) -> Any:
        """The secret, the first time or again."""
        repeat = self._repeats.get(path)
        if repeat is not None and version is None and not fresh and time.monotonic() < repeat.until:
            next(self._cache.numbers)
            return repeat.secret
        cache = self._cache
        entry = cache.entries[path]
        now = time.monotonic()
        if now >= entry.until:
            raise LookupError(path)
        next(cache.numbers)
        told = _TOLD(self._scope)
        if cache.strict:
            os.write(cache.file, _line(_asked(told), now - cache.second, entry.until - now).encode())
        else:
            cache.queue.append((told, now, entry.until - now))
        if path in self._pins:
            self._repeats[path] = entry
        self._pins[path] = entry
        return entry.secret

    def close(self) -> None:
        """The end of the request."""
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
    headers, client, method, path = told
    for name, value in headers:
        if name == b"x-request-id":
            asks = encode_basestring_ascii(value.decode())
            break
    else:
        raise LookupError(headers)
    return (
        f',"request_id":{asks},"client":{encode_basestring_ascii(client[0])},"method":{encode_basestring_ascii(method)}'
        f',"path":{encode_basestring_ascii(path)}'
    )


def _line(asked: str, past: float, left: float) -> str:
    return (
        f'{{"time":"2026-01-01T10:00:00.{_MILLISECONDS[floor(past * 1000) % 1000]}Z","event":"secret_access"{asked}{_FRAGMENT}'
        f',"outcome":"hit","ttl_left":{floor(left)}}}\n'
    )
