"""Whether the machine itself stood still, as told by a process of its own that runs nothing of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Stalls"]

#: Asks for the processor and the disk again and again, and says at SIGTERM how late it got both at most.
_WATCH = """
import os, signal, sys, time
longest, last = 0.0, time.monotonic()
def look():
    global longest, last
    now = time.monotonic()
    longest, last = max(longest, now - last - 0.05), now
def end(*_):
    look()
    print(longest, flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print("watching", flush=True)
while True:
    time.sleep(0.05)
    os.pwrite(file, b"x", 0)
    os.fsync(file)
    look()
"""


class Stalls:
    """A context manager; afterwards ``longest`` is the longest time that the machine stood still, in seconds."""

    def __init__(self, folder: Path) -> None:
        self._command = [sys.executable, "-I", "-c", _WATCH, str(folder / "stalls")]
        self.longest = 0.0

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "watching\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        said, _ = self.process.communicate()
        self.longest = float(said)
