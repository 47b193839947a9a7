"""What every embedded server is: a process with a folder of its own, which starts again where it was, pauses and ends."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from pathlib import Path
from typing import ClassVar, Self

from .process import DevStackError, Process, on_free_port

__all__ = ["Server"]


class Server:
    """One server with a temporary folder; a context manager. How it is prepared and run is its subclass's to say.

    Attributes
    ----------
    port : int
        Of 127.0.0.1; the same after a ``stop()`` or ``kill()`` and another ``start()``, with all that is in the folder.
    """

    #: What messages call it.
    title: ClassVar[str]

    #: What asks it to end in good order.
    ending: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self.port = 0
        self._folder: Path | None = None
        self._process: Process | None = None

    def start(self) -> Self:
        """Start it, in the folder and on the port it had if it ran before, and wait until it is of use."""
        if self.running:
            return self
        if self._folder is not None:
            self._run(self.port)
            self._started_again()
            return self
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._folder = self._new_folder()
            self._prepare()
            on_free_port(self._run)
            self._started_first()
            undo.pop_all()
        return self

    def stop(self) -> None:
        """End it in good order; its folder stays for `start`."""
        if self._process is not None:
            self._process.stop(self.ending)

    def close(self) -> None:
        """End it and remove its folder."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._live().pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended; paused, it runs."""
        return self._process is not None and self._process.running

    @property
    def folder(self) -> Path:
        """The temporary folder with its configuration, data and logs."""
        if self._folder is None:
            raise DevStackError(f"{self.title} was not started")
        return self._folder

    def log_tail(self) -> str:
        """The last lines of its own log."""
        return self._process.log_tail() if self._process is not None else ""

    def pause(self) -> None:
        """Freeze it and its children (SIGSTOP): connections open, nothing answers."""
        self._live().pause()

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._live().resume()

    def kill(self) -> None:
        """End it and its children at once, without any good order."""
        self._live().kill()

    def _live(self) -> Process:
        if self._process is None:
            raise DevStackError(f"{self.title} was not started")
        return self._process

    # -- the subclass's

    def _new_folder(self) -> Path:
        """A temporary folder that the server's user can reach."""
        return Path(tempfile.mkdtemp(prefix=f"devstack-{type(self).__name__.lower()}-"))

    def _prepare(self) -> None:
        """Put in the folder what has to be there before the first start."""

    def _run(self, port: int) -> None:
        """Set `port` and the process, and wait until it is up."""
        raise NotImplementedError

    def _started_first(self) -> None:
        """It is up for the first time."""

    def _started_again(self) -> None:
        """It is up in a folder that has been in use."""
