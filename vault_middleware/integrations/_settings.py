"""A framework's own settings in the words of the environment, and over it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..config import VARIABLES, SecretConfig
from ..errors import ConfigurationError

__all__ = ["KNOWN", "config_from"]

#: Every variable that a framework's settings may hold.
KNOWN = frozenset(name for variable in VARIABLES for name in (variable.name, variable.also) if name)


def config_from(settings: Mapping[str, object]) -> SecretConfig:
    """The environment with *settings* over it: the same names; a value may be a number or a list too, None is not set.

    Raises
    ------
    ConfigurationError
        A value is wrong, or a name is none of the variables.
    """
    unknown = sorted(set(settings) - KNOWN)
    if unknown:
        raise ConfigurationError(
            f"unknown settings of vault-middleware: {', '.join(unknown)}; they have the names of the environment's variables"
        )
    environ = dict(os.environ)
    environ.update({name: _text(value) for name, value in settings.items() if value is not None})
    return SecretConfig.from_env(environ)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
