"""One request to the server: TLS, redirects, deadlines, bounds, and what is made of an answer that is none."""

from __future__ import annotations

import json
import math
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from ..config import SecretConfig
from ..errors import VaultSealed, VaultUnavailable
from . import faults
from .connections import Adapter

__all__ = ["MAX_BODY", "Answer", "Transport"]

#: The longest body that is read, in bytes.
MAX_BODY: Final = 32 * 1024 * 1024

#: How many redirects in a row are followed: a standby names the leader, and the leader may change once meanwhile.
_MAX_REDIRECTS: Final = 2

#: Files of certificates are looked at again so often, in seconds.
_LOOK_AT_FILES: Final = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered.

    ``started`` is when the request was sent (monotonic, seconds). ``errors`` are the server's own words: for telling cases
    apart, never for showing.
    """

    status: int
    body: dict[str, Any] = field(repr=False)
    started: float
    headers: Mapping[str, str] = field(repr=False)

    @property
    def errors(self) -> str:
        """The server's error texts in one lower-case line."""
        errors = self.body.get("errors")
        if not isinstance(errors, list):
            return ""
        return " ".join(error for error in errors if isinstance(error, str)).lower()

    @property
    def age(self) -> float:
        """Seconds that the answer has spent in a proxy's cache."""
        return _seconds(self.headers.get("Age")) or 0.0

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before another try, if the server says."""
        return _seconds(self.headers.get("Retry-After"))


class Transport:
    """Sends requests to one server, each within a total time; every answer that is not Vault's is an error of ours."""

    def __init__(
        self,
        config: SecretConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_call: Callable[[str, float], None] | None = None,
        closing: threading.Event | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._on_call = on_call
        self._closing = closing or threading.Event()
        self._unix = config.vault_addr.removeprefix("unix://") if config.vault_addr.startswith("unix://") else None
        self._base = "http://localhost" if self._unix is not None else config.vault_addr.rstrip("/")
        self._lock = threading.Lock()
        self._session: requests.Session | None = None
        self._under_way: dict[object, float] = {}
        self._files: object = None
        self._look_again_at = -math.inf
        self._bucket = None if config.rate_limit is None else _Bucket(*config.rate_limit, clock)

    def request(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        timeout: float,
        token: str | None = None,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request; at most *timeout* seconds, connecting, headers and body included.

        Parameters
        ----------
        operation
            The metric's label; ``health`` alone is not bound by ``VAULT_RATE_LIMIT``.
        path
            Below the server's address, percent-encoded: ``/v1/sys/health``.

        Raises
        ------
        VaultUnavailable
            No answer, or none of Vault's. VaultSealed where it says that it is sealed or not initialised.
        """
        deadline = self._clock() + min(timeout, self._config.client_timeout)
        if self._bucket is not None and operation != "health":  # that the limit is reached says nothing of the server
            self._wait_for_turn(self._bucket, deadline)
        sent = {"X-Vault-Request": "true", "Accept-Encoding": "identity", "User-Agent": "vault-middleware"}
        if token is not None:
            sent["X-Vault-Token"] = token
        sent.update(headers or {})
        before = self._clock()
        call = object()
        self._under_way[call] = before
        try:
            return self._follow(method, self._base + path, deadline, sent, body, params)
        finally:
            del self._under_way[call]
            if self._on_call is not None:
                self._on_call(operation, self._clock() - before)

    def oldest_call(self, now: float) -> float:
        """How long the longest call under way has taken so far, in seconds; 0 where there is none."""
        return max((now - since for since in list(self._under_way.values())), default=0.0)

    def close(self) -> None:
        """Close the connections that are idle."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    # -- one exchange

    def _follow(
        self,
        method: str,
        url: str,
        deadline: float,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
    ) -> Answer:
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._exchange(method, url, deadline, headers, body, params)
            if isinstance(answer, Answer):
                return answer
            url, params = self._same_server(url, answer), None
        raise VaultUnavailable(
            "the server redirects in a circle; set VAULT_ADDR to the address of the active node or its balancer"
        )

    def _same_server(self, url: str, target: str) -> str:
        """The *target* of a redirect, if it is the server that was asked: a token goes nowhere else."""
        here, there = urlsplit(url), _split(target)
        if not there.scheme and not there.netloc and there.path.startswith("/"):
            return f"{here.scheme}://{here.netloc}{target}"
        if (here.scheme, here.netloc.lower()) == (there.scheme, there.netloc.lower()):
            return target
        shown = f"{there.scheme[:10]}://{(there.hostname or '')[:100]}" if there.netloc else "no address"
        raise VaultUnavailable(
            f"the server redirects to {shown}, and a token is sent to no other server; "
            "set VAULT_ADDR to the address of the active node or of a balancer in front of it"
        )

    def _exchange(
        self,
        method: str,
        url: str,
        deadline: float,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
    ) -> Answer | str:
        """One request and its answer, or the target of a redirect."""
        failure: VaultUnavailable
        started = self._clock()
        left = deadline - started
        if left <= 0:
            raise faults.timed_out(self._shown)
        try:
            response = self._get_session().request(
                method,
                url,
                headers=dict(headers),
                json=body,
                params=params,
                timeout=urllib3.Timeout(total=left),  # type: ignore[arg-type]
                allow_redirects=False,
                stream=True,
            )
            with response:
                if response.status_code in (301, 302, 303, 307, 308):
                    return response.headers.get("Location", "")
                raw = self._read(response)
            return self._understand(response.status_code, raw, response.headers, started)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            failure = faults.explain(error, self._shown)
        except VaultUnavailable as error:
            failure = error.again()
        raise failure

    def _read(self, response: requests.Response) -> bytes:
        """The body, bounded. It is never decoded: we ask for no encoding, so one is none of Vault's."""
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise faults.not_vault(self._shown, "its body is compressed, which was not asked for")
        parts: list[bytes] = []
        size = 0
        while part := response.raw.read(65536, decode_content=False):
            size += len(part)
            if size > MAX_BODY:
                raise faults.not_vault(self._shown, f"its body is longer than {MAX_BODY} bytes")
            parts.append(part)
        return b"".join(parts)

    def _understand(self, status: int, raw: bytes, headers: CaseInsensitiveDict[str], started: float) -> Answer:
        if status == 204 and not raw:
            return Answer(status, {}, started, headers)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise faults.not_json(self._shown, status, raw)
        answer = Answer(status, body, started, headers)
        if status == 503 or (status == 501 and "initialized" in body):
            # A server that is not initialised is sealed as well.
            if body.get("initialized") is False or "not initialized" in answer.errors:
                raise VaultSealed(f"the server at {self._shown} is not initialised; run vault operator init")
            if "sealed" in answer.errors or body.get("sealed") is True:
                raise VaultSealed(f"the server at {self._shown} is sealed; unseal it (vault operator unseal)")
        return answer

    @property
    def _shown(self) -> str:
        return self._config.vault_addr

    def _wait_for_turn(self, bucket: _Bucket, deadline: float) -> None:
        pause = bucket.take(deadline - self._clock())
        if pause is None:
            raise VaultUnavailable(
                "VAULT_RATE_LIMIT leaves no request to the server in time; raise it, or VAULT_CLIENT_TIMEOUT"
            )
        if pause > 0:
            self._closing.wait(pause)

    # -- connections

    def _get_session(self) -> requests.Session:
        """The session with its pool of connections; a new one when a file of certificates has changed."""
        session = self._session
        now = self._clock()
        failure: VaultUnavailable | None = None
        if session is not None and now < self._look_again_at:
            return session
        with self._lock:
            files = faults.fingerprint(
                self._config.cacert, self._config.capath, self._config.client_cert, self._config.client_key
            )
            self._look_again_at = now + _LOOK_AT_FILES
            if self._session is None or files != self._files:
                # The one before is not closed: calls under way keep their connections to their end.
                try:
                    self._session, self._files = self._new_session(), files
                except OSError as error:
                    failure = faults.bad_files(error, self._shown)
            # Where a file is just being replaced, what was loaded holds until the new one is whole.
            if self._session is not None:
                return self._session
        assert failure is not None
        raise failure

    def _new_session(self) -> requests.Session:
        config = self._config
        session = _Session()
        session.trust_env = False  # no HTTPS_PROXY, no .netrc, no REQUESTS_CA_BUNDLE: only what the settings say
        session.headers.clear()
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))  # none is kept
        if config.proxy_addr and self._unix is None:
            session.proxies = {"http": config.proxy_addr, "https": config.proxy_addr}
        context = self._tls() if self._base.startswith("https:") else None
        adapter = Adapter(context, server_name=config.tls_server_name or None, unix_path=self._unix)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        return session

    def _tls(self) -> ssl.SSLContext:
        config = self._config
        context = ssl.create_default_context(cafile=config.cacert or None, capath=config.capath or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not config.cacert and not config.capath:
            # Slim images have no store of their own.
            context.load_verify_locations(requests.utils.DEFAULT_CA_BUNDLE_PATH)
        if config.client_cert:
            # An empty password, so that an encrypted key is an error and not a question at the terminal.
            context.load_cert_chain(config.client_cert, config.client_key or None, password="")
        if config.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: requests would read a redirect's body, unbounded, also where it is told not to follow."""


class _Bucket:
    """A token bucket: *rate* a second, *burst* at once. It only says how long to wait."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._every = 1.0 / rate
        self._depth = burst * self._every
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = -math.inf

    def take(self, at_most: float) -> float | None:
        """Take the next place: the seconds until it comes, or None, and no place, if that is more than *at_most*."""
        with self._lock:
            now = self._clock()
            free_at = max(self._free_at, now - self._depth) + self._every
            pause = max(0.0, free_at - now)
            if pause > at_most:
                return None
            self._free_at = free_at
            return pause


def _split(target: str) -> SplitResult:
    """A redirect's *target*; an empty one where it is no URL."""
    try:
        if target.isascii() and target.isprintable():
            return urlsplit(target)
    except ValueError:
        pass
    return urlsplit("")


def _seconds(text: str | None) -> float | None:
    """A header's seconds; None where it is missing, a date, or nonsense."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 9:
        return None
    return float(text)
