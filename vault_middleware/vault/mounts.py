"""The mounts: what the server says of one, which are known, and that each is asked for once however many want to know."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from . import faults
from .paths import Mount
from .transport import Answer

__all__ = ["Mounts", "described"]

#: What a mount's type looks like: ``kv``, ``database``, a plugin's name.
_TYPE = r"[a-zA-Z0-9_.:@+/-]{1,128}"


class _Question:
    """A question for a mount that is under way."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.answered = False


class Mounts:
    """The mounts that are known; read without a lock, replaced as a whole.

    Where a mount's path ends is known from the answer alone, so the first segment of a secret's path stands for it: of all
    who ask below one at the same time, one asks the server, and the others look again when it has.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_path: dict[str, Mount] = {}
        self._lock = threading.Lock()
        self._questions: dict[str, _Question] = {}

    def of(self, full_path: str) -> Mount | None:
        """The mount that *full_path* lies in, if it is known. Mounts do not nest, so there is one at most."""
        end = full_path.find("/")
        while end != -1:
            mount = self._by_path.get(full_path[: end + 1])
            if mount is not None:
                return mount
            end = full_path.find("/", end + 1)
        return None

    def add(self, mount: Mount) -> None:
        """Remember *mount*."""
        with self._lock:
            self._by_path = {**self._by_path, mount.path: mount}

    def find(self, full_path: str, first: str, timeout: float, ask: Callable[[float], Mount]) -> Mount:
        """The mount that *full_path* lies in, which is *first* or lies below it; if need be by *ask*.

        Parameters
        ----------
        timeout
            The most this may take, in seconds; *ask* is called with what is left of it.

        Whatever *ask* raises is raised to its own caller alone: who waited asks then as well, and no later than after
        half of its time.
        """
        deadline = self._clock() + timeout
        while (mount := self.of(full_path)) is None:
            with self._lock:
                under_way = self._questions.get(first)
                if under_way is None and self.of(full_path) is None:  # it may have landed since the look
                    self._questions[first] = mine = _Question()
                else:
                    mine = None
            if mine is not None:
                return self._put(mine, first, deadline, ask)
            if under_way is None:
                continue
            ended = under_way.ended.wait(max(0.0, deadline - self._clock()) / 2)
            if not ended or not under_way.answered:
                # Its failure is not ours. To stand in line again might take the rest of our time, so all ask at once.
                mount = ask(deadline - self._clock())
                self.add(mount)
                return mount
        return mount

    def _put(self, question: _Question, first: str, deadline: float, ask: Callable[[float], Mount]) -> Mount:
        """Ask, and let those who wait go on."""
        try:
            mount = ask(deadline - self._clock())
            self.add(mount)
            question.answered = True
            return mount
        finally:
            with self._lock:
                del self._questions[first]
            question.ended.set()


def described(answer: Answer, full_path: str, server: str) -> Mount:
    """The mount in the *answer* to the question for that of *full_path*; VaultUnavailable if it is none of Vault's."""
    data = answer.body.get("data")
    where = data.get("path") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(where, str) or not isinstance(data.get("type"), str):
        raise faults.not_vault(server, "a mount without path and type")
    if not where.endswith("/") or not f"{full_path}/".startswith(where):
        raise faults.not_vault(server, "a mount that the path does not lie in")
    if not re.fullmatch(_TYPE, data["type"]):  # it is named in messages
        raise faults.not_vault(server, "a mount of no type that Vault has")
    options = data.get("options")
    version = options.get("version") if isinstance(options, dict) else None
    is_kv = data["type"] in ("kv", "generic")
    return Mount(where, data["type"], (2 if version == "2" else 1) if is_kv else None)
