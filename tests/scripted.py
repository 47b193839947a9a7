"""A server whose every answer is scripted: it stands for timing and failure only, never for what Vault would say.

::

    with ScriptedServer() as server:
        server.on("/v1/sys/health", answer({"sealed": False}))
        server.on("POST /v1/auth/kubernetes/login", answer(status=503), answer({"auth": {…}}))  # the last one stays
        …
        assert server.requests[0].headers["x-vault-token"] == "…"

A reply is a function of one :class:`Exchange`. ``answer`` and ``redirect`` keep the connection, every other one ends it
(``page`` says so in a header). Replies that never end by themselves (``drip``, ``silence``, ``endless``) end when the client
goes away, with ``server.release()``, or with the server.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.certificates import Pair

__all__ = [
    "Exchange",
    "Recorded",
    "Reply",
    "ScriptedServer",
    "answer",
    "cut",
    "drip",
    "endless",
    "page",
    "raw",
    "redirect",
    "reset",
    "silence",
    "tunnel",
]

#: No socket of the server waits longer, in seconds: a test that hangs says so itself.
_WAIT = 30.0


@dataclass(frozen=True)
class Recorded:
    """A request as it came; the names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass
class Exchange:
    """One request and the connection to answer it on. ``keep`` decides whether the connection lives on."""

    request: Recorded
    connection: socket.socket
    released: threading.Event
    keep: bool = field(default=False)

    def send(self, data: bytes) -> None:
        """Send *data*."""
        self.connection.sendall(data)


