"""Join vault-middleware's audit lines with Vault's own audit log: who was behind each read, cache hits included.

    python join_audit.py audit.jsonl /vault/audit.log                     one line of JSON for each access
    python join_audit.py audit.jsonl /vault/audit.log --secret shared/jwt  of one secret only
    python join_audit.py audit.jsonl /vault/audit.log --lease ID           of one lease
    python join_audit.py audit.jsonl /vault/audit.log --username HMAC      of one database user, as Vault hashes it

Exit status 1 where a line names a call that Vault's log does not have: it was rotated away, or is another server's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def lines(path: Path) -> Iterator[Line]:
    """The lines of a file of JSON; what is no JSON (other output on the same stream, a line half written) is passed over."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def calls(path: Path) -> dict[str, Line]:
    """What Vault's log says of each call, by its request id; it has the lease and the token only with the response."""
    found: dict[str, Line] = {}
    for line in lines(path):
        request = line.get("request")
        if isinstance(request, dict) and (line.get("type") == "response" or request.get("id") not in found):
            found[request.get("id", "")] = line
    return found


def told(call: Line) -> Line:
    """The part of Vault's line that says who did what; secrets and tokens are hashes in it."""
    request, auth = call["request"], call.get("auth") or {}
    secret = (call.get("response") or {}).get("secret") or {}
    return {
        "time": call.get("time"),
        "request_id": request.get("id"),
        "namespace": (request.get("namespace") or {}).get("path", ""),
        "path": request.get("path"),
        "remote_address": request.get("remote_address"),
        "token_accessor": auth.get("accessor"),
        "display_name": auth.get("display_name"),
        "policies": auth.get("policies"),
        "lease_id": secret.get("lease_id"),
        "correlation_id": (request.get("headers") or {}).get("x-correlation-id", [None])[0],
        "error": call.get("error"),
    }


def _username(call: Line) -> Any:
    return ((call.get("response") or {}).get("data") or {}).get("username")


def main(arguments: list[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description="Join our audit lines with Vault's by request id.")
    parser.add_argument("ours", type=Path, help="what VAULT_AUDIT_LOG has written")
    parser.add_argument("vaults", type=Path, help="the log of Vault's file audit device")
    parser.add_argument("--secret", help="only accesses to this secret")
    parser.add_argument("--lease", help="only accesses to the lease with this id")
    parser.add_argument("--username", help="only accesses to this database user, as sys/audit-hash gives it")
    chosen = parser.parse_args(arguments)

    vaults = calls(chosen.vaults)
    missing = 0
    for line in lines(chosen.ours):
        if line.get("event") != "secret_access" or (chosen.secret and line["secret_path"] != chosen.secret):
            continue
        key = line.get("vault_request_id")
        call = vaults.get(key) if key else None
        vault = told(call) if call else None
        if chosen.lease and (vault is None or vault["lease_id"] != chosen.lease):
            continue
        if chosen.username and (call is None or _username(call) != chosen.username):
            continue
        missing += key is not None and call is None
        print(json.dumps({**line, "vault": vault}))
    if missing:
        print(f"{missing} lines name a call that is not in {chosen.vaults}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
