"""``python -m benchmarks.instructions``: the machine's instructions that a read takes, counted by callgrind.

They hardly change from run to run, however busy the machine is. Times the floor's, a lock-free read of the same run, they
carry over to other builds of Python; ``--check`` holds those ratios against BOUNDS, and its exit status is 1 where one is
exceeded, and 3 where valgrind is not installed, so that nothing was checked.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

__all__ = ["counted", "missing"]

#: Times the floor: the most that each took on 3.11, 3.12 and 3.13 when it was last looked at, and a tenth more.
BOUNDS: dict[str, float] = {
    "repeat": 2.1,
    "request, nothing read": 3.9,
    "request, one read, buffered": 11.5,
    "request, one read, strict": 23.0,
    "outside, strict": 8.5,
    "outside, leased": 11.0,
    "Starlette, not reading": 80.2,
}

ROUNDS = 300


def missing() -> str:
    """Why nothing can be counted here; empty if it can."""
    return "" if shutil.which("valgrind") else "valgrind is not installed, so that no instruction was counted"


def counted() -> dict[str, float]:
    """Instructions by what is done, each once; user space only, so a write's own work in the kernel is not in it."""
    with tempfile.TemporaryDirectory() as folder:
        # os.getppid, which nobody else calls here, marks where one thing ends and the next begins.
        command = [
            *("valgrind", "--tool=callgrind", "--separate-threads=yes", "--dump-before=getppid"),
            f"--callgrind-out-file={folder}/out",
            *(sys.executable, "-X", "frozen_modules=on", "-m", "benchmarks.instructions", "--work"),
        ]
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        if done.returncode:
            raise RuntimeError(f"callgrind failed: {done.stderr[-2000:]}")
        # Of the main thread alone: what a renewer does meanwhile is not the reader's.
        dumps = sorted(Path(folder).glob("out.*-01"), key=lambda path: int(path.suffix[1:].partition("-")[0]))
        totals = [_total(path) for path in dumps]
    names = done.stdout.split("\n")[:-1]
    # Dump 1 is all before the first mark; then for each thing its own, and the few steps to the next mark.
    took = totals[1::2][: len(names)]
    empty = took[0]
    return {name: (total - empty) / ROUNDS for name, total in zip(names[1:], took[1:], strict=True)}


def _total(path: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def _work() -> None:
    """Within callgrind: each thing ROUNDS times between two marks."""
    from tests.fakes import DYNAMIC, STATIC  # noqa: PLC0415 (only the process that is measured needs it all)
    from vault_middleware import RequestSecrets  # noqa: PLC0415
    from vault_middleware.telemetry.buffer import Buffer  # noqa: PLC0415
    from vault_middleware.web import asgi_identity  # noqa: PLC0415

    from .bare import Bare, BareRequest  # noqa: PLC0415
    from .peers import LockFree  # noqa: PLC0415
    from .reads import SCOPE, opened  # noqa: PLC0415
    from .requests import _asgi, application  # noqa: PLC0415

    Buffer._rouse = lambda self: None  # type: ignore[method-assign]  # one thread: the writing is not the reader's
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        strict, buffered = (stack.enter_context(opened(Path(name), mode)) for mode in ("strict", "buffered"))
        floor = LockFree(STATIC)
        request = stack.enter_context(RequestSecrets(buffered, SCOPE, asgi_identity))
        request.get_secret(STATIC)

        def first(manager: object, read: bool = True) -> Callable[[], None]:
            def one() -> None:
                secrets = RequestSecrets(manager, SCOPE, asgi_identity)  # type: ignore[arg-type]
                if read:
                    secrets.get_secret(STATIC)
                secrets.close()

            return one

        bare, bare_strict = (Bare(STATIC, os.open(os.devnull, os.O_WRONLY), strict=mode) for mode in (False, True))

        def bare_first(cache: Bare, read: bool = True) -> Callable[[], None]:
            def one() -> None:
                secrets = BareRequest(cache, SCOPE)
                if read:
                    secrets.get_secret(STATIC)
                secrets.close()

            return one

        works: dict[str, Callable[[], object]] = {
            "empty": lambda: None,
            "floor": lambda: floor.get_secret(STATIC),
            "repeat": lambda: request.get_secret(STATIC),
            "request, nothing read": first(buffered, False),
            "request, one read, buffered": first(buffered),
            "request, one read, strict": first(strict),
            "outside, strict": lambda: strict.get_secret(STATIC),
            "outside, leased": lambda: strict.get_dynamic_secret(DYNAMIC),
            "bare work, nothing read": bare_first(bare, False),
            "bare work, one read, buffered": bare_first(bare),
            "bare work, one read, strict": bare_first(bare_strict),
            "Starlette, bare": _asgi(application(None)),
            "Starlette, not reading": _asgi(application(buffered)),
            "Starlette, one read, buffered": _asgi(application(buffered, read=True)),
            "Starlette, one read, strict": _asgi(application(strict, read=True)),
        }
        gc.disable()  # a collection would count for whatever it falls into
        for work in works.values():  # warm, and as specialised as the interpreter makes it
            for _ in range(50):
                work()
        for work in works.values():
            os.getppid()
            for _ in range(ROUNDS):
                work()
            os.getppid()
        print("\n".join(works), flush=True)
        os._exit(0)  # the end is not measured


def main() -> int:
    """Print the table; with ``--check`` the exit status says whether all is within bounds."""
    if "--work" in sys.argv:
        _work()
    if problem := missing():
        print(f"NOT CHECKED: {problem}", file=sys.stderr)
        return 3
    found = counted()
    floor, broken = found["floor"], False
    for name, count in found.items():
        bound = BOUNDS.get(name)
        over = bound is not None and count / floor > bound
        broken |= over
        said = "" if bound is None else f"  bound {bound:.1f}{'  EXCEEDED' if over else ''}"
        print(f"{name:32}{count:10.0f}{count / floor:8.1f} of the floor{said}")
    return int(broken and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
