"""The session: which token is ours now, how it is kept, and how a new one takes over (make before break)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace

from ..config import SecretConfig
from ..errors import VaultMiddlewareError, VaultUnavailable
from ..events import Emit, TokenRenewalFailed, TokenRenewed, TokenRevocationFailed, TokenRevoked
from ..renewal.renewer import Renewer, Task
from ..renewal.schedule import (
    after_outage,
    first_renewal,
    granted_short,
    in_time,
    relogin_margin,
    renewal,
    renewed_until,
    rotation,
)
from ..retry import Uniform, for_lease
from ..vault.client import Token, VaultClient
from .generation import Generation
from .login import FAULT, Login, shared

__all__ = ["Generation", "Session"]


class Session:
    """Has a token where one is wanted, and keeps it alive on the renewer's schedule.

    *replaced* is called with the old generation when a newer one has taken over, *extended* when its token has been
    renewed, *died* when its token turned out to be invalid.
    """

    def __init__(
        self,
        config: SecretConfig,
        client: VaultClient,
        renewer: Renewer,
        *,
        emit: Emit,
        uniform: Uniform,
        clock: Callable[[], float] = time.monotonic,
        suspect: Callable[[], None],
    ) -> None:
        self._config = config
        self._client = client
        self._renewer = renewer
        self._emit = emit
        self._uniform = uniform
        self._clock = clock
        self._suspect = suspect
        self.replaced: Callable[[Generation], None] = lambda _generation: None
        self.extended: Callable[[Generation], None] = lambda _generation: None
        self.died: Callable[[Generation], None] = lambda _generation: None
        self._lock = threading.Lock()
        self._current: Generation | None = None
        self._generations: set[Generation] = set()
        self._lookups: dict[Generation, Future[bool | VaultMiddlewareError]] = {}
        self._login = Login(
            config,
            client,
            renewer,
            emit=emit,
            uniform=uniform,
            clock=clock,
            suspect=suspect,
            current=lambda: self.current,
            take_over=self._take_over,
        )

    # -- for whoever needs a token

    @property
    def current(self) -> Generation | None:
        """The generation that new reads use; None before the first log-in and while there is no valid token."""
        generation = self._current
        if generation is None or generation.dead or self._clock() >= generation.token.deadline:
            return None
        return generation

    @property
    def failure(self) -> VaultMiddlewareError | None:
        """Why the last log-in failed, if the one after it has not succeeded yet."""
        return self._login.failure

    def get(self, timeout: float, *, lasting: float = 0.0) -> Generation:
        """The current generation, after a log-in where there is none; waits at most *timeout* seconds.

        Where it has less than *lasting* seconds left, and less than half of what was granted, a new one takes over
        first: a lease that it makes could not be handed out.

        Raises
        ------
        AuthenticationError
            The log-in was refused or impossible; also while the pause after a refusal lasts.
        VaultUnavailable
            The server did not answer.
        """
        current = self.current
        if current is None:
            return shared(self._login.outcome(), timeout)
        if current.token.deadline - self._clock() >= min(lasting, current.granted / 2):
            return current
        return shared(self._login.outcome(beside=current), timeout)

    @contextmanager
    def lend(self, timeout: float, *, lasting: float = 0.0) -> Iterator[Generation]:
        """As :meth:`get`, for one read: the token is not revoked before what the read brings is known."""
        while True:
            generation = self.get(timeout, lasting=lasting)
            with self._lock:
                if not generation.retired:
                    generation.readers += 1
                    break
        try:
            yield generation
        finally:
            with self._lock:
                generation.readers -= 1
            self.released(generation)

    def is_valid(self, generation: Generation, timeout: float, *, lately: float = 0.0) -> bool:
        """Whether the server still knows the token; one look-up at a time, which everyone who asks shares.

        One that began less than *lately* seconds ago will do. A token that is not valid any more is dead from here on, and
        its leases with it.
        """
        if generation.dead:
            return False
        asked = self._clock()
        if asked - generation.valid_at < lately:
            return True
        with self._lock:
            lookup = self._lookups.get(generation)
            mine = lookup is None
            if lookup is None:
                lookup = self._lookups[generation] = Future()
        if mine:
            answer: bool | VaultMiddlewareError = VaultUnavailable(FAULT)
            try:
                answer = self._client.token_is_valid(generation.token, timeout)
            except VaultMiddlewareError as error:
                answer = error.with_traceback(None)
            finally:
                with self._lock:
                    del self._lookups[generation]
                if answer is False:
                    self._bury(generation)
                elif answer is True:
                    generation.valid_at = asked
                lookup.set_result(answer)
        return shared(lookup, timeout)

    # -- the life of one token

    def _take_over(self, token: Token) -> Generation:
        """Make *token* the current one; the one before it is retired, after its leases have been issued again."""
        old = self._current
        left = token.deadline - self._clock()
        if old is not None and not old.dead and token.value == old.token.value:
            # A given token, read again: nothing new to take over.
            old.token = token
            self.extended(old)
            return old
        new = Generation(token)
        new.task = Task(lambda: self._tend(new), group="log-in", deadline=lambda: new.token.deadline)
        with self._lock:
            self._generations.add(new)
            self._current = new
            closed = self._login.closed
        if closed:  # this log-in was under way when we stopped
            self.close(self._config.shutdown_timeout)
        elif token.deadline != float("inf"):
            due = first_renewal if token.renewable else renewal
            self._renewer.schedule(new.task, self._clock() + self._in_time(due(left, self._uniform), left))
        if old is not None:
            old.retired = True
            self.replaced(old)
            self.released(old)
        return new

    def wake(self) -> None:
        """The server answers again: a log-in that waits for its next try is tried soon; see `after_outage`."""
        self._login.wake()
        now = self._clock()
        for generation in list(self._generations):
            waits = generation.backoff is not None or (self._login.failure is not None and not generation.retired)
            if waits and generation.task is not None:
                self._renewer.hasten(
                    generation.task, now + after_outage(generation.token.deadline - now, self._uniform)
                )

    def released(self, generation: Generation) -> None:
        """A lease of *generation* has ended; a retired generation without leases is revoked."""
        if self._is_over(generation) and generation.task is not None:
            self._renewer.schedule(generation.task, self._clock())

    def _is_over(self, generation: Generation) -> bool:
        with self._lock:
            return generation.retired and not generation.leases and not generation.readers

    def _tend(self, generation: Generation) -> float | None:
        """Renew, replace or revoke, as the moment demands; when to look again (monotonic seconds)."""
        now = self._clock()
        token = generation.token
        if self._is_over(generation):
            self._revoke(generation, self._config.client_timeout)
            return None
        if generation.dead or now >= token.deadline:
            self._generations.discard(generation)
            if not generation.retired:
                self._login.soon()
            return None
        left = token.deadline - now
        if not token.renewable or (left <= relogin_margin(token.lease_duration) and not generation.retired):
            return self._replace(generation) if not generation.retired else token.deadline
        return self._renew(generation)

    def _renew(self, generation: Generation) -> float | None:
        token = generation.token
        renewed: Token | VaultMiddlewareError
        try:
            renewed = self._client.renew_token(token, self._config.client_timeout)
        except VaultMiddlewareError as error:
            renewed = error.with_traceback(None)
        if isinstance(renewed, VaultMiddlewareError):
            return self._renewal_failed(generation, renewed)
        asked = token.lease_duration
        # Were its end put before what it was, its leases would be handed out no more before there are others.
        renewed = replace(renewed, deadline=renewed_until(token.deadline, renewed.deadline))
        granted = renewed.deadline - self._clock()
        generation.token, generation.backoff = renewed, None
        self._emit(TokenRenewed(granted))
        self.extended(generation)
        if granted_short(asked, renewed.lease_duration):
            # The max TTL is near: the next renewal would give still less.
            return self._replace(generation) if not generation.retired else renewed.deadline
        return self._clock() + self._in_time(renewal(granted, self._uniform), granted)

    def _in_time(self, delay: float, left: float) -> float:
        # The leases of a token are handed out no longer than it lives.
        return in_time(delay, left, min(self._config.lease_min_validity, left / 2))

    def _renewal_failed(self, generation: Generation, failure: VaultMiddlewareError) -> float | None:
        token = generation.token
        left = token.deadline - self._clock()
        self._emit(TokenRenewalFailed(str(failure), left))
        valid: bool | None = None
        if isinstance(failure, VaultUnavailable):
            self._suspect()
        else:
            with suppress(VaultMiddlewareError):  # not known; the next try tells
                valid = self.is_valid(generation, self._config.client_timeout)
        if valid is False:
            return None  # a new log-in is on its way
        if valid:
            # It may not be renewed (a log-in with Kubernetes is reviewed again then): a new one takes its place.
            generation.token = replace(token, renewable=False)
            return token.deadline if generation.retired else self._replace(generation)
        margin = 0.0 if generation.retired else relogin_margin(token.lease_duration)
        if generation.backoff is None:
            generation.backoff = for_lease(lambda: token.deadline - margin - self._clock(), self._uniform)
        pause = generation.backoff.failed(failure)
        if pause is None:
            return token.deadline if generation.retired else self._replace(generation)
        return self._clock() + pause

    def _replace(self, generation: Generation) -> float | None:
        """Log in anew while *generation* still serves; its leases are issued again by whom ``replaced`` calls."""
        try:
            outcome = shared(self._login.outcome(beside=generation), self._config.request_timeout)
        except VaultMiddlewareError:
            return max(self._login.retry_at, self._clock() + 1.0)
        if outcome is generation:
            left = generation.token.deadline - self._clock()
            return self._clock() + max(1.0, rotation(left, self._uniform) if left != float("inf") else 3600.0)
        if not generation.leases:
            return self._clock()  # to be revoked
        now = self._clock()
        left = generation.token.deadline - now
        # Its leases are still held: it is kept for their sake, to its max TTL.
        return now + (renewal(left, self._uniform) if generation.token.renewable else left)

    def _bury(self, generation: Generation) -> None:
        """The server does not know the token: log in anew at once, in the background too."""
        with self._lock:
            if generation.dead:
                return
            generation.dead = True
            self._generations.discard(generation)
            if self._current is generation:
                self._current = None
        self.died(generation)
        self._login.soon()

    def _revoke(self, generation: Generation, timeout: float) -> None:
        with self._lock:
            if generation not in self._generations:
                return
            self._generations.discard(generation)
        if not generation.token.owned or generation.dead:
            return
        failure: VaultMiddlewareError | None = None
        try:
            self._client.revoke_token(generation.token, timeout)
        except VaultMiddlewareError as error:
            failure = error
        generation.revoked = failure is None
        left = generation.token.deadline - self._clock()
        self._emit(TokenRevoked() if failure is None else TokenRevocationFailed(str(failure), left))

    def forget(self) -> None:
        """The manager has stopped: no token is kept."""
        with self._lock:
            self._login.closed = True
            self._current = None
            self._generations.clear()

    def close(self, timeout: float) -> None:
        """Revoke every token of ours within *timeout* seconds; a given token is left alone."""
        deadline = self._clock() + timeout
        with self._lock:
            self._login.closed = True
            generations = list(self._generations)
        for generation in generations:
            left = deadline - self._clock()
            if left > 0:
                self._revoke(generation, left)
            else:
                self._leave(generation, "the time for the stop was over; raise VAULT_SHUTDOWN_TIMEOUT")

    def leave(self, reason: str) -> None:
        """Revoke nothing, for *reason*: every token of ours ends with its own time."""
        with self._lock:
            self._login.closed = True
            generations = list(self._generations)
        for generation in generations:
            self._leave(generation, reason)

    def _leave(self, generation: Generation, reason: str) -> None:
        if generation.token.owned and not generation.dead:
            self._emit(TokenRevocationFailed(reason, generation.token.deadline - self._clock()))
