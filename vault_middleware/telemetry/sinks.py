"""Where audit lines go: a descriptor of this process, a file that may be rotated, a logger, or nowhere.

A sink takes whole lines, each by one write, and tells within :data:`BUDGET` whether it could: a full disk, a closed pipe
and a pipe that nobody reads are errors, not a wait. A standard stream may be shared with the whole container, so its mode
is left as it is: a pipe is opened once more, for us alone and without blocking, and where that is not permitted we look
whether there is room before each write. (A regular file on a network disk that hangs is beyond any such care.)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import stat
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from ..errors import AuditError, ConfigurationError

__all__ = ["BUDGET", "LINE", "FileSink", "LoggingSink", "Off", "Sink", "StreamSink", "open_sink"]

#: The longest a write may wait, in seconds. A sink that has just failed gets no time at all until it takes a line again,
#: so that a stuck sink costs an event loop this once, and not once a request.
BUDGET = 0.25

#: The longest line, and the most that one write to a pipe puts there undivided (PIPE_BUF), in bytes.
LINE = 4096

#: The most that is written to a file at once, in bytes; an append to one is never mixed with another's, however long.
BATCH = 64 * 1024

#: How often a sink looks whether its file was rotated, or its stream exchanged, in seconds.
LOOK = 1.0

#: The mode of a file that we make; after a rotation, that of the file before it.
MODE = 0o600

_STREAMS = {"stdout": 1, "stderr": 2}

#: What went wrong, and what to do about it.
_FAULTS = {
    errno.EAGAIN: ("nobody reads what is written there", "let its reader go on"),
    errno.EBADF: ("it is not open", "open it, or name another VAULT_AUDIT_LOG"),
    errno.EDQUOT: ("the quota is used up", "free space there"),
    errno.EFBIG: ("it is too large", "rotate it, or raise the limit"),
    errno.ENOENT: ("its directory does not exist", "make the directory"),
    errno.ENOSPC: ("the disk is full", "free space there"),
    errno.ENXIO: ("nobody reads it", "start its reader first"),
    errno.EPIPE: ("its reader is gone", "start the reader again"),
}


class Sink(Protocol):
    """Takes audit lines.

    Attributes
    ----------
    most
        How many bytes it takes at once; at least :data:`LINE`.
    """

    @property
    def most(self) -> int: ...

    def write(self, data: bytes, now: float | None = None, /) -> int:
        """Write *data*, whole lines of together at most :attr:`most` bytes; how many bytes, in whole lines, were taken.

        *now* is what the time is on the monotonic clock, for who has just looked.

        Raises
        ------
        AuditError
            Not one line was taken.
        """

    def after_fork(self) -> None:
        """In a forked child: fresh locks."""


class Off:
    """Takes everything, keeps nothing."""

    most = LINE

    def write(self, data: bytes, _now: float | None = None) -> int:
        """Nothing."""
        return len(data)

    def after_fork(self) -> None:
        """Nothing."""


class LoggingSink:
    """Each line as a record of level INFO; what its handlers do, and how long they take, is theirs."""

    most = LINE

    def __init__(self, name: str = "vault_middleware.audit") -> None:
        self._logger = logging.getLogger(name)
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)  # or the root's WARNING would drop every line

    def write(self, data: bytes, _now: float | None = None) -> int:
        """See :class:`Sink`; a logger that would drop the line counts as one that cannot take it."""
        logger = self._logger
        if not (logger.isEnabledFor(logging.INFO) and logger.hasHandlers()):
            raise AuditError(
                f"the audit line was not written: the logger {logger.name!r} drops it; "
                "enable it, set its level to INFO, and give it or its parents a handler"
            )
        for line in data.decode().splitlines():
            logger.info("%s", line)
        return len(data)

    def after_fork(self) -> None:
        """Logging takes care of its own locks."""


class _Descriptor:
    """A sink that writes to a file descriptor of its own.

    Threads write without a lock, so the number of the descriptor never changes and is never closed under them: another
    file is put in its place in one step.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self._fd = -1
        self.most = LINE
        #: Device and inode of what is behind the descriptor.
        self._seen: tuple[int, int] | None = None
        #: Whether a write could block: then there must be room first.
        self._blocks = False
        #: Held while we wait for room and use it, where another thread could take it in between.
        self._room = threading.Lock()
        #: A full disk has cut a line short: the next one begins on a line of its own.
        self._torn = False
        #: The last write failed.
        self._stuck = False
        #: Nothing of the above is the case: the next write goes the short way.
        self._plain = False
        self._look_at = float("-inf")

    def write(self, data: bytes, now: float | None = None) -> int:
        """See :class:`Sink`."""
        if now is None:
            now = self._clock()
        if self._plain and now < self._look_at:
            try:
                written = os.write(self._fd, data)
            except OSError:
                written = 0
            if written == len(data):
                return written
            if written:
                return self._cut_short(data, written)
        return self._write_with_care(data, now)

    def _write_with_care(self, data: bytes, now: float) -> int:
        deadline = now if self._stuck else now + BUDGET
        fault = 0
        try:
            if now >= self._look_at:
                self._look()
                self._look_at = now + LOOK
            if self._torn:
                os.write(self._fd, b"\n")
                self._torn = False
            written = self._write_in_time(data, deadline)
        except OSError as error:
            fault, written = error.errno or errno.EIO, 0
        if fault:
            self._plain, self._stuck = False, True
            raise AuditError(f"an audit line was not written to {self._name}: {_explain(fault)}")
        if written < len(data):
            return self._cut_short(data, written)
        self._plain, self._stuck = not self._blocks, False
        return written

    def _write_in_time(self, data: bytes, deadline: float) -> int:
        if not self._blocks:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:
                pass
        if self._room.acquire(timeout=max(0.0, deadline - self._clock())):
            try:
                while self._has_room(deadline):
                    try:
                        return os.write(self._fd, data)
                    except BlockingIOError:  # another process was faster
                        continue
            finally:
                self._room.release()
        raise BlockingIOError(errno.EAGAIN, "")

    def _has_room(self, deadline: float) -> bool:
        """Wait for room until *deadline*; an error counts as room, since the write will tell which."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(max(0.0, deadline - self._clock()) * 1000))

    def _cut_short(self, data: bytes, written: int) -> int:
        """The disk became full within *data*: what counts are the whole lines before that."""
        whole = data.rfind(b"\n", 0, written) + 1
        self._torn = whole < written
        self._plain, self._stuck = False, True
        if not whole:
            raise AuditError(f"an audit line was written only in part to {self._name}: {_explain(errno.ENOSPC)}")
        return whole

    def _look(self) -> None:
        """See that the descriptor is still the one to write to; may raise OSError."""
        raise NotImplementedError

    def _turn_to(self, fd: int) -> None:
        """Write to *fd* from now on, which becomes ours."""
        if self._fd < 0:
            self._fd = fd
            weakref.finalize(self, os.close, fd).atexit = False
        else:
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)

    def after_fork(self) -> None:
        """In a forked child: a fresh lock."""
        self._room = threading.Lock()


class StreamSink(_Descriptor):
    """Standard output or error as the process has it, whatever Python's ``sys.stderr`` is."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name, clock)
        self._stream = _STREAMS[name]
        os.fstat(self._stream)

    def _look(self) -> None:
        """Follow the stream to another file, and find out how that is written without ever blocking."""
        found = os.fstat(self._stream)
        if self._seen == (found.st_dev, found.st_ino):
            return
        fd = -1
        if stat.S_ISFIFO(found.st_mode):
            with contextlib.suppress(OSError):  # another user's pipe, or a system that has no such files
                fd = os.open(f"/proc/self/fd/{self._stream}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._blocks = fd < 0 and not stat.S_ISREG(found.st_mode)
        self._turn_to(os.dup(self._stream) if fd < 0 else fd)
        self.most = BATCH if stat.S_ISREG(found.st_mode) else LINE
        self._seen = found.st_dev, found.st_ino


class FileSink(_Descriptor):
    """A file, made if need be and appended to; one that was renamed or removed is followed by a new one of its name."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(path, clock)
        self._path = os.path.abspath(path)
        self._mode = MODE
        self._look()

    def _look(self) -> None:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is not None and self._seen == (there.st_dev, there.st_ino):
            return
        # O_NONBLOCK is for a named pipe; on a file it means nothing.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags, self._mode)
        except OSError:
            if self._fd >= 0 and os.fstat(self._fd).st_nlink:
                return  # the old file stands under another name: better there than nowhere
            raise
        found = os.fstat(fd)
        self._turn_to(fd)
        self.most = BATCH if stat.S_ISREG(found.st_mode) else LINE
        self._seen, self._mode = (found.st_dev, found.st_ino), stat.S_IMODE(found.st_mode)


def _explain(fault: int) -> str:
    what, advice = _FAULTS.get(
        fault, (os.strerror(fault), "see that it can be written, or name another VAULT_AUDIT_LOG")
    )
    return f"{what}; {advice}"


def open_sink(audit_log: str, *, clock: Callable[[], float] = time.monotonic) -> Sink:
    """The sink that ``VAULT_AUDIT_LOG`` names: ``stderr``, ``stdout``, a file's path, ``logging`` or ``off``.

    Raises
    ------
    ConfigurationError
        It cannot be opened.
    """
    if audit_log == "off":
        return Off()
    if audit_log == "logging":
        return LoggingSink()
    try:
        return StreamSink(audit_log, clock) if audit_log in _STREAMS else FileSink(audit_log, clock)
    except OSError as error:
        fault = error.errno or errno.EIO
    raise ConfigurationError(f"VAULT_AUDIT_LOG: {audit_log} cannot be opened: {_explain(fault)}")
