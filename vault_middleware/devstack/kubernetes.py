"""As much of a Kubernetes API server as a log-in needs: it signs service-account tokens and reviews them."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .certificates import Authority
from .process import extra

__all__ = ["API_AUDIENCE", "Kubernetes"]

#: The issuer of service-account tokens, and the audience of the one that Kubernetes mounts into every pod.
API_AUDIENCE = "https://kubernetes.default.svc.cluster.local"

_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_NAMES = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


class _InvalidToken(Exception):
    """Why a token is not accepted."""


class Kubernetes:
    """Issues tokens like the projected ones of a pod (ES256), and answers TokenReview; a context manager.

    Attributes
    ----------
    available : bool
        False: connections are closed without an answer, as while kube-apiserver is down.
    reviews : int
        How many reviews were answered.

    Parameters
    ----------
    clock : callable
        The wall clock, in seconds, by which tokens begin and expire.
    authority : Authority, optional
        Signs the certificate of an https address, into its folder; without one the address is plain http.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, authority: Authority | None = None) -> None:
        self.available = True
        self.reviews = 0
        self._clock = clock
        self._ec = extra("cryptography.hazmat.primitives.asymmetric.ec")
        self._signatures = extra("cryptography.hazmat.primitives.asymmetric.utils")
        self._algorithm = self._ec.ECDSA(extra("cryptography.hazmat.primitives.hashes").SHA256())
        self._key = self._ec.generate_private_key(self._ec.SECP256R1())
        self._accounts: dict[str, str] = {}
        self._revoked: set[str] = set()
        self._forbidden: set[str] = set()
        self._server: _Server | None = None
        self._certificate = None if authority is None else authority.issue("kubernetes")
        self.ca_certificate = (authority or Authority(name="kubernetes")).pem

    def start(self) -> Self:
        """Listen on a free port."""
        if self._server is None:
            self._server = _Server(self, self._certificate)
            threading.Thread(target=self._server.serve_forever, args=(0.05,), name="tokenreview", daemon=True).start()
        return self

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """What the auth method takes as ``kubernetes_host``."""
        if self._server is None:
            raise RuntimeError("the TokenReview endpoint was not started")
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    @property
    def public_key(self) -> str:
        """The signing key's public half (PEM), for the ``jwt`` auth method's ``jwt_validation_pubkeys``."""
        forms = extra("cryptography.hazmat.primitives.serialization")
        pem = self._key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
        return str(pem.decode())

    def service_account_token(
        self,
        name: str = "api-gateway",
        namespace: str = "lotabots",
        *,
        ttl: float = 3600.0,
        audience: str = API_AUDIENCE,
        uid: str | None = None,
    ) -> str:
        """A signed token with a projected token's claims; the service account exists from its first token on.

        Parameters
        ----------
        ttl : float
            Seconds until it expires; negative: it expired so long ago.
        uid : str, optional
            Of the account; one that is not its own is that of a deleted account, and refused.
        """
        subject = f"system:serviceaccount:{namespace}:{name}"
        own = self._accounts.setdefault(subject, str(uuid.uuid5(_NAMES, subject)))
        now = int(self._clock())
        begin = min(now, int(now + ttl) - 60)
        claims = {
            "aud": [audience],
            "exp": int(now + ttl),
            "iat": begin,
            "iss": API_AUDIENCE,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {
                "namespace": namespace,
                "pod": {"name": f"{name}-0", "uid": str(uuid.uuid5(_NAMES, f"pod {subject}"))},
                "serviceaccount": {"name": name, "uid": own if uid is None else uid},
            },
            "nbf": begin,
            "sub": subject,
        }
        signed = f"{_encoded({'alg': 'ES256', 'kid': 'devstack', 'typ': 'JWT'})}.{_encoded(claims)}"
        r, s = self._signatures.decode_dss_signature(self._key.sign(signed.encode(), self._algorithm))
        return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def revoke(self, token: str) -> None:
        """Refuse *token* from now on, as when its pod is deleted."""
        self._revoked.add(token)

    def review(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The ``status`` of a TokenReview with this ``spec``."""
        audiences = [str(each) for each in spec.get("audiences") or [API_AUDIENCE]]
        self.reviews += 1
        try:
            claims, audiences = self._verified(str(spec.get("token", "")), audiences)
        except _InvalidToken as error:
            return {"user": {}, "error": str(error)}
        bound = claims["kubernetes.io"]
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{bound['namespace']}", "system:authenticated"]
        pod = {f"authentication.kubernetes.io/pod-{key}": [value] for key, value in bound["pod"].items()}
        user = {"username": claims["sub"], "uid": bound["serviceaccount"]["uid"], "groups": groups, "extra": pod}
        return {"authenticated": True, "user": user, "audiences": audiences}

    def forbid(self, name: str, namespace: str) -> None:
        """Refuse reviews to this service account from now on (403), as to one without ``system:auth-delegator``."""
        self._forbidden.add(f"system:serviceaccount:{namespace}:{name}")

    def permit(self, name: str, namespace: str) -> None:
        """Answer reviews of this service account again, as of every one that is not forbidden them."""
        self._forbidden.discard(f"system:serviceaccount:{namespace}:{name}")

    def may_review(self, user: str) -> bool:
        """Whether this user, as `caller` names it, is permitted to."""
        return user not in self._forbidden

    def caller(self, bearer: str) -> str | None:
        """The user whose token this is; None where it is not known."""
        with contextlib.suppress(_InvalidToken):
            claims, _ = self._verified(bearer, [API_AUDIENCE])
            return str(claims["sub"])
        return None

    def _verified(self, token: str, audiences: list[str]) -> tuple[dict[str, Any], list[str]]:
        signed, _, signature = token.rpartition(".")
        try:
            raw = _decoded(signature)
            header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
            der = self._signatures.encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
            self._key.public_key().verify(der, signed.encode(), self._algorithm)
        except (ValueError, extra("cryptography.exceptions").InvalidSignature):
            claims, header = None, {}
        if claims is None or header.get("alg") != "ES256":
            raise _InvalidToken("invalid bearer token")
        now = self._clock()
        if token in self._revoked or not claims["nbf"] <= now < claims["exp"]:
            raise _InvalidToken("service account token has expired")
        account = claims["kubernetes.io"]["serviceaccount"]
        subject = f"system:serviceaccount:{claims['kubernetes.io']['namespace']}:{account['name']}"
        if claims["sub"] != subject or self._accounts.get(subject) != account["uid"]:
            raise _InvalidToken("service account UID does not match the token's claim")
        common = [each for each in claims["aud"] if each in audiences]
        if not common:
            raise _InvalidToken(f"token audiences {claims['aud']} is invalid for the target audiences {audiences}")
        return claims, common


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, kubernetes: Kubernetes, certificate: tuple[Path, Path] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
            # The handshake is the handler's, so that a caller who stays silent keeps nobody else out.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.kubernetes = kubernetes

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self.kubernetes.available

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who went away is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """One call a connection (HTTP/1.0), so that `Kubernetes.available` counts at once."""

    timeout = 10.0
    server: _Server

    def do_POST(self) -> None:
        kubernetes = self.server.kubernetes
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        user = kubernetes.caller(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if user is None:
            self._refuse(401, "Unauthorized", "Unauthorized")
        elif self.path != _REVIEWS:
            self._refuse(404, "NotFound", "the server could not find the requested resource")
        elif not kubernetes.may_review(user):
            what = 'tokenreviews.authentication.k8s.io is forbidden: User "{}" cannot create resource "tokenreviews"'
            where = 'in API group "authentication.k8s.io" at the cluster scope'
            details = {"group": "authentication.k8s.io", "kind": "tokenreviews"}
            self._refuse(403, "Forbidden", f"{what.format(user)} {where}", details)
        else:
            review = json.loads(text)
            kind = {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}}
            self._answer(201, {**kind, "spec": review["spec"], "status": kubernetes.review(review["spec"])})

    def _refuse(self, code: int, reason: str, message: str, details: dict[str, str] | None = None) -> None:
        kind = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        more = {} if details is None else {"details": details}
        self._answer(code, {**kind, "message": message, "reason": reason, **more, "code": code})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Silent."""


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _encoded(part: dict[str, Any]) -> str:
    return _base64(json.dumps(part, separators=(",", ":")).encode())


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
