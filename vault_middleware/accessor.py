"""RequestSecrets: lives with one request, reads for it, and gives back what it holds when the request ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any, Final

from .cache import Entry, Key
from .errors import AccessorClosed
from .holds import Holds
from .manager import SecretsManager
from .pins import NO_HOLDS, NO_REPEATS, Pins
from .secret import DynamicSecret, Secret
from .telemetry.lines import NOBODY, Identity, asked, request_id

__all__ = ["RequestSecrets", "activate", "current_secrets", "deactivate"]

_current: ContextVar[RequestSecrets] = ContextVar("vault_middleware.secrets")

#: Each accessor has a number of its own, which a request without an id gets one from.
_numbers = itertools.count()


def _as_it_is(identity: Identity | None, _number: int) -> Identity:
    return NOBODY if identity is None else identity


def _nobody(_request: object, _number: int) -> Identity:
    return NOBODY


class RequestSecrets(Pins):
    """The secrets as one request sees them.

    Within the request a path gives the same object while that is valid, so that user and password never come from two
    leases; a lease it has read is not revoked before the request has ended. Close it when the response is finished.

    Parameters
    ----------
    manager
        What it reads from.
    request, identify
        Who asks, for the audit: what ``identify(request, number)`` gives once something is read, where *number* is this
        accessor's in the process; without a request, nobody.
    """

    __slots__ = (
        "__weakref__",
        "_allowed",
        "_beside",
        "_closed",
        "_identify",
        "_number",
        "_outer",
        "_plain",
        "_request",
    )

    def __init__(
        self, manager: SecretsManager, request: Any = None, identify: Callable[[Any, int], Identity] = _as_it_is
    ) -> None:
        self._manager = manager
        # Who asks: what *identify* makes of the *request*, and only when that is wanted, as many a request reads nothing.
        self._request = request
        self._identify = identify
        self._number = next(_numbers)
        self._clock = manager.clock
        self._allowed: tuple[tuple[str, ...], ...]  # set where a route has an allow-list, and looked at only there
        self.context = ""  # made at the first read, as little is known and wanted before
        self._pins = {}
        self._repeats = NO_REPEATS
        self._holds = NO_HOLDS
        self._closed = False
        # Neither closed, nor was ever a scope opened: what its pins and the cache have is its own to give.
        self._plain = True
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
        repeat = self._repeats.get(key)
        if repeat is not None:
            clock = self._clock  # called where it is, it would take three times as long to find
            if not fresh and clock() < repeat.until:
                next(repeat.draws)
                return repeat.secret
        elif self._plain and not fresh and key not in self._pins:
            # A first read that hits: as below, but without the calls on the way.
            manager = self._manager
            if not self.context:
                request, identify = self._request, self._identify
                identity = identify(request, self._number)
                self.context = asked(identity) if manager.audit.strict else identity
            hit = manager.hit
            entry = hit(key, False, self)
            if entry is not None:
                if self._pins.setdefault(key, entry) is entry and self._plain:
                    return entry.secret
                return self._keep(key, entry)
        if not self._plain and (inner := self._before()) is not None:
            return inner.get_secret(path, version=version, fresh=fresh, timeout=timeout)
        secret = self._at_hand(key, False, fresh)
        if secret is not None:
            return secret
        return self._keep(key, self._manager.gate.read(key, False, fresh, timeout, self), fresh)

    def get_dynamic_secret(self, path: str, *, timeout: float | None = None) -> DynamicSecret:
        """The leased secret at *path*, valid for this request or to its lease's own end, whichever comes first.

        Raises
        ------
        SecretNotDynamic
            The path answers without a lease; and what :meth:`get_secret` raises.
        """
        repeat = self._repeats.get(path)
        if repeat is not None and repeat.leased:
            clock = self._clock
            if clock() < repeat.until:
                next(repeat.draws)
                return repeat.secret  # type: ignore[return-value]
        if not self._plain and (inner := self._before()) is not None:
            return inner.get_dynamic_secret(path, timeout=timeout)
        secret = self._at_hand(path, True)
        if secret is None:
            secret = self._keep(path, self._manager.gate.read(path, True, False, timeout, self))
        return secret  # type: ignore[return-value]

    async def aget_secret(
        self, path: str, *, version: int | None = None, fresh: bool = False, timeout: float | None = None
    ) -> Secret:
        """As :meth:`get_secret`, for the event loop: a hit is immediate, a miss does not block it."""
        key: Key = path if version is None else (path, version)
        repeat = self._repeats.get(key)
        if repeat is not None and not fresh:
            clock = self._clock
            if clock() < repeat.until:
                next(repeat.draws)
                return repeat.secret
        if not self._plain and (inner := self._before()) is not None:
            return await inner.aget_secret(path, version=version, fresh=fresh, timeout=timeout)
        secret = self._at_hand(key, False, fresh)
        if secret is not None:
            return secret
        return self._keep(key, await self._manager.gate.aread(key, False, fresh, timeout, self), fresh)

    async def aget_dynamic_secret(self, path: str, *, timeout: float | None = None) -> DynamicSecret:
        """As :meth:`get_dynamic_secret`, for the event loop."""
        repeat = self._repeats.get(path)
        if repeat is not None and repeat.leased:
            clock = self._clock
            if clock() < repeat.until:
                next(repeat.draws)
                return repeat.secret  # type: ignore[return-value]
        if not self._plain and (inner := self._before()) is not None:
            return await inner.aget_dynamic_secret(path, timeout=timeout)
        secret = self._at_hand(path, True)
        if secret is None:
            secret = self._keep(path, await self._manager.gate.aread(path, True, False, timeout, self))
        return secret  # type: ignore[return-value]

    def reject(self, secret: Secret) -> None:
        """*secret* did not work: if it is still the current one, it is replaced, once for all who ask.

        The next read of its path, in this request too, gets the replacement.
        """
        if (inner := self._before()) is not None:
            inner.reject(secret)
            return
        for key, entry in list(self._pins.items()):
            if entry.secret.path == secret.path:
                self._unpin(key, entry)
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

    # -- the pins

    def _at_hand(self, key: Key, dynamic: bool, fresh: bool = False) -> Secret | None:
        """The secret, if the request has read it once or the cache has it; None if the gate must see to it."""
        if not self.context:
            self._introduce()
        if fresh:
            return None
        pins = self._pins
        if key in pins and (secret := self._again(key, dynamic)) is not None:
            return secret
        hit = self._manager.hit
        entry = hit(key, dynamic, self)
        if entry is None:
            return None
        if pins.setdefault(key, entry) is entry and self._plain:
            return entry.secret
        return self._keep(key, entry)

    def _introduce(self) -> None:
        """Find out who asks, for the audit."""
        identity = self.identity
        self.context = asked(identity) if self._manager.audit.strict else identity

    def _keep(self, key: Key, entry: Entry, fresh: bool = False) -> Secret:
        """Pin *entry* for the rest of the request, unless another thread of it has pinned a valid one meanwhile."""
        if self._beside is not None:  # a scope was opened meanwhile
            return self._beside._keep(key, entry, fresh)
        kept = self._pinned(key, entry, fresh)
        if self._closed:  # it ended meanwhile, in another thread
            self._let_go()
            self._before()
        return kept.secret

    # -- what the gate asks of who reads

    @property
    def request_id(self) -> str | None:
        """The id of the request, which travels to Vault with a fetch."""
        return request_id(self.identity)

    @property
    def identity(self) -> Identity:
        """Who asks."""
        request, identify = self._request, self._identify  # in this order: see close
        return identify(request, self._number)

    def take(self, holds: Holds) -> None:
        """Hold a lease until the request ends."""
        self._hold(holds)
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
            beside = self._within()
            self._hand_on(beside)  # or a read within the block would find our own pins first
            self._beside, self._plain = beside, False
        inner = (self._scope_here() or self)._within()  # what a route may read holds within its scopes too
        inner._outer = self
        token = _current.set(inner)
        try:
            yield inner
        finally:
            deactivate(token)
            inner.close()

    def _within(self) -> RequestSecrets:
        """Another accessor of the same request."""
        other = RequestSecrets(self._manager, self.identity)
        other.context = self.context
        return other

    def close(self) -> None:
        """The request has ended: give back every lease; idempotent. Further reads raise :class:`AccessorClosed`."""
        if self._closed:
            return
        self._closed, self._plain = True, False
        # It leads to the request, which leads here: cut, nothing of it has to wait for the garbage collector. Another thread
        # that finds no request any more finds that nobody asks.
        self._identify = _nobody
        self._request = None
        if self._holds:
            for holds in list(self._holds):
                holds.give_back(self)
        if self._repeats:
            self._let_go()
        elif self._pins:
            self._pins.clear()
        if self._beside is not None:
            self._beside.close()

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


#: Makes an accessor what :func:`current_secrets` gives, until :func:`deactivate` gets the token that it returned.
activate: Final[Callable[[RequestSecrets], Token[RequestSecrets]]] = _current.set


def deactivate(token: Token[RequestSecrets]) -> None:
    """Undo :func:`activate`; in another context there is nothing to undo."""
    try:
        _current.reset(token)
    except ValueError:  # a server may iterate the body in another context than the one that made the response
        return
