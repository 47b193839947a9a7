"""A picture of what the dashboard shows: ``python -m tests.monitoring dashboard.png``, in about a minute and a half.

A gateway on real servers lives through rotations, an outage of Vault and one of the database, and then leaks a value; each
panel is drawn from the same queries as Grafana's. Needs matplotlib.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from tests.integration.support import DYNAMIC, JWT, STATIC
from vault_middleware import RequestSecrets
from vault_middleware.devstack import DevStack
from vault_middleware.errors import VaultMiddlewareError

from .dashboard import DASHBOARD, queries
from .scraped import Gateway, Prometheus

#: Seconds of each part of the story.
WELL, OUTAGE, DATABASE, LEAK = 22, 14, 12, 10


def work(secrets: RequestSecrets) -> None:
    """A request of the story; what is not cached fails while Vault is away."""
    secrets.get_secret(STATIC)
    secrets.get_secret(JWT)
    with contextlib.suppress(VaultMiddlewareError):
        secrets.get_dynamic_secret(DYNAMIC)
    with contextlib.suppress(VaultMiddlewareError):
        secrets.get_secret("api-gateway/another")


def leaking(*values: str) -> Callable[[RequestSecrets], str | None]:
    """The same work; the first requests answer with *values*, one each."""
    left = iter(values)

    def spill(secrets: RequestSecrets) -> str | None:
        work(secrets)
        return next(left, None)

    return spill


#: What is shaded: from when to when, in Unix seconds, and in which colour.
Shades = list[tuple[float, float, str]]


def draw(prometheus: Prometheus, start: float, shades: Shades, file: Path) -> None:
    """Every panel, where it is in the dashboard; the time since *start*."""
    seconds = time.time() - start
    panels = {panel["id"]: panel for panel in DASHBOARD["panels"]}
    columns, rows = 3, math.ceil(len(panels) / 3)
    figure, axes = plt.subplots(rows, columns, figsize=(18, 3.4 * rows), layout="constrained")
    places = dict(zip(panels, axes.flat, strict=False))
    for panel, query, legend in queries("4s"):
        for each in prometheus.series(query, seconds, 1):
            points = {round(float(at) - start): float(value) for at, value in each["values"]}
            line = [points.get(second, math.nan) for second in range(round(seconds))]  # a gap stays one
            name = legend.replace("{{instance}}", "gateway")
            for label, value in each["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            places[panel["id"]].plot(line, label=name)
    for number, panel in panels.items():
        _dress(places[number], panel, seconds, [(begin - start, end - start, color) for begin, end, color in shades])
    for empty in list(axes.flat)[len(panels) :]:
        empty.set_visible(False)
    figure.savefig(file, dpi=80)


def _dress(axis: Any, panel: dict[str, Any], seconds: float, shades: Shades) -> None:
    units = {"s": "s", "reqps": "per second", "ops": "per second", "percentunit": "share"}
    axis.set_title(panel["title"], fontsize=11, loc="left")
    axis.set_ylabel(units.get(panel["fieldConfig"]["defaults"]["unit"], ""), fontsize=8)
    axis.set_xlim(0, seconds)
    axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # room for the legend
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)
    for begin, end, color in shades:
        axis.axvspan(begin, end, color=color, alpha=0.08)
    if axis.lines:
        axis.legend(fontsize=7, loc="upper left", ncols=2, framealpha=0.6)


def main() -> None:
    """Tell the story and draw it."""
    logging.getLogger("vault_middleware").setLevel(logging.CRITICAL)
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/dashboard.png")
    pause = threading.Event().wait
    with contextlib.ExitStack() as all_of_it:
        folder = Path(all_of_it.enter_context(tempfile.TemporaryDirectory()))
        stack = all_of_it.enter_context(DevStack(lease_ttl=10, lease_max_ttl=25, token_ttl=30, token_max_ttl=60))
        stack.put_secret("api-gateway/another", {"value": "x"})
        gateway = all_of_it.enter_context(Gateway("gateway", stack, work, tripwire="alarm", VAULT_CACHE_TTL="4s"))
        with Prometheus(folder, {"gateway": gateway.address}) as prometheus:
            start = time.time()
            pause(WELL)
            shades: Shades = []
            for server, seconds, color in ((stack.bao, OUTAGE, "tab:red"), (stack.postgres, DATABASE, "tab:orange")):
                begin = time.time()
                server.kill()
                pause(seconds)
                server.start()
                shades.append((begin, time.time(), color))
                pause(WELL)
            value: str = gateway.manager.get_secret(STATIC)["value"]
            begin = time.time()
            gateway.work = leaking(value, value)
            pause(LEAK)
            shades.append((begin, time.time(), "tab:purple"))
            draw(prometheus, start, shades, file)
    print(f"drawn: {file}")


if __name__ == "__main__":
    main()
