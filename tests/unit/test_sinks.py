"""Where audit lines go: files that are rotated, disks that are full, pipes that nobody reads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import logging
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vault_middleware.errors import AuditError, ConfigurationError
from vault_middleware.telemetry import sinks
from vault_middleware.telemetry.sinks import FileSink, LoggingSink, Off, StreamSink, open_sink

LINE = b'{"event":"one"}\n'
OTHER = b'{"event":"other"}\n'


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Pipe:
    """A pipe in the place of standard error, with a reader that reads when told to."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 8192)

    def fill(self) -> None:
        os.set_blocking(self.write_end, False)
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self.write_end, b"x" * size)
        os.set_blocking(self.write_end, True)

    def read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self.read_end, 1 << 20)
        return b""

    def stop_reading(self) -> None:
        os.close(self.read_end)
        self.read_end = -1


@pytest.fixture(params=["our own description of the pipe", "a pipe that we may not open again"])
def pipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    pipe = Pipe()
    if request.param != "our own description of the pipe":
        real = os.open

        def forbidden(path: str, *args: int) -> int:
            if str(path).startswith("/proc/self/fd/"):
                raise PermissionError(errno.EACCES, "no")
            return real(path, *args)

        monkeypatch.setattr("vault_middleware.telemetry.sinks.os.open", forbidden)
    # pytest has plans of its own for descriptor 2.
    monkeypatch.setitem(sinks._STREAMS, "stderr", pipe.write_end)
    yield pipe
    for fd in (pipe.read_end, pipe.write_end):
        if fd >= 0:
            os.close(fd)


# -- files


