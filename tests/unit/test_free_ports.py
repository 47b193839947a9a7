"""Where the embedded servers listen: on ports that stay theirs while they are down."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vault_middleware.devstack import process
from vault_middleware.devstack.process import DevStackError, free_port

#: The ports of outgoing connections, where Linux says them.
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        port = free_port()
        listening.bind(("127.0.0.1", port))
        listening.listen()
        yield port


@pytest.mark.skipif(
    not RANGE.exists() or RANGE.read_text().split()[0] != "32768", reason="this system was told of other ports"
)
def test_no_outgoing_connection_gets_a_port_of_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as outgoing:
        assert outgoing.getsockname()[1] > max(process._PORTS)  # what the system gives to those who ask for none
    assert {free_port() in process._PORTS for _ in range(20)} == {True}


def test_a_port_that_is_taken_is_passed_over(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PORTS", range(taken, taken + 20))
    assert taken not in {free_port() for _ in range(50)}


def test_where_every_port_is_taken_the_error_says_which(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PORTS", range(taken, taken + 1))
    with pytest.raises(DevStackError, match=f"from {taken} to {taken} seems to be free"):
        free_port()
