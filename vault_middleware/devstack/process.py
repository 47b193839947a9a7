"""What the embedded servers have in common: their process, their folder, a port, waiting, and errors."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from ..errors import VaultMiddlewareError
from . import keeper

__all__ = [
    "DevStackError",
    "ExtraMissing",
    "Process",
    "extra",
    "free_port",
    "on_free_port",
    "package_folder",
    "wait_until",
]

_TAIL = 20

#: Where free ports are looked for: below those of outgoing connections (from 32,768 on Linux, 49,152 elsewhere), of which one
#: could take the port of a server that is down just now, and is to be started again.
_PORTS = range(20_000, 32_768)


class DevStackError(VaultMiddlewareError):
    """An embedded server did not do what was asked of it; the message ends in the server's own words."""


class ExtraMissing(DevStackError, ImportError):
    """A package of the ``demo`` extra is not installed."""


def _missing(name: str) -> ExtraMissing:
    return ExtraMissing(f'the embedded servers need {name}: pip install "vault-middleware[demo]"')


def extra(name: str) -> Any:
    """Import the module *name*, which the ``demo`` extra brings."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    raise _missing(name)


def package_folder(name: str) -> Path:
    """Where the package *name* of the ``demo`` extra is installed; it is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(name)
    return Path(spec.submodule_search_locations[0])


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now; who uses it must be ready to find it taken.

    Raises
    ------
    DevStackError
        None of many that were tried is free.
    """
    for _ in range(100):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise DevStackError(
        f"no port of 127.0.0.1 from {_PORTS[0]} to {_PORTS[-1]} seems to be free; end what listens there"
    )


def on_free_port(run: Callable[[int], None]) -> None:
    """Call *run* with a free port, and with another if somebody was faster at it."""
    for last in (False, False, True):
        try:
            run(free_port())
        except DevStackError as error:
            if last or "address already in use" not in str(error).lower():
                raise
        else:
            return


def wait_until(condition: Callable[[], bool], seconds: float, *, every: float = 0.005) -> bool:
    """Poll *condition* until it holds, at most *seconds*; whether it did."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() >= deadline:
            return False
        pause.wait(every)
    return True


class Process:
    """One server's process, kept by a keeper, so that it ends when this process ends.

    Parameters
    ----------
    name : str
        For messages.
    command : sequence of str
        Absolute path of the program, and its arguments.
    folder : Path
        Its working directory; removed by the keeper should this process die.
    log : Path
        Its output is appended here.
    env : mapping of str
        Its whole environment.
    user : tuple of int, optional
        User and group id to run as.
    last : signal
        What `kill` and our death send; not SIGKILL where that would leave something behind.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        log: Path,
        env: Mapping[str, str],
        user: tuple[int, int] | None = None,
        last: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self._log = log
        self._owner = os.getpid()
        kept = [*map(str, (*(user or (-1, -1)), int(last), folder)), *(f"{key}={value}" for key, value in env.items())]
        with log.open("ab") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, *kept, "--", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=folder,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to answer, not the server's
            )
        self._stdin = cast("IO[bytes]", self._keeper.stdin)
        with cast("IO[bytes]", self._keeper.stdout) as told:
            line = told.readline()
        atexit.register(self._leave)
        if not line.strip().isdigit():
            self.kill()
            raise DevStackError(f"{name} could not be started:\n{self.log_tail()}")
        self.pid = int(line)

    @property
    def running(self) -> bool:
        """Whether the server has not ended; a paused one runs."""
        return self._keeper.poll() is None

    def log_tail(self) -> str:
        """The last lines that the server wrote."""
        with contextlib.suppress(OSError):
            return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])
        return ""

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Poll *ready* while the server runs; an error with the server's last words if it does not come up."""
        wait_until(lambda: not self.running or ready(), seconds)
        if self.running and ready():
            return
        how = f"was not ready within {seconds:g} s" if self.running else "ended"
        self.kill()
        raise DevStackError(f"{self.name} {how}; its last words:\n{self.log_tail()}")

    def wait(self, seconds: float) -> int | None:
        """Wait at most *seconds* for the server's end; its exit status, None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._keeper.wait(seconds)
            self._forget()
            return status
        return None

    def pause(self) -> None:
        """SIGSTOP to the server and all its children; returns when none of them runs any more."""
        self._signal_all(signal.SIGSTOP)
        wait_until(lambda: all(state in "TtZX" for state in self._states()), 5.0, every=0.001)

    def resume(self) -> None:
        """SIGCONT to all that `pause` stopped."""
        self._signal_all(signal.SIGCONT)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 5.0) -> None:
        """Ask the server to end, paused or not, and insist after *seconds*; nothing if it has ended."""
        if self.running:
            self._signal_all(signal.SIGCONT)
            self._signal(self.pid, number)
        if self.wait(seconds) is None:
            self.kill()

    def kill(self) -> None:
        """End the server and all its children at once; returns when they are gone."""
        if self._owner == os.getpid():  # a fork of the starter ends nothing
            with contextlib.suppress(BrokenPipeError):
                if self._stdin.closed is False:
                    self._stdin.write(b"k")
                    self._stdin.flush()
            self._keeper.wait()
            self._forget()

    def _leave(self) -> None:
        if self._owner == os.getpid():
            self._forget()
            self._keeper.wait()

    def _forget(self) -> None:
        atexit.unregister(self._leave)
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def _states(self) -> list[str]:
        table = keeper.states()
        return [table[pid][1] for pid in (self.pid, *keeper.descendants(self.pid)) if pid in table]

    def _signal_all(self, number: signal.Signals) -> None:
        # The server itself first: once stopped it has no further children.
        if self.running:
            self._signal(self.pid, number)
            if number == signal.SIGSTOP:
                wait_until(lambda: self._states()[:1] in (["T"], ["Z"], []), 5.0, every=0.001)
            for pid in keeper.descendants(self.pid):
                self._signal(pid, number)

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
