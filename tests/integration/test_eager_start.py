"""What docs/servers.md says to add for a start before the first request, as real servers run it; and a server that is late."""

from __future__ import annotations

import re
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from tests.servers.cells import FINISHING
from vault_middleware import SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.errors import VaultUnavailable

from .support import DYNAMIC, STATIC, Running, answers, asked, eventually, serve, settings

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "servers.md").read_text()
FILES = dict(re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))

PATIENCE = 30.0
REQUESTS = 6
PREFETCH = f"{STATIC},dynamic:{DYNAMIC}"

#: The applications of the page's readers.
GATEWAY = "from gateways import wsgi as app\n"
FLASK = """
import os
from flask import Flask
from vault_middleware.integrations.flask import Vault, current_secrets

app = Flask(__name__)
vault = Vault(app)
app.get("/pid")(lambda: str(os.getpid()))

@app.get("/who")
def who():
    current_secrets().get_secret("api-gateway/api-key")
    return current_secrets().get_dynamic_secret("database/creds/api-gateway")["username"]
"""


ENDS, ENDS_WITH_0, AGAIN, UNTRIED = "ends", "ends with 0", "again", "untried"


@dataclass(frozen=True)
class Eager:
    """A file of the page under a server: the command, and with which status a start that fails ends the server.

    AGAIN: not at all, it starts the worker again. UNTRIED: another line shows it.
    """

    file: str
    command: tuple[str, ...]
    status: str = ENDS

    def __str__(self) -> str:
        return f"{self.file} {' '.join(self.command[:1] + self.command[-2:])}"


GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2", "--log-level", "warning")
WAITRESS = ("waitress-serve", "--listen", "127.0.0.1:{port}")
GRANIAN = ("granian", "--port", "{port}", "--workers", "2", "--log-level", "warning", "--interface", "wsgi")
UVICORN = ("uvicorn", "--port", "{port}", "--log-level", "warning")
UWSGI = ("uwsgi", "--http-socket", "127.0.0.1:{port}", "--need-app", "--master", "--enable-threads", *FINISHING)
FORKS = ("--processes", "2", "--module")

EAGER = [
    Eager("gunicorn.conf.py", (*GUNICORN, "gateway:app")),
    Eager("gunicorn.conf.py", (*GUNICORN, "--preload", "gateway:app"), UNTRIED),
    Eager("gunicorn.conf.py", (*GUNICORN, "--worker-class", "gevent", "gateway:app"), UNTRIED),
    Eager("flask/gunicorn.conf.py", (*GUNICORN, "gateway:app"), UNTRIED),
    Eager("django/gunicorn.conf.py", (*GUNICORN, "--preload", "django.core.wsgi:get_wsgi_application()"), UNTRIED),
    Eager("served.py", (*WAITRESS, "served:app")),
    Eager("served.py", (*GRANIAN, "served:app")),
    Eager("served.py", (*UWSGI, "--lazy-apps", *FORKS, "served:app")),
    Eager("forked.py", (*UWSGI, *FORKS, "forked:app"), AGAIN),
    Eager("wsgi.py", (*WAITRESS, "wsgi:application"), UNTRIED),
    Eager("asgi.py", (*UVICORN, "--workers", "2", "asgi:application"), AGAIN),
    Eager("asgi.py", ("hypercorn", "--bind", "127.0.0.1:{port}", "asgi:application"), ENDS_WITH_0),
]


def prepare(eager: Eager, folder: Path) -> dict[str, str]:
    """Paste the page's file beside the application; the environment that finds both."""
    if eager.command[0] == "uwsgi":
        pytest.importorskip("pyuwsgi", reason="there is no uWSGI here")
    if "gevent" in eager.command:
        pytest.importorskip("gevent", reason="there is no gevent here")
    (folder / "gateway.py").write_text(FLASK if eager.file.startswith("flask") else GATEWAY)
    (folder / Path(eager.file).name).write_text(FILES[eager.file])
    return {"PYTHONPATH": f"{folder}:{HERE}", "DJANGO_SETTINGS_MODULE": "django_site", "VAULT_PREFETCH": PREFETCH}


def workers(eager: Eager, running: Running) -> set[str]:
    """The processes that answer, when all of them have; no secret is read for it."""
    seen: set[str] = set()

    def all_have_answered() -> bool:
        if answers(running):
            seen.add(httpx.get(f"{running.url}/pid", trust_env=False).text)
        return len(seen) == (2 if {"--workers", "--processes"} & set(eager.command) else 1)

    eventually(all_have_answered, "every worker to answer", PATIENCE)
    return seen


def reads(stack: DevStack) -> int:
    """How often the server was asked for one of the two secrets."""
    return len(asked(stack, f"lotabots/{DYNAMIC}")) + len(asked(stack, "lotabots/api-gateway/data/api-key"))


def tried(running: Running) -> set[int]:
    """The processes that have started a manager."""
    return {line["pid"] for line in running.lines("start")}


def test_the_page_has_no_file_that_is_passed_over() -> None:
    assert {eager.file for eager in EAGER} == set(FILES)
    assert len(FILES) == PAGE.count("```python") == PAGE.count("<!-- file")


