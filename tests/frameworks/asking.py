"""Asking an ASGI application without a server, and what is seen of an accessor from outside."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Receive

__all__ = ["CLOSED", "OPEN", "get", "http_scope", "once", "websocket_scope"]

OPEN, CLOSED = "<RequestSecrets open>", "<RequestSecrets closed>"


def get(app: Any, path: str = "/", **headers: str) -> httpx.Response:
    """The answer of *app* to one request; what it raises becomes a 500."""

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(main())


def http_scope(path: str = "/", **more: Any) -> dict[str, Any]:
    """A GET request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
        **more,
    }


def websocket_scope(path: str = "/") -> dict[str, Any]:
    """A websocket's opening."""
    scope = http_scope(path, type="websocket", scheme="ws", subprotocols=[])
    del scope["method"]
    return scope


def once(
    app: ASGIApp,
    scope: dict[str, Any],
    *messages: Message,
    receive: Receive | None = None,
    sent: list[Message] | None = None,
) -> list[Message]:
    """What *app* sends, if it receives *messages* and then nothing more; in *sent* too, where it may raise."""
    sent = [] if sent is None else sent
    waiting = list(messages)

    async def receiving() -> Message:
        if waiting:
            return waiting.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        await app(scope, receive or receiving, send)

    asyncio.run(main())
    return sent
