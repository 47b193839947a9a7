"""Secrets of HashiCorp Vault and OpenBao for Python gateways: one middleware, and ``request.state.secrets``."""

# First, and from up here: it imports hvac, which takes a sixth longer further down our chain of imports, where its
# calls lie across the end of a block of CPython's stack.
from .vault import bridge as _bridge  # noqa: F401

# isort: split
from . import errors
from .accessor import RequestSecrets, current_secrets
from .asgi import VaultMiddleware
from .config import SecretConfig
from .manager import SecretsManager
from .secret import DynamicSecret, Lease, Secret
from .wsgi import VaultWSGIMiddleware

__all__ = [
    "DynamicSecret",
    "Lease",
    "RequestSecrets",
    "Secret",
    "SecretConfig",
    "SecretsManager",
    "VaultMiddleware",
    "VaultWSGIMiddleware",
    "current_secrets",
    "errors",
]
