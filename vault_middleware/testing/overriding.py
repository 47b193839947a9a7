"""override: for a while, the managers of an application are a stub, whoever has made them and keeps them where."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

from .. import manager as made
from ..errors import ConfigurationError
from ..manager import SecretsManager
from .manager import StubManager, sigterm_untouched
from .vault import leased

__all__ = ["override"]

#: Where frameworks keep what they wrap.
_INSIDE = (
    "manager",
    "_manager",
    "app",
    "_app",
    "middleware_stack",
    "wsgi_app",
    "asgi_app",
    "asgi_handler",
    "__wrapped__",
)


@contextlib.contextmanager
def override(
    target: object = None, secrets: Mapping[str, Mapping[str, Any] | leased] | None = None, **settings: Any
) -> Iterator[StubManager]:
    """Let requests read *secrets* within the block, and ask no server; gives the stub.

    Parameters
    ----------
    target
        An application, a middleware or a manager; without it (and where no manager is found in it, for some frameworks
        build their middleware late) every manager of this process, also those that are made within the block.
    secrets, settings
        See :class:`StubManager`.
    """
    stub = StubManager(secrets, **settings)
    with contextlib.ExitStack() as undo:
        undo.callback(stub.close)
        found = [each for each in _managers_in(target) if each is not stub]
        if found:
            for manager in found:
                undo.enter_context(_being(manager, stub))
        else:
            _everywhere(undo, stub)
        yield stub


def _everywhere(undo: contextlib.ExitStack, stub: StubManager) -> None:
    for manager in list(made._managers):
        # A stub that someone made is someone's own; one that is so by an override around this one is not.
        if not isinstance(manager, StubManager) or manager._origin() is not manager:
            undo.enter_context(_being(manager, stub))
    real = SecretsManager.__init__

    def begin(manager: SecretsManager, *args: Any, **options: Any) -> None:
        if isinstance(manager, StubManager):
            real(manager, *args, **options)
            return
        undo.callback(_begin_late, real, manager, args, options)
        made._managers.add(manager)
        undo.enter_context(_being(manager, stub))

    undo.enter_context(patch.object(SecretsManager, "__init__", begin))


def _begin_late(real: Callable[..., None], manager: SecretsManager, args: Any, options: Any) -> None:
    """A manager that was made within the block becomes what it would be without it; a wrong setting shows at its use."""
    with (
        sigterm_untouched(),
        contextlib.suppress(ConfigurationError),
    ):
        real(manager, *args, **options)


@contextlib.contextmanager
def _being(manager: SecretsManager, stub: StubManager) -> Iterator[None]:
    """*manager* has the class and the state of *stub*: whoever holds it, reads from the stub."""
    before, kind = manager.__dict__, manager.__class__
    listening = [(path, each) for path, all_of in before.get("_callbacks", {}).items() for each in list(all_of)]
    forget = [stub.on_rotate(path, each) for path, each in listening]
    manager.__class__, manager.__dict__ = StubManager, stub.__dict__
    try:
        yield
    finally:
        manager.__class__, manager.__dict__ = kind, before
        for each in forget:
            each()


def _managers_in(target: object) -> list[SecretsManager]:
    """The managers that *target* is, has, or wraps."""
    found: list[SecretsManager] = []
    seen: set[int] = set()
    around = [target]
    while around:
        each = around.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, SecretsManager):
            found.append(each)
            continue
        for name in _INSIDE:
            with contextlib.suppress(Exception):  # a property may want a request, or a right configuration
                around.append(getattr(each, name, None))
        listed = getattr(each, "user_middleware", ())  # Starlette's, before the stack is built
        around.extend(getattr(middleware, "kwargs", {}).get("manager") for middleware in listed)
    return found
