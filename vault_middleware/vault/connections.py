"""Connections whose time-out is a total: a server that drips a byte a second cannot stretch it."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from typing import Any

import requests.adapters
import urllib3
import urllib3.connection
import urllib3.connectionpool

__all__ = ["Adapter"]

#: As many as may be in use at once; more are opened when needed, and closed after use.
_POOL = 64


class _Within(io.RawIOBase):
    """Reads a socket, each time with what is left of the whole time as the time-out."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """Headers and body within the time-out that the socket has when the answer is awaited.

    ``http.client`` applies it to each ``recv``; urllib3 has set it to what its total leaves.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        seconds = sock.gettimeout()
        if seconds is not None:
            self.fp.close()
            self.fp = io.BufferedReader(_Within(sock, seconds))


def _dial(host: str, port: int, seconds: float, options: Any) -> socket.socket:
    """A connection to the first of the host's addresses that answers; all of them share the time."""
    deadline = time.monotonic() + seconds
    addresses = socket.getaddrinfo(host.strip("[]"), port, 0, socket.SOCK_STREAM)
    failure: OSError = TimeoutError("timed out")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, kind, protocol)  # fails where the machine has no IPv6, say
            for option in options or ():
                sock.setsockopt(*option)
            sock.settimeout(left / (len(addresses) - tried))
            sock.connect(address)
            # What follows (a handshake with TLS) has what is left.
            sock.settimeout(max(0.001, deadline - time.monotonic()))
        except OSError as error:
            if sock is not None:
                sock.close()
            failure = error
        else:
            return sock
    raise failure


class _HTTP(urllib3.connection.HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> socket.socket:
        seconds = self.timeout
        if not isinstance(seconds, int | float):
            return super()._new_conn()
        try:
            return _dial(self._dns_host, self.port, seconds, self.socket_options)
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, "no connection") from error


class _HTTPS(_HTTP, urllib3.connection.HTTPSConnection):
    pass


class _HTTPPool(urllib3.connectionpool.HTTPConnectionPool):
    ConnectionCls = _HTTP


class _HTTPSPool(urllib3.connectionpool.HTTPSConnectionPool):
    ConnectionCls = _HTTPS

    def _validate_conn(self, conn: Any) -> None:
        # As the original, less the warning for each request: VAULT_SKIP_VERIFY is warned of once, at the start.
        if conn.is_closed:
            conn.connect()


def _unix_pool(path: str) -> type[_HTTPPool]:
    """A pool of connections to the unix socket at *path*."""

    class Unix(_HTTP):
        def _new_conn(self) -> socket.socket:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            timeout = self.timeout
            sock.settimeout(timeout if isinstance(timeout, int | float) else None)
            try:
                sock.connect(path)
            except OSError as error:
                sock.close()
                raise urllib3.exceptions.NewConnectionError(self, "no connection") from error
            return sock

    class Pool(_HTTPPool):
        ConnectionCls = Unix

    return Pool


class Adapter(requests.adapters.HTTPAdapter):
    """The adapter under our session: no retries of its own, and TLS as the context says and nothing else."""

    def __init__(self, context: ssl.SSLContext | None, *, server_name: str | None, unix_path: str | None) -> None:
        self._options: dict[str, Any] = {}
        if context is not None:
            self._options["ssl_context"] = context
            if server_name is not None:
                self._options["server_hostname"] = server_name
        self._unverified = context is not None and context.verify_mode == ssl.CERT_NONE
        self._pools = {"http": _HTTPPool if unix_path is None else _unix_pool(unix_path), "https": _HTTPSPool}
        super().__init__(pool_connections=4, pool_maxsize=_POOL, max_retries=0, pool_block=False)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        self.poolmanager = urllib3.PoolManager(connections, maxsize=maxsize, block=block, **options, **self._options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **options: Any) -> urllib3.ProxyManager:
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **options, **self._options)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        # requests would add certifi's authorities to the ones the settings name.
        pool = {"cert_reqs": "CERT_NONE" if self._unverified else "CERT_REQUIRED"}
        return host, pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing: the context knows it all."""