Reply = Callable[[Exchange], None]


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def answer(body: object = None, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A whole answer with *body* as JSON (None: without a body)."""
    data = b"" if body is None else json.dumps(body).encode()
    return page(data, status, {"Content-Type": "application/json", **(headers or {})}, keep=True)


def page(data: bytes, status: int = 200, headers: Mapping[str, str] | None = None, *, keep: bool = False) -> Reply:
    """A whole answer with *data* as its body, whatever that is."""

    shown = {"Content-Length": str(len(data)), **({} if keep else {"Connection": "close"}), **(headers or {})}

    def reply(exchange: Exchange) -> None:
        exchange.send(_head(status, shown) + data)
        exchange.keep = keep

    return reply


def redirect(location: str, status: int = 307) -> Reply:
    """A redirect to *location*."""
    return page(b"", status, {"Location": location}, keep=True)


def raw(data: bytes) -> Reply:
    """*data* as it stands, then the end of the connection: an answer cut anywhere, or none of HTTP."""
    return lambda exchange: exchange.send(data)


def cut(body: object, after: int) -> Reply:
    """An answer with *body* as JSON, whose body ends *after* that many bytes."""
    data = json.dumps(body).encode()
    return raw(_head(200, {"Content-Length": str(len(data))}) + data[:after])


def reset(exchange: Exchange) -> None:
    """No answer: the connection is reset."""
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silence(exchange: Exchange) -> None:
    """No answer at all."""
    _until_gone(exchange)


def drip(start: bytes, again: bytes, every: float = 0.02) -> Reply:
    """*start* at once, then *again* for ever, a byte each *every* seconds."""

    def reply(exchange: Exchange) -> None:
        exchange.send(start)
        while True:
            for byte in again:
                if exchange.released.wait(every):
                    return
                exchange.send(bytes([byte]))

    return reply


def endless(exchange: Exchange) -> None:
    """A body that never ends, as fast as it is read."""
    exchange.send(_head(200, {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}))
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    while not exchange.released.is_set():
        exchange.send(chunk)


def tunnel(exchange: Exchange) -> None:
    """What an HTTP proxy does with CONNECT."""
    host, _, port = exchange.request.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_WAIT) as there:
        exchange.send(_head(200, {}))
        here = exchange.connection
        with selectors.DefaultSelector() as ready:
            ready.register(here, selectors.EVENT_READ, there)
            ready.register(there, selectors.EVENT_READ, here)
            while not exchange.released.is_set():
                for key, _events in ready.select(0.05):
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)


def _until_gone(exchange: Exchange) -> None:
    """Wait for the client to go away, or for the release."""
    with selectors.DefaultSelector() as ready:
        ready.register(exchange.connection, selectors.EVENT_READ)
        while not exchange.released.is_set():
            if ready.select(0.02):
                return


class ScriptedServer:
    """A threaded server on 127.0.0.1 that answers as it is told to; 404 where it is not.

    Parameters
    ----------
    unix
        The path of a unix socket to listen on instead.
    tls
        Certificate and key; the server then speaks TLS. `show` changes them.
    client_authority
        The file of an authority: a client must show a certificate of it.
    """

    def __init__(
        self, *, unix: str | None = None, tls: Pair | None = None, client_authority: str | None = None
    ) -> None:
        self.requests: list[Recorded] = []
        self._replies: dict[str, list[Reply]] = {}
        self._lock = threading.Lock()
        self._gone = threading.Condition(self._lock)
        self._context = None if tls is None else _server_context(tls, client_authority)
        self._client_authority = client_authority
        self._released = threading.Event()
        self._closed = False
        self._connections: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self.connections = 0
        if unix is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
            self.port: int = self._listener.getsockname()[1]
            self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(unix)
            self._listener.listen(128)
            self.port = 0
            self.url = f"unix://{unix}"

    # -- the script

    def on(self, route: str, *replies: Reply) -> None:
        """Answer *route* (a path, or a method and a path; ``*`` for all others) with *replies* in turn; the last one stays."""
        with self._lock:
            self._replies[route] = list(replies)

    def show(self, tls: Pair) -> None:
        """Show another certificate to connections from now on."""
        self._context = _server_context(tls, self._client_authority)

    def release(self) -> None:
        """End every reply that waits, and every later one at once."""
        self._released.set()

    def to(self, path: str) -> list[Recorded]:
        """The requests to *path*, so far."""
        return [request for request in self.requests if request.path == path]

    def wait_until_idle(self) -> None:
        """Wait until the server has closed every connection."""
        with self._gone:
            assert self._gone.wait_for(lambda: not self._connections, _WAIT), "a connection stays open"

    def _reply(self, request: Recorded) -> Reply:
        with self._lock:
            for route in (f"{request.method} {request.path}", request.path, "*"):
                replies = self._replies.get(route)
                if replies:
                    return replies.pop(0) if len(replies) > 1 else replies[0]
        return answer({"errors": []}, 404)

    # -- the server

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._accept, name="scripted-accept", daemon=True)
        self._threads.append(thread)
        thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and wait for every thread; from then on the port refuses."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections.values())
        self._released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            with contextlib.suppress(OSError):
                # Not the TLS layer's own: that would race with the thread which reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)
            assert not thread.is_alive(), "a thread of the scripted server hangs"
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self.connections += 1
                number = self.connections
                self._connections[number] = connection
                thread = threading.Thread(
                    target=self._serve, args=(connection, number), name=f"scripted-{number}", daemon=True
                )
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.settimeout(_WAIT)
        try:
            with contextlib.suppress(OSError):
                if self._context is None:
                    self._converse(connection, number)
                else:
                    self._over_tls(self._context, connection, number)
        finally:
            connection.close()
            with self._lock:
                del self._connections[number]
                self._gone.notify_all()

    def _over_tls(self, context: ssl.SSLContext, connection: socket.socket, number: int) -> None:
        if connection.recv(1, socket.MSG_PEEK) != b"\x16":  # no handshake: what a server in Go says
            connection.recv(65536)
            connection.sendall(
                _head(400, {"Connection": "close"}) + b"Client sent an HTTP request to an HTTPS server.\n"
            )
            return
        secure = context.wrap_socket(connection.dup(), server_side=True, do_handshake_on_connect=False)
        try:
            secure.do_handshake()
            self._converse(secure, number)
        except ssl.SSLError:
            # Let the client read the alert before the connection is reset.
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        finally:
            secure.close()

    def _converse(self, connection: socket.socket, number: int) -> None:
        buffer = bytearray()
        while (request := _next(connection, buffer, number)) is not None:
            self.requests.append(request)
            exchange = Exchange(request, connection, self._released)
            self._reply(request)(exchange)
            if not exchange.keep:
                return


def _server_context(tls: Pair, client_authority: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert, tls.key)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_authority)
    return context


def _next(connection: socket.socket, buffer: bytearray, number: int) -> Recorded | None:
    """The next request; None where the client has gone."""
    while b"\r\n\r\n" not in buffer:
        data = connection.recv(65536)
        if not data:
            return None
        if not buffer and not data[:1].isalpha():  # a TLS handshake, say
            connection.sendall(_head(400, {"Connection": "close"}) + b"400 Bad Request")
            return None
        buffer += data
    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.split(":", 1) for line in lines)
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    length = int(headers.get("content-length", "0"))
    while len(rest) < length:
        data = connection.recv(65536)
        if not data:
            return None
        rest += data
    buffer[:] = rest[length:]
    return Recorded(method, target, headers, rest[:length], number)
