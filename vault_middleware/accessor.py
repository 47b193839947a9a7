"""RequestSecrets: lives with one request, pins what it has read, and gives it back when the request ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Protocol

from .cache import Entry, Key
from .errors import AccessorClosed
from .holds import Holds
from .manager import SecretsManager
from .secret import DynamicSecret, Secret

__all__ = ["Identity", "RequestSecrets", "activate", "current_secrets", "deactivate"]

_current: ContextVar[RequestSecrets] = ContextVar("vault_middleware.secrets")


class Identity(Protocol):
    """Who asks: what the audit line says of a request. Looked at only when something is read."""

    @property
    def request_id(self) -> str | None: ...

    @property
    def client(self) -> str | None: ...

    @property
    def method(self) -> str | None: ...

    @property
    def place(self) -> tuple[str, str] | None:
        """``("route", "/items/{id}")``, else ``("path", "/items/7")``."""


#: How long a request goes on with a stale value before it asks again whether the server is back, in seconds.
STALE_PIN = 1.0


class _Held:
    """What the request has read once: the same object again, until its deadline."""

    __slots__ = ("entry", "repeat", "secret", "until")

    def __init__(self, entry: Entry, now: float) -> None:
        self.entry = entry
        self.secret = entry.secret
        # In an outage: a stale value is looked at again now and then, not for each of its reads.
        self.until = entry.fresh_until if now < entry.fresh_until else min(entry.stale_until, now + STALE_PIN)
        # next() on a count is atomic, where += on an integer loses updates between threads.
        self.repeat: Callable[[], int] = itertools.count().__next__


class RequestSecrets:
    """The secrets as one request sees them.

    Within the request a path gives the same object while that is valid, so that user and password never come from two
    leases; a lease it has read is not revoked before the request has ended. Close it when the response is finished.
    """

    __slots__ = (
        "__weakref__",
        "_beside",
        "_clock",
        "_closed",
        "_context",
        "_dynamic",
        "_held",
        "_hit",
        "_holds",
        "_identity",
        "_manager",
        "_outer",
    )

    def __init__(self, manager: SecretsManager, identity: Identity | None = None) -> None:
        self._manager = manager
        self._identity = identity
        self._context: str | None = None
        self._held: dict[Key, _Held] = {}
        self._dynamic: dict[str, _Held] = {}
        self._holds: dict[Holds, None] = {}
        self._closed = False
        self._clock = manager.clock
        self._hit = manager.count_hit
        # Within a scope of ours: whose scope this is. Once a scope was opened: who reads for us outside of all of them.
        self._outer: RequestSecrets | None = None
        self._beside: RequestSecrets | None = None

    # -- the getters

    def get_secret(
        self, path: str, *, version: int | None = None, fresh: bool = False, timeout: float | None = None
    ) -> Secret:
        """The secret at *path*; a leased one too.

        Parameters
        ----------
        path
            Relative to ``VAULT_NAMESPACE``: ``api-gateway/api-key``.
        version
            Of a KV v2 secret; the current one if None.
        fresh
            Fetch now, and replace what is cached and what this request has pinned.
        timeout
            The most this may take, in seconds; ``VAULT_REQUEST_TIMEOUT`` if None, and never more than that.

        Raises
        ------
        InvalidSecretPath, SecretNotFound, SecretAccessDenied, SecretUnavailable, LeaseLimitReached, AuditError
            See the table of errors in the documentation.
        AccessorClosed
            The request has ended.
        """
        key: Key = path if version is None else (path, version)
        held = self._held.get(key)
        if held is not None and not fresh and self._clock() < held.until:
            held.repeat()
            self._hit()
            return held.secret
        if (inner := self._before()) is not None:
            return inner.get_secret(path, version=version, fresh=fresh, timeout=timeout)
        return self._keep(key, self._manager.gate.read(key, False, fresh, timeout, self), fresh)

    def get_dynamic_secret(self, path: str, *, timeout: float | None = None) -> DynamicSecret:
        """The leased secret at *path*, valid for this request or to its lease's own end, whichever comes first.

        Raises
        ------
        SecretNotDynamic
            The path answers without a lease; and what :meth:`get_secret` raises.
        """
        held = self._dynamic.get(path)
        if held is not None and self._clock() < held.until:
            held.repeat()
            self._hit()
            return held.secret  # type: ignore[return-value]
        if (inner := self._before()) is not None:
            return inner.get_dynamic_secret(path, timeout=timeout)
        return self._keep(path, self._manager.gate.read(path, True, False, timeout, self))  # type: ignore[return-value]

    async def aget_secret(
        self, path: str, *, version: int | None = None, fresh: bool = False, timeout: float | None = None
    ) -> Secret:
        """As :meth:`get_secret`, for the event loop: a hit is immediate, a miss does not block it."""
        key: Key = path if version is None else (path, version)
        held = self._held.get(key)
        if held is not None and not fresh and self._clock() < held.until:
            held.repeat()
            self._hit()
            return held.secret
        if (inner := self._before()) is not None:
            return await inner.aget_secret(path, version=version, fresh=fresh, timeout=timeout)
        return self._keep(key, await self._manager.gate.aread(key, False, fresh, timeout, self), fresh)

    async def aget_dynamic_secret(self, path: str, *, timeout: float | None = None) -> DynamicSecret:
        """As :meth:`get_dynamic_secret`, for the event loop."""
        held = self._dynamic.get(path)
        if held is not None and self._clock() < held.until:
            held.repeat()
            self._hit()
            return held.secret  # type: ignore[return-value]
        if (inner := self._before()) is not None:
            return await inner.aget_dynamic_secret(path, timeout=timeout)
        return self._keep(path, await self._manager.gate.aread(path, True, False, timeout, self))  # type: ignore[return-value]

    def reject(self, secret: Secret) -> None:
        """*secret* did not work: if it is still the current one, it is replaced, once for all who ask.

        The next read of its path, in this request too, gets the replacement.
        """
        if (inner := self._before()) is not None:
            inner.reject(secret)
            return
        for key, held in list(self._held.items()):
            if held.secret.path == secret.path and self._held.pop(key, None) is not None:
                self._report_repeats(held)
        self._dynamic.pop(secret.path, None)
        self._manager.reject(secret)

    def _before(self) -> RequestSecrets | None:
        """Before a read that the pins cannot answer: who is to answer it, if a scope was ever opened.

        Raises
        ------
        AccessorClosed
            The request has ended.
        """
        if self._closed:
            raise AccessorClosed(
                "the request of this accessor has ended; read secrets while it is handled, "
                "or use the SecretsManager for work that outlives it"
            )
        return None if self._beside is None else self._scope_here() or self._beside

    def _scope_here(self) -> RequestSecrets | None:
        """The innermost open scope of ours around the calling code."""
        found = None
        each = _current.get(None)
        while each is not None and each is not self:
            if found is None and not each._closed:
                found = each
            each = each._outer
        return None if each is None else found

    def _keep(self, key: Key, entry: Entry, fresh: bool = False) -> Secret:
        """Pin *entry* for the rest of the request, unless another thread of it has pinned a valid one meanwhile."""
        if self._beside is not None:  # a scope was opened meanwhile
            return self._beside._keep(key, entry, fresh)
        held = _Held(entry, self._clock())
        before = self._held.setdefault(key, held)
        if before is not held:
            same_kind = (before.entry.holds is None) is (entry.holds is None)
            if same_kind and not fresh and self._clock() < before.until:
                return before.secret
            self._held[key] = held
            self._report_repeats(before)
        if entry.holds is not None and isinstance(key, str):
            self._dynamic[key] = held
        if self._closed:  # it ended meanwhile, in another thread
            self._held, self._dynamic = {}, {}
            self._before()
        return entry.secret

    # -- what the gate asks of who reads

    @property
    def context(self) -> str:
        """The audit line's part about this request, rendered at the first read."""
        context = self._context
        if context is None:
            context = self._context = self._manager.audit.context_fragment(self._identity)
        return context

    @property
    def request_id(self) -> str | None:
        """The id of the request, which travels to Vault with a fetch."""
        return None if self._identity is None else self._identity.request_id

    def take(self, holds: Holds) -> None:
        """Hold a lease until the request ends."""
        holds.take(self)
        self._holds[holds] = None
        if self._closed:  # it ended meanwhile, in another thread
            holds.give_back(self)
            self._before()

    # -- the end

    @contextmanager
    def scope(self) -> Iterator[RequestSecrets]:
        """A fresh pin inside a long connection: one message of a websocket, say.

        Within the block, reads through this accessor, through the one it yields and through :func:`current_secrets` see
        what is current now; what they have read is given back at its end.
        """
        self._before()
        if self._beside is None:
            self._beside = self._within()
            # Our own pins are its from now on, so that a read within the block does not find them first.
            self._beside._held, self._beside._dynamic = self._held, self._dynamic
            self._held, self._dynamic = {}, {}
        inner = self._within()
        inner._outer = self
        token = _current.set(inner)
        try:
            yield inner
        finally:
            deactivate(token)
            inner.close()

    def _within(self) -> RequestSecrets:
        """Another accessor of the same request."""
        other = RequestSecrets(self._manager, self._identity)
        other._context = self._context
        return other

    def close(self) -> None:
        """The request has ended: give back every lease; idempotent. Further reads raise :class:`AccessorClosed`."""
        if self._closed:
            return
        self._closed = True
        held, self._held, self._dynamic = self._held, {}, {}
        if self._holds:
            for holds in list(self._holds):
                holds.give_back(self)
        if held:
            for value in list(held.values()):
                self._report_repeats(value)
        if self._beside is not None:
            self._beside.close()

    def _report_repeats(self, held: _Held) -> None:
        """One closing line for reads that were answered from the pin."""
        repeats = held.repeat()
        if repeats:
            self._manager.audit.repeats(self.context, held.entry.fragment, repeats)

    def __enter__(self) -> RequestSecrets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RequestSecrets {'closed' if self._closed else 'open'}>"


def current_secrets() -> RequestSecrets:
    """The accessor of the request that is being handled, for code far from the request object.

    Raises
    ------
    AccessorClosed
        No request is being handled here.
    """
    secrets = _current.get(None)
    if secrets is None:
        raise AccessorClosed(
            "no request is being handled here; call this from a handler behind the middleware, "
            "or use a SecretsManager outside of requests"
        )
    return secrets


def activate(secrets: RequestSecrets) -> Token[RequestSecrets]:
    """Make *secrets* what :func:`current_secrets` gives, until :func:`deactivate`."""
    return _current.set(secrets)


def deactivate(token: Token[RequestSecrets]) -> None:
    """Undo :func:`activate`; in another context there is nothing to undo."""
    try:
        _current.reset(token)
    except ValueError:  # a server may iterate the body in another context than the one that made the response
        return