@pytest.mark.parametrize("eager", EAGER, ids=str)
def test_the_first_request_after_an_eager_start_asks_the_server_for_nothing(
    eager: Eager, stack: DevStack, tmp_path: Path
) -> None:
    environ = prepare(eager, tmp_path)
    before = reads(stack)
    with serve(eager.command, stack, tmp_path, root=tmp_path, **environ) as running:
        pids = workers(eager, running)
        assert {str(line["pid"]) for line in running.lines("start")} == pids, running.log.read_text()
        assert reads(stack) == before + 2 * len(pids)
        assert running.lines("secret_access") == []  # nobody has read yet
        for _ in range(REQUESTS):
            assert httpx.get(f"{running.url}/who", trust_env=False, timeout=20).text.startswith("v-")
        assert reads(stack) == before + 2 * len(pids)
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(PATIENCE)
        assert {str(line["pid"]) for line in running.lines("stop")} == pids
        assert [line["outcome"] for line in running.lines("secret_access")] == ["hit"] * (2 * REQUESTS)
    eventually(lambda: not stack.leases(), "the leases to be revoked", 5)


@pytest.mark.parametrize("eager", [eager for eager in EAGER if eager.status.startswith(ENDS)], ids=str)
def test_a_start_that_fails_ends_the_server_with_the_named_error(eager: Eager, stack: DevStack, tmp_path: Path) -> None:
    environ = prepare(eager, tmp_path)
    stack.bao.stop()
    with serve(eager.command, stack, tmp_path, root=tmp_path, VAULT_STARTUP_TIMEOUT="0.2s", **environ) as running:
        assert (running.process.wait(PATIENCE) == 0) == (eager.status == ENDS_WITH_0)
        said = running.log.read_text()
    assert "VaultUnavailable: the server at" in said
    assert "check VAULT_ADDR and its port" in said


@pytest.mark.parametrize("eager", [eager for eager in EAGER if eager.status == AGAIN], ids=str)
def test_a_server_that_replaces_its_workers_tries_again_until_a_start_succeeds(
    eager: Eager, stack: DevStack, tmp_path: Path
) -> None:
    environ = prepare(eager, tmp_path)
    stack.bao.stop()
    with serve(eager.command, stack, tmp_path, root=tmp_path, VAULT_STARTUP_TIMEOUT="0.2s", **environ) as running:
        eventually(lambda: len(tried(running)) > 2, "two workers to have ended, and another", PATIENCE)
        stack.bao.start()
        workers(eager, running)
        assert httpx.get(f"{running.url}/who", trust_env=False, timeout=20).text.startswith("v-")
    eventually(lambda: not stack.leases(), "the leases to be revoked", 5)


# -- a server that is late


def test_a_start_that_waits_succeeds_when_the_server_comes_up_meanwhile(stack: DevStack) -> None:
    stack.bao.stop()
    manager = SecretsManager(
        settings(stack, VAULT_PREFETCH=PREFETCH, VAULT_STARTUP_TIMEOUT="60s"), registry=CollectorRegistry()
    )
    failures: list[BaseException] = []

    def start() -> None:
        try:
            manager.start()
        except BaseException as error:
            failures.append(error)

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    try:
        eventually(lambda: not manager.health()["server"]["up"], "a try that fails")
        assert starting.is_alive()
        assert not manager.ready
        stack.bao.start()
        starting.join(PATIENCE)
        assert not starting.is_alive()
        assert failures == []
        assert manager.ready
        assert {STATIC, DYNAMIC} <= set(manager._engine.cache.entries)
    finally:
        manager.close()


def test_a_start_whose_server_never_comes_ends_with_the_error_and_can_be_made_again(stack: DevStack) -> None:
    stack.bao.stop()
    manager = SecretsManager(
        settings(stack, VAULT_PREFETCH=PREFETCH, VAULT_STARTUP_TIMEOUT="0.2s"), registry=CollectorRegistry()
    )
    with pytest.raises(VaultUnavailable, match="refuses the connection; check VAULT_ADDR"):
        manager.start()
    assert not manager.started
    stack.bao.start()
    with manager:
        assert manager.ready


LATE = [
    Eager("served.py", (*UVICORN, "gateways:asgi")),
    Eager("gunicorn.conf.py", (*GUNICORN, "gateway:app")),
]


@pytest.mark.parametrize("eager", LATE, ids=str)
def test_a_process_that_starts_before_the_server_serves_when_that_is_there(
    eager: Eager, stack: DevStack, tmp_path: Path
) -> None:
    environ = prepare(eager, tmp_path)
    stack.bao.stop()
    with serve(eager.command, stack, tmp_path, root=tmp_path, VAULT_STARTUP_TIMEOUT="60s", **environ) as running:
        eventually(lambda: "refuses the connection" in running.log.read_text(), "a try that fails", PATIENCE)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{running.url}/pid", trust_env=False, timeout=0.3)
        assert running.process.poll() is None
        stack.bao.start()
        pids = workers(eager, running)
        assert httpx.get(f"{running.url}/who", trust_env=False, timeout=20).text.startswith("v-")
        assert {str(line["pid"]) for line in running.lines("start")} == pids, "nobody was started twice"
