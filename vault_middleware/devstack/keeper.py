"""Keeps one server: a tiny process between us and it, that ends the server when we end, however we end.

It is run as a script (``python -I -S keeper.py UID GID SIGNAL FOLDER NAME=VALUE… -- COMMAND…``), with our environment
for itself and the given one for the server, and imports the standard library alone. Our end of its standard input is
the sign of our life, which the kernel closes even after a ``kill -9``: the keeper then ends the server and removes
FOLDER. A byte that arrives before says: end the server now, keep the folder.

The server is the keeper's child, so its process id cannot be reused while the keeper lives, and on Linux it dies with
the keeper too. (A server that we started ourselves with ``PR_SET_PDEATHSIG`` would die with the *thread* that started
it; the keeper has only one.) The first line of the keeper's output is the server's process id; its exit status is the
server's.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["descendants", "kill_family", "states"]

_PR_SET_PDEATHSIG = 1


def states() -> dict[int, tuple[int, str]]:
    """Parent and state (``T`` is stopped, ``Z`` a zombie) of every process, by process id."""
    found: dict[int, tuple[int, str]] = {}
    if not os.path.exists("/proc/self/stat"):
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=True)
        for pid, parent, state in map(str.split, listing.stdout.splitlines()):
            found[int(pid)] = int(parent), state[0]
        return found
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                text = Path("/proc", name, "stat").read_text(encoding="ascii", errors="replace")
                state, parent = text[text.rindex(")") + 2 :].split(None, 2)[:2]
                found[int(name)] = int(parent), state
    return found


def descendants(pid: int) -> list[int]:
    """The process ids below *pid*; groups and sessions would not do, PostgreSQL gives each backend its own."""
    below, parents = [pid], {child: parent for child, (parent, _) in states().items()}
    for ancestor in below:
        below += [child for child, parent in parents.items() if parent == ancestor]
    return below[1:]


def kill_family(pid: int) -> None:
    """SIGKILL *pid* and all below it; stopped first, so that it cannot fork away, and last to go."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    for each in (*descendants(pid), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def end_family(pid: int, number: int, seconds: float) -> None:
    """Ask *pid* to end with signal *number*, paused or not, and kill what is left after *seconds*."""
    if number != signal.SIGKILL:
        for each in (pid, *descendants(pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while states().get(pid, (0, "Z"))[1] != "Z" and time.monotonic() < deadline:
            select.select([], [], [], 0.005)
    kill_family(pid)


def _become_server(uid: int, gid: int, environ: dict[str, str], command: list[str]) -> None:
    keeper, libc = os.getppid(), None
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - twenty milliseconds that only the child spends

        libc = ctypes.CDLL(None)
    os.setsid()
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after setuid, which clears it
        if os.getppid() != keeper:
            os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.execve(command[0], command, environ)  # noqa: S606


def main(uid: int, gid: int, number: int, folder: str, environ: dict[str, str], command: list[str]) -> int:
    """Start *command*, as *uid* and *gid* unless negative, and wait for its end or our starter's."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begun, begin = os.pipe()
    server = os.fork()
    if server == 0:
        try:
            _become_server(uid, gid, environ, command)
        except BaseException as error:  # a copy of the keeper must not go on
            os.write(2, f"cannot start {command[0]}: {error}\n".encode())
        os._exit(127)
    os.close(begin)
    os.read(begun, 1)  # ends when the command runs; before that the server would still ignore a SIGTERM, as we do
    os.write(1, f"{server}\n".encode())
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        orphaned = False
        if 0 in ready:
            orphaned = not os.read(0, 1)
            end_family(server, number, 2.0)
        else:
            os.read(wake, 64)
        ended, status = os.waitpid(server, 0 if 0 in ready else os.WNOHANG)
        if orphaned:
            shutil.rmtree(folder, ignore_errors=True)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    _uid, _gid, _number = map(int, sys.argv[1:4])
    _cut = sys.argv.index("--", 5)
    _environ = dict(pair.split("=", 1) for pair in sys.argv[5:_cut])
    sys.exit(main(_uid, _gid, _number, sys.argv[4], _environ, sys.argv[_cut + 1 :]))
