"""What the tests of the transport share: making one, asking it, and looking at how it fails."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.scripted import ScriptedServer
from vault_middleware.config import SecretConfig
from vault_middleware.errors import VaultMiddlewareError, VaultUnavailable
from vault_middleware.vault.transport import Answer, Transport

__all__ = ["LONG", "PATH", "SHORT", "TOKEN", "Make", "ask", "bare", "failure", "transports"]

TOKEN = "hvs.canary-of-the-transport"
PATH = "/v1/kv/data/key"

#: Seconds: enough for a busy machine; a call that should end by its time-out gets `SHORT`.
LONG = 30.0
SHORT = 0.4

Make = Callable[..., Transport]


@contextmanager
def transports() -> Iterator[Make]:
    """A function that makes transports from an address or a server, and settings; they are closed at the end."""
    made: list[Transport] = []

    def make(address: str | ScriptedServer, **settings: Any) -> Transport:
        options = {name: settings.pop(name) for name in ("clock", "on_call", "closing") if name in settings}
        url = address if isinstance(address, str) else address.url
        settings.setdefault("client_timeout", LONG)
        made.append(Transport(SecretConfig(vault_addr=url, **settings), **options))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


def ask(transport: Transport, timeout: float = LONG) -> Answer:
    """One read with the token."""
    return transport.request("read", "GET", PATH, timeout=timeout, token=TOKEN)


def failure(transport: Transport, timeout: float = LONG) -> str:
    """The message of one read's failure; that nothing hangs on the error is checked on the way."""
    with pytest.raises(VaultUnavailable) as caught:
        ask(transport, timeout)
    bare(caught.value)
    return str(caught.value)


def bare(error: VaultMiddlewareError, *secrets: str) -> None:
    """Check that *error* is a message of ours and nothing more: no cause, no context, no secret, and that it pickles."""
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(error.args) + repr(error.__dict__)
    for secret in (TOKEN, *secrets):
        assert secret not in shown
    assert "urllib3" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
