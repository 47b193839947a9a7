"""Each server that is named, as a real process: what starts the manager, what stops it, and that nothing is left."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from vault_middleware.devstack import DevStack

from .support import Running, answers, eventually, serve

HERE = Path(__file__).parent
PATIENCE = 30.0


@dataclass(frozen=True)
class Server:
    """How it is started, and by which hook the manager is closed at SIGTERM."""

    name: str
    command: tuple[str, ...]
    hook: str

    def __str__(self) -> str:
        return self.name


UVICORN = ("uvicorn", "--port", "{port}", "--log-level", "warning")
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2", "--log-level", "warning")
GRANIAN = ("granian", "--port", "{port}", "--workers", "2", "--log-level", "warning")

#: What ends a process of multiprocessing: from Python 3.13 it runs atexit too, and first.
WORKER_END = "atexit" if sys.version_info >= (3, 13) else "finalize"

SERVERS = [
    Server("uvicorn", (*UVICORN, "gateways:asgi"), "lifespan"),
    Server("uvicorn without lifespan", (*UVICORN, "--lifespan", "off", "gateways:asgi"), "sigterm"),
    Server("gunicorn sync", (*GUNICORN, "gateways:wsgi"), "atexit"),
    Server("gunicorn gthread", (*GUNICORN, "--worker-class", "gthread", "--threads", "4", "gateways:wsgi"), "atexit"),
    Server("waitress", ("waitress-serve", "--listen", "127.0.0.1:{port}", "gateways:wsgi"), "sigterm"),
    Server("granian ASGI", (*GRANIAN, "--interface", "asgi", "gateways:asgi"), "lifespan"),
    Server("granian WSGI", (*GRANIAN, "--interface", "wsgi", "gateways:wsgi"), WORKER_END),
]


class Load:
    """Requests from eight threads until it is told to end; what failed before the stop, it says."""

    def __init__(self, url: str) -> None:
        self.failures: list[str] = []
        self.requests = 0
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._served = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._run, args=(url,), daemon=True) for _ in range(8)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str) -> None:
        while not self._ended.is_set():
            try:
                answer = httpx.get(f"{url}/who", trust_env=False, timeout=20)
                problem = (
                    None if answer.status_code == 200 and answer.text.startswith("v-") else str(answer.status_code)
                )
            except httpx.TransportError as error:
                problem = repr(error)
            if problem and not self._stopping.is_set():
                self.failures.append(problem)
            self._served.release()
            if problem and self._stopping.is_set():
                return

    def wait_for_requests(self, number: int) -> None:
        for _ in range(number):
            assert self._served.acquire(timeout=PATIENCE)

    def stopping(self) -> None:
        self._stopping.set()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def wait_for_workers(server: Server, running: Running) -> None:
    """Until every worker has answered: a master that is stopped while it starts them may wait for them for ever."""
    seen: set[str] = set()

    def all_have_answered() -> bool:
        if answers(running):
            seen.add(httpx.get(f"{running.url}/pid", trust_env=False).text)
        return len(seen) == (2 if "--workers" in server.command else 1)

    eventually(all_have_answered, "every worker to answer", PATIENCE)


@pytest.mark.parametrize("server", SERVERS, ids=str)
def test_a_stop_under_load_leaves_no_lease_and_no_database_user(
    server: Server, stack: DevStack, tmp_path: Path
) -> None:
    with serve(server.command, stack, tmp_path, root=HERE) as running:
        wait_for_workers(server, running)
        load = Load(running.url)
        try:
            load.wait_for_requests(60)
            assert stack.leases()
            load.stopping()
            running.process.send_signal(signal.SIGTERM)
            running.process.wait(PATIENCE)
        finally:
            load.end()
        assert load.failures == []
        stops = running.lines("stop")
        assert {line["hook"] for line in stops} == {server.hook}, running.log.read_text()
        assert {line["pid"] for line in stops} == {line["pid"] for line in running.lines("start")}
        eventually(lambda: not stack.leases(), "the leases to be revoked", 5)
        eventually(lambda: not stack.postgres.users(), "the database users to go", 5)


@pytest.mark.parametrize("server", [server for server in SERVERS if server.hook != "lifespan"], ids=str)
def test_without_its_hook_the_lease_stays_and_this_would_be_seen(
    server: Server, stack: DevStack, tmp_path: Path
) -> None:
    with serve(server.command, stack, tmp_path, root=HERE, TEST_WITHOUT_HOOKS="1") as running:
        wait_for_workers(server, running)
        assert httpx.get(f"{running.url}/who", trust_env=False, timeout=20).text.startswith("v-")
        left = set(stack.leases())
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(PATIENCE)
        assert running.lines("stop") == []
        assert left
        assert left <= set(stack.leases())


@pytest.mark.parametrize("server", SERVERS, ids=str)
def test_a_wrong_variable_stops_the_start_with_the_error_that_names_it(
    server: Server, stack: DevStack, tmp_path: Path
) -> None:
    with serve(server.command, stack, tmp_path, root=HERE, VAULT_CLIENT_TIMEOUT="soon") as running:
        assert running.process.wait(PATIENCE) != 0
        said = running.log.read_text()
        assert "ConfigurationError" in said
        assert "VAULT_CLIENT_TIMEOUT" in said
