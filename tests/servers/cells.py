"""The matrix: which application runs under which server, and what each command line is."""

from __future__ import annotations

import sys
from dataclasses import dataclass

__all__ = ["CELLS", "REPRESENTATIVE", "Cell"]


#: What ends a process of multiprocessing: from Python 3.13 it runs atexit too, and first.
WORKER_END = frozenset({"atexit" if sys.version_info >= (3, 13) else "finalize"})


@dataclass(frozen=True)
class Cell:
    """One application under one server. ``hooks``: what may close the manager; ``{port}`` stands for the port."""

    application: str
    server: str
    command: tuple[str, ...]
    hooks: frozenset[str]

    def __str__(self) -> str:
        return f"{self.application} under {self.server}"


ASGI = {
    "Starlette": "examples.starlette_gateway:app",
    "FastAPI": "examples.fastapi_gateway:app",
    "Django-ASGI": "examples.django_gateway:asgi",
}
WSGI = {
    "Flask": "examples.flask_gateway:create_app()",
    "Django-WSGI": "examples.django_gateway:wsgi",
    "WSGI": "examples.wsgi_gateway:app",
}

UVICORN = ("uvicorn", "--port", "{port}", "--log-level", "warning")
HYPERCORN = ("hypercorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning")
GRANIAN = ("granian", "--port", "{port}", "--workers", "2", "--log-level", "warning")
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2", "--log-level", "warning")
#: How uWSGI is to take SIGTERM, as the page says it.
FINISHING = ("--hook-master-start", "unix_signal:15 gracefully_kill_them_all")
_UWSGI = ("uwsgi", "--http-socket", "127.0.0.1:{port}", "--need-app", "--master", "--processes", "2")
UWSGI = (*_UWSGI, *FINISHING)
CUTTING_UWSGI = (*_UWSGI, "--die-on-term")
WAITRESS = ("waitress-serve", "--listen", "127.0.0.1:{port}")


def _asgi(application: str, target: str) -> list[Cell]:
    # Django serves no lifespan: what stops its manager is the process's end.
    has_lifespan = not application.startswith("Django")
    lifespan = frozenset({"lifespan"})
    return [
        Cell(application, "uvicorn", (*UVICORN, target), lifespan if has_lifespan else frozenset({"sigterm"})),
        Cell(
            application,
            "uvicorn --workers 2",
            (*UVICORN, "--workers", "2", target),
            lifespan if has_lifespan else frozenset({"sigterm"}),
        ),
        Cell(
            application,
            "hypercorn --workers 2",
            (*HYPERCORN, "--workers", "2", target),
            lifespan if has_lifespan else WORKER_END,
        ),
        Cell(
            application,
            "granian (ASGI)",
            (*GRANIAN, "--interface", "asgi", target),
            lifespan if has_lifespan else WORKER_END,
        ),
    ]


def _wsgi(application: str, target: str) -> list[Cell]:
    atexit = frozenset({"atexit"})
    threads = ("--worker-class", "gthread", "--threads", "4")
    factory = target.endswith("()")
    plain = target.removesuffix("()")
    uwsgi = (*UWSGI, "--enable-threads", "--module", f"{plain}{'()' if factory else ''}")
    return [
        Cell(application, "gunicorn sync", (*GUNICORN, target), atexit),
        Cell(application, "gunicorn sync --preload", (*GUNICORN, "--preload", target), atexit),
        Cell(application, "gunicorn gthread", (*GUNICORN, *threads, target), atexit),
        Cell(application, "gunicorn gthread --preload", (*GUNICORN, *threads, "--preload", target), atexit),
        Cell(application, "gunicorn gevent", (*GUNICORN, "--worker-class", "gevent", target), atexit),
        Cell(application, "waitress", (*WAITRESS, *(("--call",) if factory else ()), plain), frozenset({"sigterm"})),
        Cell(
            application,
            "granian (WSGI)",
            (*GRANIAN, "--interface", "wsgi", *(("--factory",) if factory else ()), plain),
            WORKER_END,
        ),
        Cell(application, "uWSGI --enable-threads", uwsgi, atexit),
    ]


CELLS = [
    *(cell for name, target in ASGI.items() for cell in _asgi(name, target)),
    *(cell for name, target in WSGI.items() for cell in _wsgi(name, target)),
]

#: One of each kind, for the normal run of the tests.
REPRESENTATIVE = [
    cell
    for cell in CELLS
    if str(cell)
    in {
        "FastAPI under uvicorn --workers 2",
        "Django-ASGI under hypercorn --workers 2",
        "Flask under gunicorn gevent",
    }
]
