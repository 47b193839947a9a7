"""What the cluster itself says of a service-account token, for a log-in that the server refused without a reason."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

__all__ = ["Review", "Verdict", "api_address", "review"]

#: The token is good; it is not; the API says that it fails itself; nothing that settles it could be learnt from here.
Verdict = Literal["accepted", "rejected", "failing", "unclear"]

_MOUNTED: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"


@dataclass(frozen=True, slots=True)
class Review:
    """A verdict, and what it rests on: the rest of a sentence that begins with the API's address."""

    verdict: Verdict
    said: str


def api_address(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where a pod finds its cluster's API; None outside any."""
    host = environ.get("KUBERNETES_SERVICE_HOST")
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return None
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def review(address: str, token: str, audiences: tuple[str, ...], issuer: str, *, timeout: float) -> Review:
    """Ask the cluster's API to review *token*, as the server would; most service accounts may not, which tells less.

    What this machine cannot reach or verify is "unclear": it says nothing of what the server can reach.
    """
    own = _text(_MOUNTED / "token") or token
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": list(audiences)},
    }
    headers = {"Authorization": f"Bearer {own}", "Content-Type": "application/json"}
    try:
        connection = _connection(address, timeout)
        try:
            connection.request("POST", _REVIEWS, json.dumps(body), headers)
            with connection.getresponse() as response:
                status, text = response.status, response.read(1 << 20)
        finally:
            connection.close()
    except ssl.SSLCertVerificationError as error:
        return Review("unclear", f"shows a certificate that cannot be verified here ({error.verify_message})")
    except TimeoutError:
        return Review("unclear", "cannot be reached from here (timed out)")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Review("unclear", f"cannot be reached from here ({reason})")
    # A token for other audiences than the API's own, which is its issuer, is no bearer there in the first place.
    return _judged(status, _object(text), as_itself=own == token and issuer in audiences)


def _judged(status: int, answer: Mapping[str, Any], *, as_itself: bool) -> Review:
    """What *answer* proves; *as_itself*: the token was the caller's too, and is one that the API takes if it is good."""
    if answer.get("kind") == "TokenReview" and status in (200, 201):
        said = answer.get("status")
        authenticated = said.get("authenticated", False) if isinstance(said, dict) else None
        if authenticated is True:
            return Review("accepted", "reviewed the token and accepts it")
        if authenticated is False:
            return Review("rejected", "reviewed the token and does not accept it")
    elif answer.get("kind") == "Status":
        if status >= 500:
            return Review("failing", f"answers {status}")
        if status == 401:
            if as_itself:
                return Review("rejected", "does not accept the token (401)")
            return Review("unclear", "answers, but takes no token of this pod as a caller's (401)")
        if status == 403:
            if as_itself:
                return Review("accepted", "accepts the token, though as one that may not review tokens itself (403)")
            return Review("unclear", "answers, but does not permit this pod to review tokens (403)")
    return Review("unclear", f"gives no answer of a cluster's API ({status})")


def _connection(address: str, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no address of http")
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    authority = _MOUNTED / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority) if authority.exists() else None)
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context)


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None
