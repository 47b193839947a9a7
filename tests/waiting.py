"""Waiting for a fact, and threads that start together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["eventually", "in_threads"]

T = TypeVar("T")


def eventually(happened: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Poll until *happened* gives something true."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if result := happened():
            return result
        pause.wait(0.02)
    raise AssertionError(f"waited in vain for {what}")


def in_threads(number: int, work: Callable[[int], T]) -> list[T]:
    """What *work* gives for 0 … *number*-1, on as many threads that start together; the first error is raised."""
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    together = threading.Barrier(number)

    def run(index: int) -> None:
        try:
            together.wait(20)
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(number)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    assert len(results) == number, "a thread hangs"
    return [results[index] for index in range(number)]
