"""What it takes to be there: the import, and memory."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

from prometheus_client import CollectorRegistry

from vault_middleware import RequestSecrets, SecretConfig, SecretsManager
from vault_middleware.web import asgi_identity

from .measure import Figure
from .reads import SCOPE, opened

__all__ = ["imports", "memory"]

#: The five dependencies, as far as a middleware needs each of them.
DEPENDENCIES = "import hvac, prometheus_client, requests, starlette, tenacity"

#: What only some configurations or frameworks need.
UNNEEDED = (
    *("anyio", "django", "fastapi", "flask", "httpx", "psycopg", "sqlalchemy", "starlette.applications"),
    *("uvicorn", "cryptography", "vault_middleware.devstack", "vault_middleware.cli"),
)


def imports(rounds: int = 9) -> list[Figure]:
    """The import's CPU time in processes of their own, beside that of the five dependencies alone."""
    with tempfile.TemporaryDirectory() as folder:
        return _imports(rounds, {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder})


def _imports(rounds: int, environ: dict[str, str]) -> list[Figure]:
    own = "import sys, vault_middleware; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('vault_midd')))"
    files = subprocess.run([sys.executable, "-c", own], capture_output=True, text=True, check=True).stdout.split()
    # The classes stay as they are written; only the settings, which are listed from their fields, need theirs made.
    free = (
        "import dataclasses\nmake = dataclasses.dataclass\ndef mock(cls=None, **how):\n"
        " def kept(cls): return cls if cls.__module__ != 'vault_middleware.config' else make(cls, **how)\n"
        " return kept if cls is None else make(cls)\n"
        "dataclasses.dataclass = mock\nimport vault_middleware"
    )
    reading = (
        f"from importlib.machinery import SourceFileLoader as Of\nfor file in {files}: Of('m', file).get_code('m')"
    )
    codes = {
        "five": DEPENDENCIES,
        "ours": "import vault_middleware",
        "read": f"{DEPENDENCIES}\n{reading}",
        "free": free,
    }
    found: dict[str, list[float]] = {name: [] for name in codes}
    for round_ in range(rounds + 1):
        for name, code in codes.items():
            took = _cpu(code, environ)
            if round_:  # the first one compiles
                found[name].append(took)
    five, *others = (statistics.median(found[name]) for name in codes)
    ratio, reads, least = (each / five for each in others)
    code = f"import sys, vault_middleware; print(*[name for name in {UNNEEDED!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    five_has = subprocess.run(
        [sys.executable, "-c", code.replace("vault_middleware; ", f"hvac; {DEPENDENCIES}; ")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    extra = [name for name in loaded if name not in five_has]
    return [
        Figure(
            "import vault_middleware, of its five dependencies",
            "≤ 1.1",
            f"{ratio:.2f} ({ratio * five * 1000:.0f} ms of CPU; {five * 1000:.0f} ms)",
            ratio <= 1.1,
            f"its own {len(files)} modules: only to read their code comes to {reads:.2f}, to run it as well to what the last "
            "column says, where dataclasses cost nothing (there, their decorator gives each class back as it is written)",
            f"{least:.2f}",
        ),
        Figure(
            "modules it loads that the configuration does not need",
            "none",
            ", ".join(extra) or "none",
            not extra,
            f"looked for: {', '.join(UNNEEDED)}",
        ),
    ]


def _cpu(code: str, environ: dict[str, str]) -> float:
    """The CPU time of *code* in a process of its own, in seconds, without the interpreter's start and end."""
    timed = f"import time\nbegan = time.process_time()\n{code}\nprint(time.process_time() - began)"
    return float(subprocess.run([sys.executable, "-c", timed], check=True, env=environ, capture_output=True).stdout)


def memory(entries: int = 5_000, managers: int = 1_000, each: int = 10) -> list[Figure]:
    """What an entry takes over its data, and what accessors leave behind."""
    with tempfile.TemporaryDirectory() as name, opened(Path(name), "strict", cache_max_entries=entries + 1) as manager:
        manager.get_secret("app/warm")
        took = _traced(lambda: [None for number in range(entries) if manager.get_secret(f"app/{number}") is None])
        data = _traced(lambda: {f"app/{number}": {"value": f"value-{number}"} for number in range(entries)})
        overhead = (took - data) / entries
    idle = [
        SecretsManager(SecretConfig(vault_addr="http://127.0.0.1:1", audit_log="off"), registry=CollectorRegistry())
        for _ in range(managers)
    ]

    def requests() -> None:
        for one in idle:
            for _ in range(each):
                RequestSecrets(one, dict(SCOPE), asgi_identity).close()

    requests()
    left = _traced(requests)
    alive = sum(isinstance(found, RequestSecrets) for found in gc.get_objects())
    return [
        Figure(
            "memory of a cached entry over its data",
            "≤ 1 KiB",
            f"{overhead:.0f} bytes",
            overhead <= 1024,
            "entry, secret, the rendered part of its audit line, and its place in the renewer's heap",
        ),
        Figure(
            f"accessors of {managers:,} idle managers, {each} each: left behind",
            "nothing",
            f"{alive} accessors, {max(left, 0)} bytes",
            alive == 0 and left < 4096,
            "without the garbage collector's help: they make no cycles",
        ),
    ]


def _traced(work: object) -> int:
    """Bytes that *work* has allocated and not freed, or that what it returned holds."""
    assert callable(work)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = work()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return after - before
