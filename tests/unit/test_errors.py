"""The errors: which kind each is, that they pickle, and that a copy for each waiter is like the original."""

from __future__ import annotations

import pickle

import pytest

from vault_middleware import errors
from vault_middleware.errors import (
    AccessorClosed,
    AuthenticationError,
    ConfigurationError,
    InvalidSecretPath,
    SecretError,
    SecretNotFound,
    VaultMiddlewareError,
    VaultSealed,
    VaultUnavailable,
)

CLASSES: list[type[VaultMiddlewareError]] = [getattr(errors, name) for name in errors.__all__]

GETTERS = {
    "InvalidSecretPath",
    "LeaseLimitReached",
    "SecretAccessDenied",
    "SecretNotDynamic",
    "SecretNotFound",
    "SecretUnavailable",
}


def made(kind: type[VaultMiddlewareError]) -> VaultMiddlewareError:
    return kind("app/db", "it happened; do this") if issubclass(kind, SecretError) else kind("it happened; do this")


@pytest.fixture(params=CLASSES, ids=lambda kind: kind.__name__)
def error(request: pytest.FixtureRequest) -> VaultMiddlewareError:
    return made(request.param)


def test_every_error_has_the_one_base(error: VaultMiddlewareError) -> None:
    assert isinstance(error, VaultMiddlewareError)
    assert not issubclass(VaultMiddlewareError, OSError | ValueError | LookupError | RuntimeError)


def test_the_public_names_are_sorted_and_are_all_the_classes() -> None:
    assert errors.__all__ == sorted(errors.__all__)
    assert set(errors.__all__) == {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
    }


def test_what_a_getter_raises_is_a_secret_error_with_the_path() -> None:
    assert {kind.__name__ for kind in SecretError.__subclasses__()} == GETTERS
    assert made(SecretNotFound).path == "app/db"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConfigurationError, ValueError),
        (InvalidSecretPath, ValueError),
        (SecretNotFound, LookupError),
        (AccessorClosed, RuntimeError),
        (VaultSealed, VaultUnavailable),
    ],
)
def test_an_error_is_caught_by_the_kind_that_python_has_for_it(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


def test_a_missing_secret_is_no_missing_key() -> None:
    assert not issubclass(SecretNotFound, KeyError)


def test_the_message_is_what_is_printed(error: VaultMiddlewareError) -> None:
    assert str(error) == "it happened; do this"
    assert f"{error}" == "it happened; do this"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_a_pickle(error: VaultMiddlewareError, protocol: int) -> None:
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.args == error.args
    assert vars(back) == vars(error)


def test_another_copy_is_like_the_first_but_has_no_traceback_cause_or_notes(error: VaultMiddlewareError) -> None:
    try:
        raise error from OSError("the cause")
    except VaultMiddlewareError as raised:
        raised.add_note("a note")
        again = raised.again()
    assert again is not error
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert getattr(again, "path", None) == getattr(error, "path", None)
    assert again.__traceback__ is None
    assert again.__cause__ is None
    assert again.__context__ is None
    assert getattr(again, "__notes__", None) is None


@pytest.mark.parametrize("passing", [False, True])
def test_whether_a_refused_log_in_may_pass_is_kept_by_copies_and_pickles(passing: bool) -> None:
    error = AuthenticationError("refused; wait", passing=passing)
    for copy in (error, error.again(), pickle.loads(pickle.dumps(error))):
        assert copy.passing is passing
        assert str(copy) == "refused; wait"
    assert AuthenticationError("refused").passing is False
