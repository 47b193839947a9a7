"""The errors a user of this package can meet; nothing of hvac, requests or tenacity leaves the package.

Every message says what happened, to which path, and ends in what to do about it. The classes pickle, hold no server
body and no token, and are raised outside ``except`` blocks, so that no cause hangs on them.
"""

from __future__ import annotations

from typing import Self

__all__ = [
    "AccessorClosed",
    "AuditError",
    "AuthenticationError",
    "ConfigurationError",
    "InvalidSecretPath",
    "LeaseLimitReached",
    "SecretAccessDenied",
    "SecretError",
    "SecretNotDynamic",
    "SecretNotFound",
    "SecretUnavailable",
    "VaultMiddlewareError",
    "VaultSealed",
    "VaultUnavailable",
]


class VaultMiddlewareError(Exception):
    """The base of every error that this package raises."""

    def again(self) -> Self:
        """A new error like this one, without a traceback: for a failure that several callers share.

        Raising one object in many threads would let each add its frames to the others' traceback.
        """
        return type(self)(*self.args)


class ConfigurationError(VaultMiddlewareError, ValueError):
    """The settings are wrong; the message names every bad variable, what is wrong with it and what is accepted."""


class AuthenticationError(VaultMiddlewareError):
    """The log-in was refused, or could not be tried at all (no service-account token, say).

    Attributes
    ----------
    passing : bool
        Whether the refusal may end by itself: a 403 also comes while the server cannot review service-account tokens.
    """

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message, passing)
        self.passing = passing

    def __str__(self) -> str:
        return str(self.args[0])


class VaultUnavailable(VaultMiddlewareError):
    """The server gave no usable answer: no connection, a time-out, a 5xx, or something that is not Vault's JSON."""


class VaultSealed(VaultUnavailable):
    """The server answers, but is sealed or not initialised."""


class SecretError(VaultMiddlewareError):
    """What a getter raises about one secret.

    Attributes
    ----------
    path : str
        The secret path that was asked for.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)
        self.path = path

    def __str__(self) -> str:
        return str(self.args[1])


class InvalidSecretPath(SecretError, ValueError):
    """The path was refused before any request was sent."""


class SecretNotFound(SecretError, LookupError):
    """There is no such secret, version or mount."""


class SecretAccessDenied(SecretError):
    """The policy does not permit the read; the message names the line that is missing."""


class SecretNotDynamic(SecretError):
    """The path answered without a lease: it is a static secret."""


class SecretUnavailable(SecretError):
    """There is no usable value, and Vault cannot answer; the message names the cause."""


class LeaseLimitReached(SecretError):
    """One more lease would pass ``VAULT_MAX_LEASES``."""


class AuditError(VaultMiddlewareError):
    """The audit sink could not take the line, so the secret was not handed over (strict mode)."""


class AccessorClosed(VaultMiddlewareError, RuntimeError):
    """The request that this accessor belonged to has ended."""
