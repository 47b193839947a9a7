"""Allow-lists of routes: what a handler says that it reads is all that its request can read.

::

    @secrets_allowed("shared/*", "database/creds/reports")
    def handler(request):                       # sync or async, of any framework; a WSGI or ASGI application too
        request.state.secrets.get_secret(f"shared/{request.path_params['tenant']}")

Globs are those of ``VAULT_ALLOWED_PATHS``: ``*`` stands for anything, slashes too. What is not on the list raises
:class:`~vault_middleware.errors.SecretAccessDenied` before anything is asked, counted and audited as ``denied``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, TypeVar

from .accessor import RequestSecrets, current_secrets
from .errors import AccessorClosed, ConfigurationError, SecretAccessDenied
from .parsing import globs
from .secret import DynamicSecret, Secret

__all__ = ["secrets_allowed"]

F = TypeVar("F", bound=Callable[..., Any])

#: One list a decorator; a path has to be on each of them.
Lists = tuple[tuple[str, ...], ...]

_MISSING: Final = (
    "name it in the handler's secrets_allowed(…); middleware that reads after the handler may keep what it read before"
)


def secrets_allowed(*patterns: str) -> Callable[[F], F]:
    """A decorator: from the handler's start the request reads only what one of *patterns* matches; without any, nothing.

    It holds to the end of the request, so for a streamed body, background tasks and threads too; within a
    :meth:`~vault_middleware.RequestSecrets.scope`, to the end of that. Of several, one within the other, each has to
    allow a path. What the request has read before, in a middleware say, it can read again only where that is on the list.

    Put it next to the function, below the framework's own decorators. Outside of requests it does nothing.

    Raises
    ------
    ConfigurationError
        A pattern is none that a path could match.
    """
    lists = _checked(patterns)

    def decorate(handler: F) -> F:
        if inspect.isclass(handler):
            raise TypeError(f"decorate the methods of {handler.__name__}, not the class, which frameworks look into")
        return _wrapped(handler, lists)  # type: ignore[return-value]

    return decorate


def _checked(patterns: tuple[str, ...]) -> Lists:
    problem = ""
    for pattern in patterns:
        try:
            globs(pattern)
        except ValueError as error:
            problem = str(error)
        if problem or not pattern.strip():
            raise ConfigurationError(f"secrets_allowed: {problem or 'a pattern is a text such as shared/*; pass one'}")
    return (patterns,)


def _wrapped(handler: Callable[..., Any], lists: Lists) -> Callable[..., Any]:
    """*handler* in a function of its own kind, as frameworks look at that to see how it is to be called."""
    called = getattr(handler, "__call__", handler)  # noqa: B004 (an application may be an object with an async __call__)
    inner: Callable[..., Any]
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called):

        async def inner(*args: Any, **kwargs: Any) -> Any:
            _narrow(args, lists)
            return await handler(*args, **kwargs)

    elif inspect.isasyncgenfunction(handler):

        async def inner(*args: Any, **kwargs: Any) -> Any:
            _narrow(args, lists)
            async for each in handler(*args, **kwargs):
                yield each

    elif inspect.isgeneratorfunction(handler):

        def inner(*args: Any, **kwargs: Any) -> Any:
            _narrow(args, lists)
            return (yield from handler(*args, **kwargs))

    else:

        def inner(*args: Any, **kwargs: Any) -> Any:
            _narrow(args, lists)
            return handler(*args, **kwargs)

    return functools.wraps(handler)(inner)


def _narrow(args: tuple[Any, ...], lists: Lists) -> None:
    """Let the accessor of this request read only what is on *lists* too."""
    secrets = _accessor(args)
    if secrets is None:
        return
    already: Lists = secrets._allowed if isinstance(secrets, _Narrowed) else ()
    secrets._allowed = already + tuple(each for each in lists if each not in already)
    # No look at a list on the way of those that have none: a narrowed accessor is of another class.
    secrets.__class__ = _Narrowed


def _accessor(args: tuple[Any, ...]) -> RequestSecrets | None:
    """The current accessor; else the one that a handler's first arguments bring along (a scope, an environ, a request)."""
    try:
        return current_secrets()
    except AccessorClosed:
        pass
    for each in args[:2]:
        if isinstance(each, Mapping):
            state = each.get("state")
            found = each.get("vault_middleware.secrets") or (state.get("secrets") if isinstance(state, dict) else None)
        else:
            found = getattr(getattr(each, "state", None), "secrets", None)
        if isinstance(found, RequestSecrets):
            return found
    return None


class _Narrowed(RequestSecrets):
    """An accessor that looks at its lists before anything else."""

    __slots__ = ()

    def _check(self, path: object, version: int | None, dynamic: bool) -> None:
        if not isinstance(path, str) or all(
            any(fnmatchcase(path, pattern) for pattern in patterns) for patterns in self._allowed
        ):
            return
        self._before()  # where the request has ended, that is what there is to say
        if not self.context:
            self._introduce()
        failure = SecretAccessDenied(path, f"this route does not say that it reads {path[:200]!r}; {_MISSING}")
        raise self._manager.gate.denied(path if version is None else (path, version), failure, dynamic, self)

    def get_secret(
        self, path: str, *, version: int | None = None, fresh: bool = False, timeout: float | None = None
    ) -> Secret:
        """As the base's, of what is allowed."""
        self._check(path, version, False)
        return super().get_secret(path, version=version, fresh=fresh, timeout=timeout)

    def get_dynamic_secret(self, path: str, *, timeout: float | None = None) -> DynamicSecret:
        """As the base's, of what is allowed."""
        self._check(path, None, True)
        return super().get_dynamic_secret(path, timeout=timeout)

    async def aget_secret(
        self, path: str, *, version: int | None = None, fresh: bool = False, timeout: float | None = None
    ) -> Secret:
        """As the base's, of what is allowed."""
        self._check(path, version, False)
        return await super().aget_secret(path, version=version, fresh=fresh, timeout=timeout)

    async def aget_dynamic_secret(self, path: str, *, timeout: float | None = None) -> DynamicSecret:
        """As the base's, of what is allowed."""
        self._check(path, None, True)
        return await super().aget_dynamic_secret(path, timeout=timeout)

    def _within(self) -> RequestSecrets:
        other = super()._within()
        other._allowed = self._allowed
        other.__class__ = _Narrowed
        return other
