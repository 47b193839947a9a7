"""A real Prometheus, and real gateways for it to scrape."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from tests.integration.support import free_port, settings
from tests.waiting import eventually
from vault_middleware import RequestSecrets, SecretsManager, VaultMiddleware
from vault_middleware.devstack import DevStack

__all__ = ["RULES", "Gateway", "Prometheus", "quickened"]

RULES = Path(__file__).parents[2] / "monitoring" / "alerts.yml"

#: Between two requests to a gateway, in seconds.
PACE = 0.1


def quickened(rules: str) -> str:
    """*rules* with a second for each minute."""
    return re.sub(
        r"^( *(?:expr|for):.*|  +[^#\n]*\[\d+m].*)$",
        lambda line: re.sub(r"\b(\d+)m\b", r"\1s", line[0]),
        rules,
        flags=re.MULTILINE,
    )


class Gateway:
    """A Starlette application with the middleware and ``/metrics``, served by uvicorn on a thread, and under load.

    Parameters
    ----------
    work
        What each request does with its secrets; a text that it gives is the response. None: no requests come.
    tripwire
        The middleware's argument.
    """

    def __init__(
        self,
        name: str,
        stack: DevStack,
        work: Callable[[RequestSecrets], object] | None,
        *,
        tripwire: str | None = None,
        **variables: str,
    ) -> None:
        self.name = name
        self.work = work
        registry = CollectorRegistry()
        self.manager = SecretsManager(settings(stack, **variables), registry=registry)
        metrics = make_asgi_app(registry)
        app = Starlette(routes=[Mount("/metrics", metrics), Route("/", self._handle)])
        app.add_middleware(VaultMiddleware, manager=self.manager, handle_errors=True, tripwire=tripwire)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", access_log=False))
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._server.run, args=([self._socket],), name=f"gateway-{name}"),
            threading.Thread(target=self._load, name=f"load-{name}"),
        ]

    async def _handle(self, request: Request) -> Response:
        work = self.work
        found = None if work is None else await run_in_threadpool(work, request.state.secrets)
        return PlainTextResponse(found if isinstance(found, str) else "done")

    def _load(self) -> None:
        with httpx.Client(trust_env=False, timeout=20) as client:
            while not self._stopping.wait(PACE):
                if self.work is not None and self._server.started:
                    client.get(f"http://{self.address}/")

    def __enter__(self) -> Gateway:
        self.manager.start(wait=self.manager.config.startup == "eager")
        for thread in self._threads:
            thread.start()
        eventually(lambda: self._server.started, f"the gateway {self.name}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._threads[1].join(30)
        self._server.should_exit = True
        self._threads[0].join(30)
        self._socket.close()
        self.manager.close()
        assert not any(thread.is_alive() for thread in self._threads), f"the gateway {self.name} hangs"


class Prometheus:
    """Prometheus with our rules, a second for each minute, scraping twice a second; a context manager."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        self._folder = folder
        self._targets = targets
        self.address = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus:
        rules = self._folder / "alerts.yml"
        rules.write_text(quickened(RULES.read_text()))
        targets = "".join(
            f"      - targets: ['{address}']\n        labels: {{scenario: {name}}}\n"
            for name, address in self._targets.items()
        )
        config = self._folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\n"
            f"rule_files: ['{rules}']\n"
            f"scrape_configs:\n  - job_name: gateways\n    metrics_path: /metrics/\n    static_configs:\n{targets}"
        )
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self.address.removeprefix('http://')}",
        ]
        self._log = (self._folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        eventually(self._ready, "Prometheus to be ready")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"Prometheus ended by itself:\n{(self._folder / 'prometheus.log').read_text()}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.address}/-/ready", trust_env=False).status_code == 200
        return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query: objects with ``metric`` and ``value``."""
        return self._ask("query", query=expression)

    def series(self, expression: str, seconds: float, step: float) -> list[dict[str, Any]]:
        """The result of a range query over the last *seconds*: objects with ``metric`` and ``values``."""
        now = time.time()
        return self._ask("query_range", query=expression, start=str(now - seconds), end=str(now), step=str(step))

    def _ask(self, what: str, **parameters: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.address}/api/v1/{what}", params=parameters, trust_env=False, timeout=20)
        body = answer.json()
        assert body["status"] == "success", (parameters, body)
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    def fired(self, scenario: str | None = None) -> set[str]:
        """The names of the alerts that fire or have fired, of one scenario or of all."""
        chosen = "" if scenario is None else f', scenario="{scenario}"'
        found = self.query(f'last_over_time(ALERTS{{alertstate="firing"{chosen}}}[1h])')
        return {each["metric"]["alertname"] for each in found}


def together(stacks: contextlib.ExitStack, *parameters: dict[str, Any]) -> Iterator[DevStack]:
    """Stacks with these parameters, started one after the other, as there are few cores."""
    for each in parameters:
        yield stacks.enter_context(DevStack(**each))
