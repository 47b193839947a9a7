"""The policy lines that are named where the server refuses something."""

from __future__ import annotations

import json

from .paths import Mount

__all__ = ["call_line", "lease_line", "read_line", "where"]


def where(namespace: str) -> str:
    """Where a policy has to be written: relative to the namespace that the token was made in."""
    return f"a policy of the namespace {namespace!r}" if namespace else "a policy of the root namespace"


def read_line(path: str, mount: Mount | None, *, secrets_at: str, token_at: str) -> str:
    """The line that permits reading *path*, for a token of the namespace *token_at* (empty: the root)."""
    full = _joined(secrets_at, path)
    if mount is not None and mount.kv_version == 2:
        full = f"{mount.path}data/{full[len(mount.path) :]}"
    return f'path {_quoted(_relative(full, token_at))} {{ capabilities = ["read"] }}'


def lease_line(call: str, *, lease_at: str, token_at: str) -> str:
    """The line that permits ``sys/leases/{call}`` where the lease lives."""
    return call_line(_relative(_joined(lease_at, f"sys/leases/{call}"), token_at))


def call_line(path: str) -> str:
    """The line that permits a call of the server's own at *path*, as the policy spells it."""
    return f'path {_quoted(path)} {{ capabilities = ["update"] }}'


def _joined(namespace: str, path: str) -> str:
    return f"{namespace}/{path}" if namespace else path


def _relative(full: str, namespace: str) -> str:
    return full.removeprefix(f"{namespace}/") if namespace else full


def _quoted(path: str) -> str:
    """*path* as HCL writes it; a quote in it ends nothing."""
    return json.dumps(path, ensure_ascii=False)
