"""One request: bare, with the middleware, and with a read; in process, and over uvicorn with 32 connections."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.fakes import STATIC
from vault_middleware import SecretsManager, VaultMiddleware, VaultWSGIMiddleware

from .bare import Bare, BareMiddleware
from .measure import Figure, costs
from .reads import SCOPE, opened

__all__ = ["application", "in_process", "over_uvicorn"]

CONNECTIONS = 32


async def _plain(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


async def _looking(request: Request) -> PlainTextResponse:
    _ = request.state.secrets
    return PlainTextResponse("ok")


async def _reading(request: Request) -> PlainTextResponse:
    request.state.secrets.get_secret(STATIC)
    return PlainTextResponse("ok")


def application(manager: SecretsManager | None, *, read: bool = False, look: bool = False) -> Starlette:
    """A Starlette application of one route; with *manager*, behind the middleware."""
    routes = [Route("/orders/{id}", _reading if read else _looking if look else _plain)]
    return Starlette(
        routes=routes, middleware=[] if manager is None else [Middleware(VaultMiddleware, manager=manager)]
    )


def in_process() -> tuple[list[Figure], dict[str, float]]:
    """The figures, and for the chart times of bare by name."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        buffered, strict = (stack.enter_context(opened(Path(name), mode)) for mode in ("buffered", "strict"))
        apps: dict[str, Any] = {
            "bare": application(None),
            "not reading": application(buffered),
            "one read, buffered": application(buffered, read=True),
            "one read, strict": application(strict, read=True),
        }
        file = os.open(Path(name) / "bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        stack.callback(os.close, file)
        bare, bare_strict = Bare(STATIC, file, strict=False), Bare(STATIC, file, strict=True)
        apps |= {
            "bare work, not reading": BareMiddleware(application(None), bare),
            "bare work, looking": BareMiddleware(application(None, look=True), bare),
            "bare work, one read, buffered": BareMiddleware(application(None, read=True), bare),
            "bare work, one read, strict": BareMiddleware(application(None, read=True), bare_strict),
        }

        def flush() -> None:
            buffered.audit.flush()
            bare.flush()

        works = {name: (_asgi(app), 1000) for name, app in apps.items()}
        found = costs(works, rounds=15, between=flush)
        wsgi = _wsgi(strict)
    alone = found["bare"]
    times = {name: value / alone for name, value in found.items()}
    look = times["bare work, looking"] - times["bare work, not reading"]
    state = f"Starlette's request.state by itself takes {look:.2f}"
    figures = [
        Figure(
            f"Starlette request, {name}",
            f"≤ {goal}",
            f"{times[name]:.2f} of bare ({alone / 1000:.1f} µs)",
            times[name] <= goal,
            bound,
            f"{times[f'bare work, {name}']:.2f}",
        )
        for name, goal, bound in (
            ("not reading", 1.06, "accessor, identity and ContextVar; one more coroutine"),
            ("one read, buffered", 1.25, f"{state}; then the read, whose line is written by another thread"),
            ("one read, strict", 1.45, f"{state}; then the line: its parts about the request, and one os.write"),
        )
    ]
    return [*figures, wsgi], times


def _asgi(app: Any) -> Callable[[], object]:
    """One request to *app*, without a server and without a loop: nothing in it waits."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None:
        return

    def run() -> None:
        scope = {**SCOPE, "query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http"}
        try:
            app(scope, receive, send).send(None)
        except StopIteration:
            return
        raise AssertionError("it waited")

    return run


def _wsgi(manager: SecretsManager) -> Figure:
    def bare(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"ok"]

    wrapped: Any = VaultWSGIMiddleware(bare, manager=manager)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/orders/7", "SCRIPT_NAME": "", "REMOTE_ADDR": "10.0.0.7"}

    def call(app: Any) -> None:
        body = app(dict(environ), lambda _status, _headers: None)
        list(body)
        if hasattr(body, "close"):
            body.close()

    works: dict[str, tuple[Callable[[], object], int]] = {
        "bare": (lambda: call(bare), 20_000),
        "wrapped": (lambda: call(wrapped), 20_000),
    }
    try:
        works["flask"] = _flask(), 300
    except ImportError:
        return Figure(
            "WSGI wrapper", "≤ 1 µs where bare Flask takes 34", "not measured", None, "Flask is not installed"
        )
    found = costs(works)
    more = found["wrapped"] - found["bare"]
    scaled = more * 34 / found["flask"] * 1000 / 1000
    return Figure(
        "WSGI wrapper",
        "≤ 1 µs where bare Flask takes 34",
        f"{scaled:.2f} µs so scaled ({more:.0f} ns; Flask {found['flask'] / 1000:.0f} µs)",
        scaled <= 1,
        "accessor, identity, ContextVar and a body whose end is told",
    )


def _flask() -> Callable[[], object]:
    import flask  # noqa: PLC0415 (an extra)
    from werkzeug.test import EnvironBuilder, run_wsgi_app  # noqa: PLC0415

    app = flask.Flask("bare")
    app.add_url_rule("/orders/<number>", view_func=lambda number: "ok", endpoint="orders")
    environ = EnvironBuilder("/orders/7").get_environ()
    return lambda: run_wsgi_app(app, dict(environ))


# -- over uvicorn


def over_uvicorn(rounds: int = 21, seconds: float = 1.0) -> list[Figure]:
    """Throughput over HTTP, the servers taking turns under 32 connections.

    It is told in requests a second of the server's own CPU: its one thread is what bounds it, and how much of a core it is
    given says nothing of either server.
    """
    names = ("bare", "not reading", "one read", "bare work, not reading", "bare work, one read")
    with ExitStack() as stack:
        served = {name: stack.enter_context(_served(name)) for name in names}
        found: dict[str, list[float]] = {name: [] for name in names}
        for round_ in range(rounds + 1):
            for name, (port, process) in served.items():
                before = _cpu(process)
                done = asyncio.run(_load(port, seconds))
                if round_:  # the first one warms up
                    found[name].append(done / (_cpu(process) - before))
    bare = statistics.median(found["bare"])
    # Each beside the bare one of its own round, as the machine is faster in some rounds than in others.
    shares = {
        name: statistics.median(one / other for one, other in zip(each, found["bare"], strict=True))
        for name, each in found.items()
    }
    return [
        Figure(
            f"uvicorn, {CONNECTIONS} connections, {name}",
            f"≥ {goal:.2f} of bare",
            f"{shares[name]:.2f} ({bare:.0f} requests/s of CPU bare)",
            shares[name] >= goal,
            "what it takes in process, and what it takes to get its code and data back into the processor's caches, which are "
            "the server's and the kernel's between two reads",
            f"{shares[f'bare work, {name}']:.2f}",
        )
        for name, goal in (("not reading", 0.97), ("one read", 0.90))
    ]


@contextmanager
def _served(variant: str) -> Iterator[tuple[int, int]]:
    """A uvicorn of its own for *variant*; its port and process."""
    command = [sys.executable, "-c", f"from benchmarks.requests import _serve; _serve({variant!r})"]
    with Popen(command, stdout=PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline()), server.pid
        finally:
            server.terminate()


def _serve(variant: str) -> None:
    """In a process of its own: serve until SIGTERM."""
    import socket  # noqa: PLC0415

    import uvicorn  # noqa: PLC0415

    read = variant.endswith("one read")
    with tempfile.TemporaryDirectory() as name, opened(Path(name), "strict") as manager:
        app: Any = application(manager, read=read)
        if variant.startswith("bare"):
            app = application(None, read=read)
        if variant.startswith("bare work"):
            file = os.open(Path(name) / "bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            app = BareMiddleware(app, Bare(STATIC, file, strict=True))
        listening = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle on, and each answer waits
        listening.bind(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
        server.run(sockets=[listening])
        os._exit(0)


def _cpu(process: int) -> float:
    """Seconds of CPU that *process* has used."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _load(port: int, seconds: float) -> int:
    """How many requests all connections together got answered."""
    end = time.monotonic() + seconds
    request = f"GET /orders/7 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-Request-ID: abc-1\r\n\r\n".encode()

    async def connection() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        done = 0
        while time.monotonic() < end:
            writer.write(request)
            await reader.readuntil(b"\r\n\r\nok")
            done += 1
        writer.close()
        return done

    return sum(await asyncio.gather(*(connection() for _ in range(CONNECTIONS))))
