"""The log-in: which credential, at which namespace, and what a refusal means."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hvac.api.auth_methods import JWT, AppRole, Kubernetes
from hvac.api.auth_methods import Token as TokenAPI

from ..config import SecretConfig
from ..errors import AuthenticationError
from ..retry import FLOOR
from . import answers
from .answers import Token
from .bridge import Bridge
from .transport import Answer, Transport

__all__ = ["Login", "refusal"]

#: What the server says where the mount is not there, and also where it cannot review the service-account token.
_AS_IF_MISSING: Final = "permission denied"

#: A token file is not read beyond this, in bytes.
_LONGEST_TOKEN: Final = 65_536


class Login:
    """Logs in by the method of the settings; what worked first is kept for the process's life."""

    def __init__(
        self, config: SecretConfig, transport: Transport, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._transport = transport
        self._clock = clock
        self._namespace = "" if not config.namespace and config.auth_namespace is None else config.auth_namespace

    @property
    def namespace(self) -> str:
        """Where the log-in has worked (empty: the root), and so where a policy for its token has to be written."""
        return self._namespace or ""

    def __call__(self, timeout: float) -> Token:
        """A token, within *timeout* seconds.

        Raises
        ------
        AuthenticationError
            The server refused, or there is no credential to show; every answer is named.
        VaultUnavailable
            The server did not answer.
        """
        if self._config.auth_method == "proxy":
            return Token("", 0.0, False, math.inf, "", "the proxy", owned=False)
        deadline = self._clock() + timeout
        credential = self._credential()
        refused: list[str] = []
        passing = False
        for namespace in self._candidates(deadline):
            answer = self._ask(namespace, credential, self._left(deadline))
            if answer.status == 200:
                self._namespace = namespace
                return self._token(answer, namespace, credential)
            if answer.status == 412 or answer.status >= 429:
                raise answers.failure(answer, self._config.vault_addr)
            refused.append(f"{self._path(namespace)} answered {answer.status} ({self._meaning(answer)})")
            if _as_if_missing(answer):
                passing = not self._config.token  # a token that was given does not become valid
            else:
                break  # this is where our role lives; elsewhere would only hide what it said
        raise AuthenticationError(f"the log-in was refused: {'; '.join(refused)}", passing)

    def refusals(self, timeout: float) -> list[tuple[str, int, str]]:
        """For a diagnosis: where a log-in is refused (the namespace, the status, the kind); empty where it would work."""
        deadline = self._clock() + timeout
        credential = self._credential()
        found = []
        for namespace in self._candidates(deadline):
            answer = self._ask(namespace, credential, self._left(deadline))
            if answer.status == 200:
                return []
            found.append((namespace, answer.status, refusal(answer)))
            if not _as_if_missing(answer):
                break  # as above
        return found

    def _candidates(self, deadline: float) -> list[str]:
        """The namespaces to log in at, in this order; the root (empty) only after the one where the secrets are."""
        if self._namespace is not None:
            return [self._namespace]
        namespace = self._config.namespace
        answer = self._transport.request(
            "namespace", "GET", f"/v1/{namespace}/sys/internal/ui/mounts", timeout=self._left(deadline)
        )
        if answer.status == 200:
            return [namespace, ""]
        if answer.status in (403, 404):
            return [""]
        raise answers.failure(answer, self._config.vault_addr)

    def _ask(self, namespace: str, credential: str, timeout: float) -> Answer:
        config = self._config
        bridge = Bridge(
            self._transport,
            "login",
            timeout=timeout,
            namespace=namespace,
            token=credential if config.auth_method == "token" else None,
        )
        answer: Answer
        if config.auth_method == "token":
            answer = TokenAPI(bridge).lookup_self()
        elif config.auth_method == "approle":
            answer = AppRole(bridge).login(
                config.role_id, credential or None, use_token=False, mount_point=config.auth_mount
            )
        elif config.auth_method == "jwt":
            answer = JWT(bridge).jwt_login(config.vault_role, credential, use_token=False, path=config.auth_mount)
        else:
            answer = Kubernetes(bridge).login(
                config.vault_role, credential, use_token=False, mount_point=config.auth_mount
            )
        return answer

    def _token(self, answer: Answer, namespace: str, credential: str) -> Token:
        server, path = self._config.vault_addr, self._path(namespace)
        if self._config.auth_method == "token":
            return answers.given_token(answer, credential, server, namespace=namespace, auth_path=path)
        return answers.token(answer, server, namespace=namespace, auth_path=path)

    def _path(self, namespace: str) -> str:
        mount = "token/lookup-self" if self._config.auth_method == "token" else f"{self._config.auth_mount}/login"
        return f"{namespace}/auth/{mount}" if namespace else f"auth/{mount}"

    def _left(self, deadline: float) -> float:
        return max(FLOOR, deadline - self._clock())

    # -- the credential

    def _credential(self) -> str:
        """What is shown to the server; a file is read again each time."""
        config = self._config
        if config.auth_method == "kubernetes":
            return _read(
                config.kubernetes_token_path,
                "VAULT_KUBERNETES_TOKEN_PATH",
                "the pod's service-account token (is it mounted?)",
            )
        if config.auth_method == "jwt":
            return _read(config.jwt_path, "VAULT_JWT_PATH", "a JSON web token")
        if config.auth_method == "approle":
            if config.secret_id or not config.secret_id_file:
                return config.secret_id or ""
            return _read(config.secret_id_file, "VAULT_SECRET_ID_FILE", "the secret id")
        return config.token or _read(config.token_file, "VAULT_TOKEN_FILE", "a token")

    # -- what a refusal means

    def _meaning(self, answer: Answer) -> str:
        """The server's refusal in our words: which of the known ones it is, and what to check."""
        kind, role, method = refusal(answer), self._config.vault_role, self._config.auth_method
        if method == "token":
            return "the token is not valid any more; set VAULT_TOKEN or VAULT_TOKEN_FILE to a valid one"
        if method == "approle" and answer.status == 400:
            return "the role id or the secret id is not valid; check VAULT_ROLE_ID and VAULT_SECRET_ID"
        if kind == "role":
            return f"the role {role!r} is not known there; check VAULT_ROLE, or write the role at the auth method"
        if kind == "expired":
            return "the service-account token has expired; check that the pod's token is renewed, and the clocks"
        if kind == "account":
            return f"the service account is not the one that the role {role!r} is bound to; check both"
        if kind == "audience":
            return f"the token's audience is not the one that the role {role!r} wants; check the projected volume"
        if kind == "as if missing":
            return (
                f"the auth method {self._config.auth_mount!r} may not be mounted there, the token's signature may be "
                "wrong, or the server cannot review the token; check VAULT_AUTH_MOUNT and VAULT_AUTH_NAMESPACE, and "
                "that the server reaches the cluster's TokenReview"
            )
        return "check the auth method's settings and the server's log"


def refusal(answer: Answer) -> str:
    """Which of the known refusals of a log-in *answer* is; ``other`` for none of them."""
    text = answer.errors
    if answer.status == 400 and "role" in text:
        return "role"
    if "token is expired" in text or "exp" in text.split():
        return "expired"
    if "service account name" in text or "namespace not authorized" in text:
        return "account"
    if "audience" in text:
        return "audience"
    return "as if missing" if _as_if_missing(answer) else "other"


def _as_if_missing(answer: Answer) -> bool:
    return answer.status == 404 or (answer.status == 403 and answer.errors.strip() in ("", _AS_IF_MISSING, _IN_FULL))


#: The same with what the server puts before it in some versions.
_IN_FULL: Final = "1 error occurred:\n\t* permission denied"


def _read(path: str | None, variable: str, what: str) -> str:
    """The one line of the file at *path*."""
    problem: str
    try:
        with Path(path or "").open("rb") as file:
            text = file.read(_LONGEST_TOKEN + 1).decode("ascii").strip()
    except FileNotFoundError:
        problem = "is not there"
    except (OSError, ValueError):
        problem = "cannot be read as one"
    else:
        if text and len(text) <= _LONGEST_TOKEN and text.isprintable() and " " not in text:
            return text
        problem = "holds none" if not text else "holds something else"
    raise AuthenticationError(f"the file {path} should hold {what}, but it {problem}; check {variable}")
