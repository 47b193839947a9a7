"""The log-in: one at a time for the whole process, which all who need a token wait for, and when it is tried again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from ..config import SecretConfig
from ..errors import AuthenticationError, VaultMiddlewareError, VaultUnavailable
from ..events import Emit, LoggedIn, LoginFailed
from ..renewal.renewer import Renewer, Task
from ..renewal.schedule import after_outage
from ..retry import Uniform, for_login
from ..vault.client import Token, VaultClient
from .generation import Generation

__all__ = ["FAULT", "Login", "shared"]

T = TypeVar("T")

FAULT = "a call to the server ended in a fault of this package; please report what the log says about it"


class Login:
    """Asks for a token where there is none.

    *current* gives the generation that serves now, if one does, and *take_over* makes one of a new token.
    """

    def __init__(
        self,
        config: SecretConfig,
        client: VaultClient,
        renewer: Renewer,
        *,
        emit: Emit,
        uniform: Uniform,
        clock: Callable[[], float],
        suspect: Callable[[], None],
        current: Callable[[], Generation | None],
        take_over: Callable[[Token], Generation],
    ) -> None:
        self._config = config
        self._client = client
        self._renewer = renewer
        self._emit = emit
        self._uniform = uniform
        self._clock = clock
        self._suspect = suspect
        self._current = current
        self._take_over = take_over
        self._lock = threading.Lock()
        self._under_way: Future[Generation | VaultMiddlewareError] | None = None
        self._backoff = for_login(uniform)
        self._task = Task(self._try_again, group="log-in", deadline=lambda: float("-inf"))
        #: The manager stops: nobody logs in any more.
        self.closed = False
        #: When it is tried again after a failure, on the monotonic clock in seconds.
        self.retry_at = float("-inf")
        #: Why the last one failed, if the one after it has not succeeded yet.
        self.failure: VaultMiddlewareError | None = None

    def outcome(self, beside: Generation | None = None) -> Future[Generation | VaultMiddlewareError]:
        """The log-in under way, or one that is carried out here; within the pause after a failure, that failure.

        *beside* is the generation that still serves, where a new one is to take over all the same.
        """
        with self._lock:
            login = self._under_way
            if login is not None:
                return login
            login = self._under_way = Future()
        outcome: Generation | VaultMiddlewareError = VaultUnavailable(FAULT)
        try:
            if (current := self._current()) is not None and current is not beside:
                outcome = current
            elif self.failure is not None and self._clock() < self.retry_at:
                outcome = self.failure
            elif not self.closed:
                outcome = self._ask_for_token()
            if self.closed:
                outcome = VaultUnavailable("the manager is closed; read secrets before it is, or start() it again")
        finally:
            with self._lock:
                self._under_way = None
            login.set_result(outcome)
        return login

    def _ask_for_token(self) -> Generation | VaultMiddlewareError:
        config = self._config
        try:
            # A log-in is up to three calls: which namespace, there, and in the root.
            token = self._client.log_in(min(2 * config.client_timeout, config.request_timeout))
        except (AuthenticationError, VaultUnavailable) as error:
            failure = error.with_traceback(None)
        else:
            self._backoff, self.failure, self.retry_at = for_login(self._uniform), None, float("-inf")
            left = token.deadline - self._clock()
            self._emit(LoggedIn(config.auth_method, config.vault_role, token.auth_path, left))
            return self._take_over(token)
        pause = self._backoff.failed(failure) or 1.0
        self.failure = failure
        self.retry_at = self._clock() + pause
        self._emit(LoginFailed(config.auth_method, config.vault_role, str(failure), pause))
        if isinstance(failure, VaultUnavailable):
            self._suspect()
        self._renewer.schedule(self._task, self.retry_at)
        return failure

    def _try_again(self) -> None:
        """The renewer's part: at the time that the back-off names, if nobody was faster."""
        if self._current() is None:
            self.outcome()  # scheduled again where it fails

    def soon(self) -> None:
        """Have the renewer log in: at once, or when the pause after the last failure is over."""
        self._renewer.schedule(self._task, max(self._clock(), self.retry_at))

    def wake(self) -> None:
        """The server answers again: a log-in that waits for its next try is tried soon; see `after_outage`."""
        self._backoff = for_login(self._uniform)
        self.retry_at = float("-inf")
        # Without a token the next read logs in anyway, so there is no waiting to be saved by much.
        self._renewer.hasten(self._task, self._clock() + after_outage(float("inf"), self._uniform))


def shared(future: Future[T | VaultMiddlewareError], timeout: float) -> T:
    """The result that several threads wait for; a failure is raised as each one's own copy."""
    try:
        outcome = future.result(timeout)
    except FutureTimeout:
        outcome = VaultUnavailable(
            f"another request's call to the server did not end within {timeout:.1f} s; "
            "check that the server answers, or raise VAULT_REQUEST_TIMEOUT"
        )
    if isinstance(outcome, VaultMiddlewareError):
        failure = outcome.again()
        raise failure
    return outcome
