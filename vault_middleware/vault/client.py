"""VaultClient: the calls that the rest of the package makes, each with what it can end in."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from hvac.api.auth_methods import Token as TokenAPI
from hvac.api.system_backend import Health, Lease

from ..config import SecretConfig
from ..errors import (
    AuthenticationError,
    SecretAccessDenied,
    SecretNotFound,
    VaultMiddlewareError,
    VaultSealed,
    VaultUnavailable,
)
from ..retry import FLOOR, Uniform, for_read
from . import answers, policies
from .answers import Forbidden, Grant, LeaseGone, Reading, Token
from .auth import Login
from .bridge import Bridge
from .mounts import Mounts, described
from .paths import Mount, encode, hint
from .transport import Answer, Transport

__all__ = ["Forbidden", "Grant", "LeaseGone", "Reading", "Token", "VaultClient"]

#: Second segments that hold leases and not keys, for where VAULT_KV_VERSION is all that is known of a mount.
_NOT_KV = frozenset({"creds", "static-cred", "static-creds"})


class VaultClient:
    """One server, one set of settings. It keeps nothing but the mounts it has met and where the log-in worked.

    Every call takes its *timeout* in seconds, for all of it; a path is relative to ``VAULT_NAMESPACE``. Unless said
    otherwise a call raises VaultUnavailable (VaultSealed) where the server gives no usable answer.
    """

    def __init__(
        self,
        config: SecretConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Uniform = random.uniform,
        on_call: Callable[[str, float], None] | None = None,
        closing: threading.Event | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._uniform = uniform
        self._closing = closing or threading.Event()
        self._transport = Transport(config, clock=clock, on_call=on_call, closing=self._closing)
        self._login = Login(config, self._transport, clock=clock)
        self._mounts = Mounts(clock=clock)
        self._proxied = config.auth_method == "proxy"

    @property
    def _server(self) -> str:
        return self._config.vault_addr

    def _bridge(
        self,
        operation: str,
        timeout: float,
        token: Token | None = None,
        *,
        namespace: str = "",
        correlation_id: str | None = None,
    ) -> Bridge:
        # A proxy's cache keys on every header: nothing that varies goes through it.
        headers = {"X-Correlation-ID": correlation_id} if correlation_id and not self._proxied else None
        value = token.value if token is not None and token.value else None
        return Bridge(self._transport, operation, timeout=timeout, token=value, namespace=namespace, headers=headers)

    # -- the server

    def probe(self, timeout: float) -> None:
        """Ask for the server's health, without a token; returns if it can answer reads."""
        answer: Answer = Health(self._bridge("health", timeout)).read_health_status(
            standby_ok=True, performance_standby_code=200, method="GET"
        )
        if answer.status not in (200, 429, 473):  # 429 and 473: standbys, which answer reads
            raise answers.failure(answer, self._server)

    def oldest_call(self, now: float) -> float:
        """How long the longest call under way has taken so far, in seconds; 0 where there is none."""
        return self._transport.oldest_call(now)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    # -- the token

    def log_in(self, timeout: float) -> Token:
        """A new token.

        Raises
        ------
        AuthenticationError
            The server refused, or there is no credential to show.
        """
        return self._login(timeout)

    def renew_token(self, token: Token, timeout: float) -> Token:
        """*token* with a new deadline.

        Raises
        ------
        AuthenticationError
            It cannot be renewed, or is not valid any more.
        """
        increment = f"{max(1, round(token.lease_duration))}s"
        answer: Answer = TokenAPI(self._bridge("renew_token", timeout, token, namespace=token.namespace)).renew_self(
            increment=increment
        )
        if answer.status in (400, 403, 404):
            raise AuthenticationError(
                "the token may not be renewed; it is replaced in time "
                f"(the default policy permits auth/token/renew-self, status {answer.status})"
            )
        self._only_success(answer)
        renewed = answers.token(answer, self._server, namespace=token.namespace, auth_path=token.auth_path)
        return Token(
            value=token.value,
            lease_duration=renewed.lease_duration,
            renewable=renewed.renewable,
            deadline=renewed.deadline,
            namespace=token.namespace,
            auth_path=token.auth_path,
            owned=token.owned,
        )

    def revoke_token(self, token: Token, timeout: float) -> None:
        """Revoke *token*, and with it every lease it made."""
        deadline = self._clock() + timeout
        answer: Answer = TokenAPI(self._bridge("revoke_token", timeout, token, namespace=token.namespace)).revoke_self()
        if answer.status == 403:
            if not self.token_is_valid(token, max(FLOOR, deadline - self._clock())):
                return  # which is what was wanted
            line = policies.call_line("auth/token/revoke-self")
            raise VaultUnavailable(f"the policy refuses to revoke our token; add this line to it: {line}")
        self._only_success(answer)

    def token_is_valid(self, token: Token, timeout: float) -> bool:
        """Whether the server still knows *token*; a refused read may mean either."""
        if self._proxied:
            return True  # the token is the proxy's own business
        answer: Answer = TokenAPI(self._bridge("lookup_token", timeout, token, namespace=token.namespace)).lookup_self()
        if answer.status == 403:
            return False
        self._only_success(answer)
        return True

    # -- secrets

    def mount_of(self, path: str, token: Token, timeout: float) -> Mount:
        """The mount that *path* lies in; asked for once a mount, also where many want to know at once.

        Raises
        ------
        Forbidden
            The token may see nothing below that mount, or there is none.
        """
        if (assumed := self._assumed(path)) is not None:
            return assumed  # and not remembered: it costs nothing, and whoever makes up names makes up mounts
        full = self._full(path)
        first = path.partition("/")[0]
        return self._mounts.find(full, first, timeout, lambda left: self._ask_for_mount(full, token, left))

    def _assumed(self, path: str) -> Mount | None:
        """What VAULT_KV_VERSION makes of *path*: its first segment is the mount."""
        version = self._config.kv_version
        if version is None:
            return None
        first, _, rest = path.partition("/")
        leased = rest.split("/", 1)[0] in _NOT_KV
        return Mount(f"{self._full(first)}/", "unknown" if leased else "kv", None if leased else version)

    def _ask_for_mount(self, full: str, token: Token, timeout: float) -> Mount:
        answer = self._retrying(
            lambda left: self._bridge("mount", left, token).get(f"/v1/sys/internal/ui/mounts/{encode(full)}"), timeout
        )
        if answer.status in (400, 403, 404):
            raise Forbidden
        self._only_success(answer)
        return described(answer, full, self._server)

    def read(
        self, path: str, token: Token, *, version: int | None, timeout: float, correlation_id: str | None
    ) -> Reading:
        """The secret at *path*; a KV read is tried again where that can help, one that may make a lease never.

        Raises
        ------
        SecretNotFound
            There is no such secret or version.
        Forbidden
            The policy refuses it, or the token is not valid any more.
        """
        deadline = self._clock() + timeout
        mount = self.mount_of(path, token, timeout)
        full = self._full(path)
        if not full[len(mount.path) :]:
            raise SecretNotFound(path, f"{path!r} is a mount; name a secret below it")
        if version is not None and mount.kv_version != 2:
            raise SecretNotFound(path, f"{path!r} has no versions, which only KV version 2 keeps; leave version out")
        url = f"/v1/{encode(full)}"
        if mount.kv_version == 2:
            url = f"/v1/{encode(mount.path[:-1])}/data/{encode(full[len(mount.path) :])}"
        params = None if version is None else {"version": version}

        def ask(left: float) -> Answer:
            bridge = self._bridge("read", left, token, correlation_id=correlation_id)
            answer: Answer = bridge.get(url, params=params)
            return answer

        left = deadline - self._clock()
        answer = ask(left) if mount.kv_version is None else self._retrying(ask, left)
        if answer.status == 200 and (reading := answers.reading(answer, mount, self._server)) is not None:
            return reading
        raise self._refusal(path, answer, mount, version)

    def _refusal(self, path: str, answer: Answer, mount: Mount, version: int | None) -> VaultMiddlewareError:
        which = f"{path!r}" if version is None else f"version {version} of {path!r}"
        more = hint(path, self._config.namespace)
        if answer.status == 403:
            return Forbidden(mount)
        if "unsupported operation" in answer.errors or answer.status == 405:
            return SecretNotFound(
                path,
                f"nothing can be read at {path!r}: its engine ({mount.type}) wants a write there, "
                f"which is outside what this package does; call the engine yourself{more}",
            )
        data = answer.body.get("data")
        if answer.status in (200, 404) and isinstance(data, dict):
            metadata = data.get("metadata")
            if isinstance(metadata, dict) and metadata.get("destroyed") is True:
                return SecretNotFound(path, f"{which} has been destroyed; write a new version")
            return SecretNotFound(path, f"{which} has been deleted; undelete it, or write a new version")
        if answer.status == 404 or (answer.status == 400 and "unknown role" in answer.errors):
            return SecretNotFound(path, f"there is no secret {which} in the mount {mount.path!r}; check the path{more}")
        return answers.failure(answer, self._server)

    def denied(self, path: str, mount: Mount | None) -> SecretAccessDenied:
        """The error for a refusal by the policy; it names the line that is missing."""
        token_at = self._login.namespace
        line = policies.read_line(path, mount, secrets_at=self._config.namespace, token_at=token_at)
        unknown = "" if mount is not None else ", or there is no such mount"
        leased = path.partition("/")[2].split("/", 1)[0] in _NOT_KV
        kv = "" if mount is not None or leased else " (of KV version 2, with data/ after the mount)"
        return SecretAccessDenied(
            path,
            f"the policy does not permit reading {path!r}{unknown}; add this line to {policies.where(token_at)}: {line}{kv}"
            + hint(path, self._config.namespace),
        )

    # -- leases

    def renew_lease(self, lease_id: str, increment: float, token: Token, timeout: float) -> Grant:
        """Renew a lease, asking for *increment* seconds from now.

        Raises
        ------
        LeaseGone
            It is over, or cannot be renewed.
        Forbidden
            The policy refuses it, or the token is not valid any more.
        """
        bridge = self._bridge("renew_lease", timeout, token, namespace=self._lease_at(lease_id))
        answer: Answer = Lease(bridge).renew_lease(lease_id, max(1, round(increment)))
        if answer.status == 403:
            raise Forbidden
        if answer.status == 400:
            # Other texts with this status pass: the database is down, say.
            for reason in ("lease not found", "lease is not renewable", "lease expired"):
                if reason in answer.errors:
                    raise LeaseGone(reason)
        self._only_success(answer)
        return answers.grant(answer, self._server)

    def revoke_lease(self, lease_id: str, token: Token, timeout: float) -> None:
        """Revoke a lease; one that is over already is no error.

        Raises
        ------
        Forbidden
            The policy refuses it, or the token is not valid any more.
        """
        bridge = self._bridge("revoke_lease", timeout, token, namespace=self._lease_at(lease_id))
        answer: Answer = Lease(bridge).revoke_lease(lease_id)
        if answer.status == 403:
            raise Forbidden
        if answer.status != 400 or "lease not found" not in answer.errors:
            self._only_success(answer)

    def ends_with(self, token: Token, lease_id: str) -> bool:
        """Whether revoking *token* ends a lease that it made: OpenBao leaves those in another namespace than the token's."""
        return self._lease_at(lease_id) == token.namespace

    def lease_line(self, call: str, lease_id: str) -> str:
        """What to add to the policy so that ``sys/leases/{call}`` is permitted for *lease_id*."""
        token_at = self._login.namespace
        line = policies.lease_line(call, lease_at=self._lease_at(lease_id), token_at=token_at)
        return f"add this line to {policies.where(token_at)}: {line}"

    def _lease_at(self, lease_id: str) -> str:
        """The namespace of a lease: where VAULT_NAMESPACE is part of the mount's path, that is the root."""
        namespace = self._config.namespace
        return "" if not namespace or lease_id.startswith(f"{namespace}/") else namespace

    # -- common to all

    def _full(self, path: str) -> str:
        namespace = self._config.namespace
        return f"{namespace}/{path}" if namespace else path

    def _only_success(self, answer: Answer) -> None:
        if not 200 <= answer.status < 300:
            raise answers.failure(answer, self._server)

    def _retrying(self, ask: Callable[[float], Answer], timeout: float) -> Answer:
        """*ask*, again where the server says "later" or the connection broke, within *timeout* seconds."""
        deadline = self._clock() + timeout
        retry_after = 0.0
        backoff = for_read(
            self._config.max_retries, lambda: deadline - self._clock(), lambda: retry_after, self._uniform
        )
        while True:
            failure: VaultUnavailable
            try:
                answer = ask(max(FLOOR, deadline - self._clock()))
            except VaultSealed:
                raise  # only a person can help
            except VaultUnavailable as error:
                failure, retry_after = error.with_traceback(None), 0.0
            else:
                if answer.status not in (412, 429) and answer.status < 500:
                    return answer
                failure, retry_after = answers.failure(answer, self._server), answer.retry_after or 0.0
            pause = backoff.failed(failure)
            if pause is None or self._closing.wait(pause):
                raise failure
