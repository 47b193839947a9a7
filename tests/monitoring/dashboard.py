"""The dashboard's queries as Prometheus takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["DASHBOARD", "queries"]

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "monitoring" / "dashboard.json").read_text())


def queries(interval: str = "5s") -> Iterator[tuple[dict[str, Any], str, str]]:
    """Panel, query and legend, with Grafana's variables as "All", and *interval* for its rate interval."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            text: str = target["expr"].replace("$__rate_interval", interval)
            text = text.replace("$job", ".*").replace("$instance", ".*")
            assert "$" not in text, text
            yield panel, text, target["legendFormat"]
