"""A gateway whose requests read a secret, and then wait until the FIFO that ``GO`` names is written to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vault_middleware import VaultWSGIMiddleware


def _wait(environ: Any, start_response: Any) -> list[bytes]:
    user = environ["vault_middleware.secrets"].get_dynamic_secret("database/creds/api-gateway")["username"]
    Path(os.environ["GO"]).read_bytes()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [user.encode()]


app = VaultWSGIMiddleware(_wait)
