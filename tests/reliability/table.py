"""The fault table, and what every fault has in common.

A fault is a function that does it to real servers under a steady load, and reports. ``short`` cuts the durations for the
normal test run; what must hold is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.integration.support import STATIC
from vault_middleware import SecretsManager
from vault_middleware.errors import VaultMiddlewareError

from .load import Report

FAULTS: dict[str, Callable[[bool], Report]] = {}

#: The longest a read may take that needs no server: a thread's turn on two busy cores, seconds.
AT_ONCE = 0.5

#: How soon everything has to work again after the server does, in seconds.
RECOVERY = 5.0


def fault(function: Callable[[bool], Report]) -> Callable[[bool], Report]:
    """Enter *function* in the table."""
    FAULTS[function.__name__] = function
    return function


def wait(seconds: float) -> None:
    """Let the load run on for so long: the duration is what the fault is about, nothing is synchronised by it."""
    threading.Event().wait(seconds)


def settle(report: Report) -> None:
    """What holds for every fault at the end."""
    report.require(not report.failures, f"{len(report.failures)} requests failed")
    report.require(not report.leases_left, f"{report.leases_left} leases are left after the stop")
    report.require(report.requests > 0, "there was no load")


def works(manager: SecretsManager) -> bool:
    """Whether a read goes through to the server and back."""
    try:
        return bool(manager.get_secret(STATIC, fresh=True))
    except VaultMiddlewareError:
        return False
