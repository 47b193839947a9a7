"""The tripwire around an application: ASGI and WSGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from .accessor import RequestSecrets
from .errors import VaultMiddlewareError
from .manager import SecretsManager
from .tripwire import Tripwire, Watch, checked
from .web import error_response

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ASGIGuard", "WSGIGuard"]

#: ASGI's own words, as a framework types them.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def _refusal() -> tuple[int, list[tuple[str, str]], bytes]:
    return error_response(VaultMiddlewareError("a response was held back"))


class ASGIGuard:
    """*app*, whose http responses a tripwire looks at; one that is held back becomes a 500, or ends where it stands."""

    def __init__(self, app: ASGIApp, mode: str, manager: Callable[[], SecretsManager]) -> None:
        self._app = app
        self._mode = checked(mode)
        self._manager = manager
        self._tripwire: Tripwire | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tripwire = self._tripwire
        if tripwire is None:
            tripwire = self._tripwire = Tripwire(self._manager(), self._mode)
        await self._app(scope, receive, _Sending(tripwire, scope["state"]["secrets"], send))


class _Sending:
    """The ``send`` of one response. Where it may be held back its start waits for the first piece of the body."""

    def __init__(self, tripwire: Tripwire, secrets: RequestSecrets, send: Send) -> None:
        self._watch = tripwire.watch(secrets)
        self._blocks = tripwire.blocks
        self._send = send
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if self._blocks and self._watch.found:
            return  # the rest of what is held back
        if kind == "http.response.start":
            found = self._watch.headers(message.get("headers", ()))
            if self._blocks:
                self._start = message
                if found:
                    await self._refuse()
                return
        elif kind == "http.response.body" and self._watch.body(message.get("body", b"")) and self._blocks:
            await self._refuse()
            return
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(start)
        await self._send(message)

    async def _refuse(self) -> None:
        """A 500 where nothing has been sent; else nothing more, so that the server ends the connection."""
        if self._start is None:
            return
        self._start = None
        status, headers, body = _refusal()
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})


class WSGIGuard:
    """*app*, whose responses a tripwire looks at; see :class:`ASGIGuard`."""

    def __init__(self, app: WSGIApplication, mode: str, manager: Callable[[], SecretsManager]) -> None:
        self._app = app
        self._mode = checked(mode)
        self._manager = manager
        self._tripwire: Tripwire | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        tripwire = self._tripwire
        if tripwire is None:
            tripwire = self._tripwire = Tripwire(self._manager(), self._mode)
        starting = _Starting(tripwire.watch(environ["vault_middleware.secrets"]), tripwire.blocks, start_response)
        return _Guarded(self._app(environ, starting), starting)


class _Starting:
    """The ``start_response`` of one response."""

    def __init__(self, watch: Watch, blocks: bool, start_response: StartResponse) -> None:
        self.watch = watch
        self.blocks = blocks
        self._start_response = start_response
        self._waits: tuple[Any, ...] | None = None
        self._write: Callable[[bytes], object] | None = None

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        raw = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers]
        self.watch.headers(raw)
        self._waits = (status, headers) if exc_info is None else (status, headers, exc_info)
        if not self.blocks or (exc_info is not None and self._write is not None):
            self.begin()
        return self._written

    def begin(self) -> None:
        """Give the server the start, if it waits."""
        if self._waits is not None:
            waits, self._waits = self._waits, None
            self._write = self._start_response(*waits)

    def take(self, piece: bytes) -> bytes:
        """What to send in place of *piece*.

        Raises
        ------
        VaultMiddlewareError
            The rest of a response that has begun is held back.
        """
        if self.watch.body(piece) and self.blocks:
            if self._waits is None:
                raise VaultMiddlewareError("the rest of a response was held back: a live value of a secret stood in it")
            return self.refuse()
        self.begin()
        return piece

    def refuse(self) -> bytes:
        """Start the 500 and give its body."""
        status, headers, body = _refusal()
        self._waits = (f"{status} Internal Server Error", headers)
        self.begin()
        return body

    def _written(self, piece: bytes) -> object:
        """The old way to send a body."""
        sent = self.take(piece)
        assert self._write is not None
        return self._write(sent)

    @property
    def refused(self) -> bool:
        """Whether what follows is held back."""
        return self.blocks and self.watch.found

    @property
    def waits(self) -> bool:
        """Whether the start has not been given to the server yet."""
        return self._waits is not None


class _Guarded:
    """The body; closed as the server closes it."""

    def __init__(self, body: Iterable[bytes], starting: _Starting) -> None:
        self._body = body
        self._starting = starting

    def __iter__(self) -> Iterator[bytes]:
        starting = self._starting
        for piece in self._body:
            yield starting.take(piece)
            if starting.refused:
                return
        if starting.refused and starting.waits:
            yield starting.refuse()
        starting.begin()

    def close(self) -> None:
        """Close the body."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()
