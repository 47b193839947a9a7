"""What has to hold of whatever is put in: each function takes raw input, and fails where it does not hold."""

from __future__ import annotations

import math
import posixpath
import threading
import time
import unicodedata
from typing import Any
from urllib.parse import unquote, urlsplit

from requests.structures import CaseInsensitiveDict

from tests.property.test_audit_properties import One, checked
from vault_middleware import SecretConfig
from vault_middleware.errors import ConfigurationError, InvalidSecretPath, VaultUnavailable
from vault_middleware.parsing import duration
from vault_middleware.secret import Secret
from vault_middleware.telemetry.audit import Audit
from vault_middleware.telemetry.lines import described
from vault_middleware.vault import answers
from vault_middleware.vault.paths import Mount, encode, validate
from vault_middleware.vault.transport import Transport

__all__ = ["answer", "audit_line", "environment", "lands_below", "path", "seconds"]

_TRANSPORT = Transport(SecretConfig(vault_addr="http://127.0.0.1:1"), clock=time.monotonic, closing=threading.Event())

_MOUNTS = (Mount("lotabots/a/", "kv", 1), Mount("lotabots/a/", "kv", 2), Mount("lotabots/a/", "database", None))


def lands_below(prefix: str, target: str) -> None:
    """Fail if *target* could be read as a place that is not below *prefix*."""
    parts = urlsplit(f"http://vault{target}")
    assert (parts.netloc, parts.path, parts.query, parts.fragment) == ("vault", target, "", "")
    assert target.isascii()
    assert target.isprintable()
    once = unquote(target, errors="strict")
    for seen in (target, once, unquote(once), unicodedata.normalize("NFKC", once), once.replace("\\", "/")):
        assert posixpath.normpath(seen).startswith(prefix), seen
        assert seen.count("/") == target.count("/"), seen


def path(text: str) -> None:
    """A path is refused in our words, or lands below its prefix."""
    whole = f"shared/{text}"
    try:
        validate(whole)
    except InvalidSecretPath as error:
        _readable(error)
        return
    lands_below("/v1/lotabots/shared/", f"/v1/lotabots/{encode(whole)}")
    assert unquote(encode(whole), errors="strict") == whole


def environment(environ: dict[str, str]) -> None:
    """An environment gives settings, or an error of ours that shows no credential."""
    try:
        config = SecretConfig.from_env(environ)
    except ConfigurationError as error:
        _shows_no_credential(error, environ)
        return
    assert 0 < config.request_timeout < math.inf
    repr(config)


def seconds(text: str) -> None:
    """A duration is a finite number of seconds, or a ValueError."""
    try:
        number = duration()(text)
    except ValueError:
        return
    assert 0 <= number < 1e9


def audit_line(*texts: str) -> None:
    """Whatever a client says: one line of JSON."""
    request_id, client, method, place, name = (*texts, *("",) * 5)[:5]
    sink = One()
    audit = Audit(sink)
    audit.access(
        described(request_id, client, method, "path", place),
        audit.secret_fragment(Secret(name, {}, request_id=place), "static"),
        "hit",
        1.0,
        0.0,
    )
    assert checked(sink.data)["event"] == "secret_access"


def answer(status: int, raw: bytes, headers: dict[str, str]) -> None:
    """An answer is understood, or is an error of ours that holds nothing of it."""
    try:
        understood = _TRANSPORT._understand(status, raw, CaseInsensitiveDict(headers), 1.0)
    except VaultUnavailable as error:
        _ours(error, raw)
        return
    understood.errors  # noqa: B018 (it is to be looked at)
    assert understood.age >= 0
    for mount in _MOUNTS:
        _tried(lambda mount=mount: answers.reading(understood, mount, "here"), raw)
    _tried(lambda: answers.token(understood, "here", namespace="", auth_path="x"), raw)
    _tried(lambda: answers.given_token(understood, "t", "here", namespace="", auth_path="x"), raw)
    _tried(lambda: answers.grant(understood, "here"), raw)


def _readable(error: Exception) -> None:
    assert str(error).isprintable()


def _shows_no_credential(error: Exception, environ: dict[str, str]) -> None:
    others = "".join(value for name, value in environ.items() if name not in ("VAULT_TOKEN", "VAULT_SECRET_ID"))
    for name in ("VAULT_TOKEN", "VAULT_SECRET_ID"):
        value = environ.get(name, "").strip()
        assert len(value) < 8 or value in others or value not in str(error)


def _tried(call: Any, raw: bytes) -> None:
    try:
        got = call()
    except VaultUnavailable as error:
        _ours(error, raw)
        return
    if got is not None:
        assert 0.0 <= getattr(got, "lease_duration", 0.0) < math.inf


def _ours(error: VaultUnavailable, raw: bytes) -> None:
    text = str(error)
    assert len(text) < 400
    assert text.isprintable()
    assert len(raw) < 24 or raw[:24].decode("latin-1") not in text