def test_a_file_is_made_for_its_owner_alone_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    sink = open_sink(str(path))
    assert sink.write(LINE) == len(LINE)
    assert open_sink(str(path)).write(OTHER) == len(OTHER)
    assert path.read_bytes() == LINE + OTHER
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_was_renamed_is_followed_by_a_new_one_of_its_name_and_mode(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.log", Clock()
    sink = FileSink(str(path), clock)
    path.chmod(0o640)
    sink.write(LINE)
    path.rename(tmp_path / "audit.log.1")
    clock.now += sinks.LOOK
    sink.write(OTHER)
    assert (tmp_path / "audit.log.1").read_bytes() == LINE
    assert path.read_bytes() == OTHER


def test_the_mode_that_a_file_was_given_outlives_its_rotation(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.log", Clock()
    path.touch(0o640)
    path.chmod(0o640)
    sink = FileSink(str(path), clock)
    path.rename(tmp_path / "audit.log.1")
    clock.now += sinks.LOOK
    sink.write(LINE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_relative_path_stays_where_it_was_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.chdir(tmp_path)
    sink = FileSink("audit.log", clock)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "audit.log").unlink()
    clock.now += sinks.LOOK
    sink.write(LINE)
    assert (tmp_path / "audit.log").read_bytes() == LINE


def test_a_renamed_file_goes_on_being_written_while_no_new_one_can_be_made(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.log", Clock()
    sink = FileSink(str(path), clock)
    path.rename(tmp_path / "audit.log.1")
    path.mkdir()  # so that it cannot be opened
    clock.now += sinks.LOOK
    sink.write(LINE)
    assert (tmp_path / "audit.log.1").read_bytes() == LINE


def test_a_line_is_not_written_to_a_file_that_nobody_can_find_any_more(tmp_path: Path) -> None:
    folder, clock = tmp_path / "logs", Clock()
    folder.mkdir()
    path = folder / "audit.log"
    sink = FileSink(str(path), clock)
    path.unlink()
    folder.rmdir()
    clock.now += sinks.LOOK
    for _ in range(2):
        with pytest.raises(AuditError, match="directory does not exist; make the directory"):
            sink.write(LINE)
    folder.mkdir()
    sink.write(OTHER)
    assert path.read_bytes() == OTHER


def test_a_full_disk_is_an_error_that_says_so_and_does_not_repeat_the_line() -> None:
    sink = open_sink("/dev/full")
    with pytest.raises(AuditError, match=r"/dev/full: the disk is full; free space there$") as caught:
        sink.write(LINE)
    assert "event" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_line_that_was_cut_short_is_an_error_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    sink = FileSink(str(path))
    sink.write(LINE)
    with files_end_at(len(LINE) + 5):
        with pytest.raises(AuditError, match="only in part"):
            sink.write(OTHER)
        with pytest.raises(AuditError, match="too large"):
            sink.write(OTHER)
    sink.write(LINE)
    assert path.read_bytes().split(b"\n") == [LINE[:-1], OTHER[:5], LINE[:-1], b""]


def test_of_several_lines_that_were_cut_short_the_whole_ones_count_as_written(tmp_path: Path) -> None:
    sink = FileSink(str(tmp_path / "audit.log"))
    with files_end_at(2 * len(LINE) + 5):
        assert sink.write(LINE * 3) == 2 * len(LINE)


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Within the block no file of this process grows past *size* bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_named_pipe_takes_lines_as_long_as_it_has_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(
        ConfigurationError, match=r"VAULT_AUDIT_LOG: .*fifo cannot be opened: nobody reads it; start its"
    ):
        open_sink(str(path))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = open_sink(str(path))
    sink.write(LINE)
    assert os.read(reader, 100) == LINE
    os.close(reader)
    with pytest.raises(AuditError, match="reader is gone; start the reader again"):
        sink.write(LINE)


@pytest.mark.parametrize("name", ["", "missing/audit.log"])
def test_a_path_that_cannot_be_opened_is_a_wrong_configuration(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="VAULT_AUDIT_LOG") as caught:
        open_sink(str(tmp_path / name))
    assert caught.value.__context__ is None


def test_the_descriptor_is_closed_with_its_sink(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    sink = FileSink(str(path))
    assert open_files(path) == 1
    del sink
    gc.collect()
    assert open_files(path) == 0


def test_no_rotation_leaves_a_descriptor_behind(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.log", Clock()
    sink = FileSink(str(path), clock)
    for number in range(5):
        path.rename(tmp_path / f"audit.log.{number}")
        clock.now += sinks.LOOK
        sink.write(LINE)
    assert open_files(tmp_path) == 1


def open_files(below: Path) -> int:
    """How many descriptors of this process are open below that path."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith(str(below))
    return found


# -- standard streams


def test_a_line_goes_to_the_descriptor_of_standard_error(pipe: Pipe) -> None:
    sink = open_sink("stderr")
    for _ in range(3):
        sink.write(LINE)
    assert pipe.read() == LINE * 3


def test_a_pipe_that_nobody_reads_is_an_error_until_somebody_does(pipe: Pipe) -> None:
    sink = open_sink("stderr")
    pipe.fill()
    for _ in range(3):
        with pytest.raises(AuditError, match=r"stderr: nobody reads what is written there; let its reader go on$"):
            sink.write(LINE)
    pipe.read()
    sink.write(OTHER)
    assert pipe.read() == OTHER


def test_only_the_first_write_to_a_stuck_pipe_waits(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = StreamSink("stderr", Clock())
    waits: list[bool] = []
    real: Callable[[StreamSink, float], bool] = StreamSink._has_room

    def room(self: StreamSink, deadline: float) -> bool:
        waits.append(deadline > 0)
        return real(self, deadline)

    monkeypatch.setattr(StreamSink, "_has_room", room)
    pipe.fill()
    for _ in range(3):
        with pytest.raises(AuditError):
            sink.write(LINE)
    assert waits == [True, False, False]


def test_a_write_that_finds_the_pipe_full_goes_on_when_it_is_read(pipe: Pipe) -> None:
    sink = open_sink("stderr")
    sink.write(LINE)
    pipe.fill()
    timer = threading.Timer(0.02, pipe.read)
    timer.start()
    assert sink.write(OTHER) == len(OTHER)
    timer.join()


def test_a_shared_stream_is_never_switched_to_non_blocking(pipe: Pipe) -> None:
    sink = open_sink("stderr")
    sink.write(LINE)
    pipe.fill()
    with pytest.raises(AuditError):
        sink.write(LINE)
    assert os.get_blocking(pipe.write_end)


def test_a_pipe_whose_reader_is_gone_is_an_error_at_once(pipe: Pipe) -> None:
    sink = open_sink("stderr")
    sink.write(LINE)
    pipe.stop_reading()
    with pytest.raises(AuditError, match="reader is gone"):
        sink.write(LINE)


def test_threads_that_share_a_pipe_write_whole_lines(pipe: Pipe) -> None:
    sink = open_sink("stderr")
    lines = [bytes([65 + number]) * 900 + b"\n" for number in range(4)]
    seen = bytearray()
    done = threading.Event()

    def read() -> None:
        os.set_blocking(pipe.read_end, True)
        while len(seen) < 4 * 50 * 901:
            seen.extend(os.read(pipe.read_end, 1 << 16))
        done.set()

    def write(line: bytes) -> None:
        for _ in range(50):
            sink.write(line)

    threads = [threading.Thread(target=read, daemon=True), *(threading.Thread(target=write, args=(x,)) for x in lines)]
    for thread in threads:
        thread.start()
    assert done.wait(10)
    for thread in threads:
        thread.join(10)
    assert sorted(bytes(seen).splitlines(keepends=True)) == sorted(lines * 50)


def test_a_stream_that_is_exchanged_is_followed(pipe: Pipe, tmp_path: Path) -> None:
    clock = Clock()
    sink = StreamSink("stderr", clock)
    sink.write(LINE)
    with (tmp_path / "stderr.txt").open("wb") as file:
        os.dup2(file.fileno(), pipe.write_end)
    clock.now += sinks.LOOK
    sink.write(OTHER)
    assert (tmp_path / "stderr.txt").read_bytes() == OTHER
    assert pipe.read() == LINE
    assert os.read(pipe.read_end, 1) == b""  # nothing of ours keeps the old pipe open


def test_standard_output_is_descriptor_1(capfd: pytest.CaptureFixture[str]) -> None:
    open_sink("stdout").write(LINE)
    assert capfd.readouterr() == (LINE.decode(), "")


def test_standard_error_is_descriptor_2(capfd: pytest.CaptureFixture[str]) -> None:
    open_sink("stderr").write(LINE)
    assert capfd.readouterr() == ("", LINE.decode())


def test_a_stream_that_is_not_open_is_a_wrong_configuration() -> None:
    saved = os.dup(1)
    os.close(1)
    try:
        with pytest.raises(
            ConfigurationError, match="stdout cannot be opened: it is not open; open it, or name another"
        ):
            open_sink("stdout")
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def test_a_forked_child_does_not_wait_for_a_lock_of_its_parents(pipe: Pipe) -> None:
    sink = StreamSink("stderr")
    sink._room.acquire()
    sink.after_fork()
    assert sink.write(LINE) == len(LINE)


# -- the logger, and nowhere


def test_each_line_is_a_record_of_the_audit_logger(caplog: pytest.LogCaptureFixture) -> None:
    open_sink("logging").write(LINE + OTHER)
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        ("vault_middleware.audit", logging.INFO, '{"event":"one"}'),
        ("vault_middleware.audit", logging.INFO, '{"event":"other"}'),
    ]


def test_a_logger_that_would_drop_the_line_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    sink = LoggingSink("test.audit.dropped")
    logger = logging.getLogger("test.audit.dropped")
    for drops in ("level", "disabled", "handlers"):
        logger.setLevel(logging.ERROR if drops == "level" else logging.INFO)
        logger.disabled = drops == "disabled"
        logger.propagate = drops != "handlers"
        with pytest.raises(AuditError, match=r"'test\.audit\.dropped' drops it; enable it, set its level to INFO"):
            sink.write(LINE)
    assert not caplog.records


def test_a_level_that_the_application_has_set_is_left_alone() -> None:
    logging.getLogger("test.audit.quiet").setLevel(logging.ERROR)
    LoggingSink("test.audit.quiet")
    assert logging.getLogger("test.audit.quiet").level == logging.ERROR


def test_off_takes_everything() -> None:
    sink = open_sink("off")
    assert isinstance(sink, Off)
    assert sink.write(LINE) == len(LINE)
