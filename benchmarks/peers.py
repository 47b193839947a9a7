"""What one would use or write instead, each as its users would: the peers that the figures stand beside."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter

__all__ = ["AwsCache", "HandWritten", "LockFree", "hvac_read"]


class _Kept:
    __slots__ = ("deadline", "value")

    def __init__(self, value: Any, deadline: float) -> None:
        self.value = value
        self.deadline = deadline


class LockFree:
    """The least that a read with a time to live can cost: one dictionary look-up and one look at the clock."""

    def __init__(self, path: str) -> None:
        self._entries = {path: _Kept({"value": "x"}, time.monotonic() + 1e9)}

    def get_secret(self, path: str) -> Any:
        """No count, no audit line, no lease, no version."""
        entry = self._entries.get(path)
        if entry is not None and time.monotonic() < entry.deadline:
            return entry.value
        raise LookupError(path)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": when, "event": record.getMessage(), **record.__dict__["audit"]})


#: What a line says where no request is behind it.
_NOBODY = {"request_id": "0af7651916cd43dd8448eb211c80319c", "client": "10.0.0.7", "method": "GET", "path": "/orders/7"}


def _asked(scope: dict[str, Any]) -> dict[str, Any]:
    from starlette.requests import Request  # noqa: PLC0415 (as late as the rest)

    request = Request(scope)
    return {
        "request_id": request.headers.get("x-request-id") or uuid.uuid4().hex,
        "client": request.client.host if request.client else None,
        "method": request.method,
        "path": request.url.path,
    }


class HandWritten:
    """What one writes by hand: cachetools under a lock, labelled counters, and a JSON line by way of logging."""

    def __init__(self, path: str, log: Path) -> None:
        from cachetools import TTLCache  # noqa: PLC0415 (an extra)

        self.registry = CollectorRegistry()
        self._requests = Counter("reads", "Reads.", ["path"], registry=self.registry)
        self._hits = Counter("hits", "Hits.", ["path"], registry=self.registry)
        self._cache: Any = TTLCache(maxsize=1024, ttl=300)
        self._cache[path] = {"value": "x"}
        self._lock = threading.RLock()
        self._handler = logging.FileHandler(log)
        self._handler.setFormatter(_Json())
        self._log = logging.Logger("hand-written", logging.INFO)
        self._log.addHandler(self._handler)

    def get_secret(self, path: str, scope: dict[str, Any] | None = None) -> Any:
        """A hit, counted and logged; with *scope* for that request, as Starlette tells what the line says of it."""
        self._requests.labels(path).inc()
        with self._lock:
            value = self._cache[path]
        self._hits.labels(path).inc()
        asked = _NOBODY if scope is None else _asked(scope)
        self._log.info("secret_access", extra={"audit": {**asked, "secret_path": path, "outcome": "hit"}})
        return value

    def close(self) -> None:
        """Close the log."""
        self._handler.close()


class AwsCache:
    """aws-secretsmanager-caching, over a client that answers at once."""

    def __init__(self, path: str) -> None:
        import aws_secretsmanager_caching as aws  # type: ignore[import-untyped]  # noqa: PLC0415 (an extra)

        class Client:
            """What the cache asks of boto3's client."""

            class meta:  # noqa: N801 (boto3's name)
                class config:  # noqa: N801
                    user_agent_extra = ""

            def describe_secret(self, **_: Any) -> dict[str, Any]:
                return {"VersionIdsToStages": {"1": ["AWSCURRENT"]}}

            def get_secret_value(self, **_: Any) -> dict[str, Any]:
                return {"Name": path, "VersionId": "1", "SecretString": "x"}

        self._cache: Any = aws.SecretCache(client=Client())

    def get_secret(self, path: str) -> Any:
        """A hit, neither counted nor logged."""
        return self._cache.get_secret_string(path)


def hvac_read(address: str, token: str, path: str) -> Any:
    """A function that reads a KV v2 secret at the server each time, over one connection that is kept."""
    import hvac  # noqa: PLC0415 (not all who measure need it)

    client = hvac.Client(url=address, token=token)
    return lambda: client.read(path)["data"]["data"]
