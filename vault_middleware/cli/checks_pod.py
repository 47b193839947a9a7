"""What the pod has: the credential that it shows to the server, and what a service-account token says of itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..config import SecretConfig
from .findings import Findings

__all__ = ["LEEWAY", "Claims", "check_claims", "check_credential", "read_claims"]

#: So far an expired token is accepted, and so far clocks may differ before that hurts, in seconds.
LEEWAY: Final = 60.0

_LONGEST: Final = 65_536

_WITHOUT: Final = "without a credential there is no log-in, and so no secret"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says of itself. Nobody has verified it here, so it explains things and decides nothing."""

    subject: str
    audiences: tuple[str, ...]
    issuer: str
    issued: float | None
    expires: float | None
    raw: Mapping[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.subject or 'no subject'}, audience {', '.join(self.audiences) or 'none'}"


def check_credential(config: SecretConfig, findings: Findings) -> str | None:
    """The service-account token, empty for a method without one; None where there is no credential to show."""
    step, method = "credential", config.auth_method
    if method == "proxy":
        findings.ok(step, "none is needed: the proxy adds its own token")
        return ""
    where = {
        "kubernetes": (None, config.kubernetes_token_path, "VAULT_KUBERNETES_TOKEN_PATH"),
        "jwt": (None, config.jwt_path, "VAULT_JWT_PATH"),
        "token": (config.token, config.token_file, "VAULT_TOKEN_FILE"),
        "approle": (config.secret_id, config.secret_id_file, "VAULT_SECRET_ID_FILE"),
    }
    given, path, variable = where[method]
    if given is not None or path is None:
        findings.ok(step, f"given in the environment, for the method {method}")
        return ""
    text = _read(Path(path), variable, findings)
    if text is None or method in ("token", "approle"):
        if text is not None:
            findings.ok(step, f"{path} holds one, for the method {method}")
            return ""
        return None
    claims = read_claims(text)
    if claims is None:
        findings.fail(
            step,
            "token-malformed",
            f"{path} holds {len(text)} characters that are no JSON web token",
            why=_WITHOUT,
            mend=f"set {variable} to the file of the projected service-account token; see what is in the volume: ls -l "
            f"{Path(path).parent}",
        )
        return None
    findings.ok(step, f"{path} holds the token of {claims}")
    return text


def _read(path: Path, variable: str, findings: Findings) -> str | None:
    step = "credential"
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        findings.fail(
            step,
            "token-missing",
            f"the file {path} is not there",
            why=_WITHOUT,
            mend=f"set {variable}, or mount the token: automountServiceAccountToken: true in the pod's spec, or a "
            f"projected volume with a serviceAccountToken at {path.parent}",
        )
        return None
    except OSError as error:
        findings.fail(
            step,
            "token-unreadable",
            f"the file {path} cannot be read ({error.strerror or type(error).__name__})",
            why=_WITHOUT,
            mend=f"ls -l {path}; give the pod's user the right to read it: fsGroup in the pod's securityContext, or "
            f"runAsUser; {variable} must name a file and no folder",
        )
        return None
    if not text:
        findings.fail(
            step,
            "token-empty",
            f"the file {path} is empty",
            why=_WITHOUT,
            mend="delete the pod so that the kubelet writes it anew; if it stays empty: kubectl describe pod, and the "
            "kubelet's log",
        )
        return None
    return text


def read_claims(token: str) -> Claims | None:
    """What *token* says of itself; None where it is no JSON web token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    if not isinstance(claims, dict):
        return None
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    return Claims(
        subject=_short(claims.get("sub")),
        audiences=tuple(_short(each) for each in audiences[:8] if isinstance(each, str)),
        issuer=_short(claims.get("iss")),
        issued=_number(claims.get("iat")),
        expires=_number(claims.get("exp")),
        raw=claims,
    )


def check_claims(claims: Claims, config: SecretConfig, findings: Findings, *, now: float) -> None:
    """Whether the token is in its time, by the clock of the server, where that is known."""
    step = "service-account token"
    if claims.expires is None:
        findings.ok(step, "it never expires")
        return
    left = claims.expires - now
    if left < -LEEWAY:
        findings.fail(
            step,
            "token-expired",
            f"it has expired {-left:.0f} s ago",
            why="the server refuses an expired token; the kubelet replaces it at 80 % of its time, so something holds an "
            "old copy",
            mend=f"check that {config.kubernetes_token_path if config.auth_method == 'kubernetes' else config.jwt_path} "
            "is the mounted file itself and no copy of it (a subPath mount is never renewed); then: kubectl delete pod",
        )
    elif left < LEEWAY:
        findings.warn(
            step,
            "token-expires-soon",
            f"it expires in {left:.0f} s and was not replaced",
            why="the kubelet replaces it at 80 % of its time; past its end no log-in works",
            mend="check the kubelet on this node, and that the file is no copy and no subPath mount",
        )
    else:
        findings.ok(step, f"good for {left:.0f} s (as it says itself)")


def _short(value: object) -> str:
    return "".join(each for each in value if each.isprintable())[:200] if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value < 1e15 else None
