"""Under gevent: greenlets side by side each find their own accessor; in a process of its own, as patching is for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gevent")

SCRIPT = """
from gevent import monkey
monkey.patch_all()

import contextvars, gevent, gevent.event, gevent.pool
from tests.fakes import DYNAMIC, STATIC, FakeVault, manager_over
from vault_middleware import VaultWSGIMiddleware, current_secrets
from vault_middleware.errors import AccessorClosed

NUMBER = 64
seen, crossed = [], []
arrived, go = gevent.event.Event(), gevent.event.Event()


def app(environ, start_response):
    mine = environ["vault_middleware.secrets"]
    seen.append(mine)
    start_response("200 OK", [])
    if len(seen) == NUMBER:
        arrived.set()
    go.wait(20)
    for _ in range(3):
        gevent.sleep(0)
        if current_secrets() is not mine:
            crossed.append("itself")
        pair = mine.get_dynamic_secret(DYNAMIC)
        if pair["password"] != pair["username"].replace("user", "password"):
            crossed.append("a pair")
        # A greenlet without the context finds nobody's; with it, or with the accessor itself, ours.
        bare = gevent.spawn(found)
        copied = gevent.spawn(contextvars.copy_context().run, found)
        handed = gevent.spawn(mine.get_secret, STATIC)
        pooled = gevent.get_hub().threadpool.spawn(contextvars.copy_context().run, found)
        if bare.get(timeout=20) not in (None, mine) or copied.get(timeout=20) is not mine:
            crossed.append("a greenlet")
        if pooled.get(timeout=20) is not mine:
            crossed.append("a thread of the hub's pool")
        if handed.get(timeout=20) is not mine.get_secret(STATIC):
            crossed.append("by hand")
        yield b"x"


def found():
    try:
        return current_secrets()
    except AccessorClosed:
        return None


with manager_over(FakeVault()) as manager:
    middleware = VaultWSGIMiddleware(app, manager)

    def serve(number):
        body = middleware({"PATH_INFO": f"/{number}"}, lambda *_: None)
        for _ in body:
            gevent.sleep(0)
        body.close()
        if found() is not None:
            crossed.append("left behind")

    greenlets = [gevent.spawn(serve, number) for number in range(NUMBER)]
    assert arrived.wait(30), "not all of them are side by side"
    go.set()
    gevent.joinall(greenlets, timeout=60, raise_error=True)
    assert all(greenlet.successful() for greenlet in greenlets)
    assert len({id(each) for each in seen}) == NUMBER
    assert {repr(each) for each in seen} == {"<RequestSecrets closed>"}
    assert not any(leased.holds for leased in manager._engine.leases.live())
assert not crossed, crossed
print("all of them")
"""


def test_64_greenlets_each_find_their_own_accessor() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.stdout == "all of them\n", ran.stderr
