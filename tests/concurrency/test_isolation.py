"""Requests side by side: none ever sees another's accessor, however its work gets to another task or thread."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import anyio
import anyio.to_thread
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.fakes import DYNAMIC, STATIC, FakeVault, manager_over
from tests.waiting import in_threads
from vault_middleware import (
    RequestSecrets,
    SecretsManager,
    VaultMiddleware,
    VaultWSGIMiddleware,
    current_secrets,
)
from vault_middleware.errors import AccessorClosed

NUMBER = 64


@pytest.fixture
def manager() -> Iterator[SecretsManager]:
    with manager_over(FakeVault()) as manager:
        yield manager


async def _receive() -> Message:
    raise AssertionError


async def _send(_message: Message) -> None:
    """Nothing."""


# What a handler may do between two looks at its accessor, each giving the accessor that is current over there.


async def _in_the_task_itself() -> RequestSecrets:
    await asyncio.sleep(0)
    return current_secrets()


async def _in_a_child_task() -> RequestSecrets:
    async def child() -> RequestSecrets:
        await asyncio.sleep(0)
        return current_secrets()

    return await asyncio.create_task(child())


async def _in_a_thread_of_anyio() -> RequestSecrets:
    return await anyio.to_thread.run_sync(current_secrets)


async def _in_a_thread_of_asyncio() -> RequestSecrets:
    return await asyncio.to_thread(current_secrets)


async def _in_an_executor_with_the_context() -> RequestSecrets:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(None, context.run, current_secrets)


async def _in_a_task_group() -> RequestSecrets:
    found: list[RequestSecrets] = []

    async def child() -> None:
        found.append(current_secrets())

    async with anyio.create_task_group() as group:
        group.start_soon(child)
    return found[0]


WAYS = [
    _in_the_task_itself,
    _in_a_child_task,
    _in_a_thread_of_anyio,
    _in_a_thread_of_asyncio,
    _in_an_executor_with_the_context,
    _in_a_task_group,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_64_tasks_each_find_their_own_accessor(manager: SecretsManager, way: Callable[[], Any]) -> None:
    seen: list[RequestSecrets] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        mine = scope["state"]["secrets"]
        seen.append(mine)
        await together.wait()
        for _ in range(3):
            assert await way() is mine
            assert await mine.aget_dynamic_secret(DYNAMIC) is mine.get_dynamic_secret(DYNAMIC)

    middleware = VaultMiddleware(app, manager)

    async def main() -> None:
        async def one(number: int) -> None:
            await middleware({"type": "http", "headers": [], "path": f"/{number}"}, _receive, _send)
            with pytest.raises(AccessorClosed):
                current_secrets()

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(NUMBER):
                group.create_task(one(number))

    together = asyncio.Barrier(NUMBER)
    asyncio.run(main())
    assert len({id(each) for each in seen}) == NUMBER
    assert {repr(each) for each in seen} == {"<RequestSecrets closed>"}


def test_an_executor_without_the_context_finds_no_accessor_rather_than_anothers(manager: SecretsManager) -> None:
    """run_in_executor copies no context; its threads serve one request after the other."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        def far() -> None:
            with pytest.raises(AccessorClosed):
                current_secrets()

        await asyncio.get_running_loop().run_in_executor(pool, far)
        # What was handed over by hand works there.
        mine = scope["state"]["secrets"]
        secret = await asyncio.get_running_loop().run_in_executor(pool, mine.get_secret, STATIC)
        assert mine.get_secret(STATIC) is secret

    async def main() -> None:
        middleware = VaultMiddleware(app, manager)
        async with asyncio.TaskGroup() as group:
            for _ in range(NUMBER):
                group.create_task(middleware({"type": "http", "headers": [], "path": "/"}, _receive, _send))

    with ThreadPoolExecutor(4) as pool:
        asyncio.run(main())


def test_64_threads_each_find_their_own_accessor(manager: SecretsManager) -> None:
    """On eight threads that are used again and again, as a server does, with bodies that are sent later."""
    seen: list[RequestSecrets] = []
    crossed = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        mine = environ["vault_middleware.secrets"]
        seen.append(mine)
        start_response("200 OK", [])
        for _ in range(3):
            if current_secrets() is not mine:
                crossed.set()
            mine.get_dynamic_secret(DYNAMIC)
            yield b"x"

    middleware = VaultWSGIMiddleware(app, manager)

    def serve(_number: int) -> None:
        for _ in range(8):
            body = middleware({}, lambda *_: lambda _data: None)
            assert b"".join(body) == b"xxx"
            body.close()  # type: ignore[attr-defined]
            with pytest.raises(AccessorClosed):
                current_secrets()

    in_threads(NUMBER, serve)
    assert not crossed.is_set()
    assert len(seen) == NUMBER * 8
    assert {repr(each) for each in seen} == {"<RequestSecrets closed>"}


def test_64_threads_hold_their_leases_each_for_itself(manager: SecretsManager) -> None:
    """While rotations go on, each pair is of one lease, and in the end nobody holds anything."""
    done = threading.Event()

    def rotate() -> None:
        while not done.is_set():
            manager.get_secret(DYNAMIC, fresh=True)

    rotator = threading.Thread(target=rotate)
    rotator.start()

    def serve(number: int) -> None:
        pause = random.Random(number)
        for _ in range(20):
            with RequestSecrets(manager) as secrets:
                user = secrets.get_dynamic_secret(DYNAMIC)["username"]
                if pause.random() < 0.5:
                    secrets.get_secret(STATIC)
                assert secrets.get_dynamic_secret(DYNAMIC)["password"] == user.replace("user", "password")

    try:
        in_threads(NUMBER, serve)
    finally:
        done.set()
        rotator.join(30)
    assert not any(leased.holds for leased in manager._engine.leases.live())


def test_the_threads_of_one_request_share_its_accessor_and_see_one_pair(manager: SecretsManager) -> None:
    for _ in range(10):
        manager.get_secret(DYNAMIC, fresh=True)
        with RequestSecrets(manager) as secrets:

            def user(_number: int, secrets: RequestSecrets = secrets) -> str:
                return str(secrets.get_dynamic_secret(DYNAMIC)["username"])

            assert len(set(in_threads(16, user))) == 1
