"""What the cluster itself says of a service-account token, for a log-in that the server refused without a reason."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

__all__ = ["Verdict", "api_address", "review"]

#: What the cluster says: no answer, the token is good, it is not, it is up and says no more.
Verdict = Literal["unreachable", "accepted", "rejected", "up"]

_MOUNTED: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"


def api_address(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where a pod finds its cluster's API; None outside any."""
    host = environ.get("KUBERNETES_SERVICE_HOST")
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return None
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def review(address: str, token: str, audiences: tuple[str, ...], issuer: str, *, timeout: float) -> Verdict:
    """Ask the cluster's API to review *token*, as the server would; most service accounts may not, which tells less."""
    parts = urlsplit(address)
    bearer, authority = _MOUNTED / "token", _MOUNTED / "ca.crt"
    own = _text(bearer) or token
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=str(authority) if authority.exists() else None)
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": list(audiences)},
    }
    headers = {"Authorization": f"Bearer {own}", "Content-Type": "application/json"}
    try:
        connection.request("POST", _REVIEWS, json.dumps(body), headers)
        with connection.getresponse() as response:
            status, text = response.status, response.read(1 << 20)
    except (OSError, http.client.HTTPException):
        return "unreachable"
    finally:
        connection.close()
    if status >= 500:
        return "unreachable"
    if status in (200, 201):
        try:
            said = json.loads(text)["status"]
            return "accepted" if said.get("authenticated") is True else "rejected"
        except (ValueError, KeyError, TypeError, AttributeError):
            return "up"
    # A token for other audiences than the API's own, which is its issuer, is no bearer there in the first place.
    return "rejected" if status == 401 and own == token and issuer in audiences else "up"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None
