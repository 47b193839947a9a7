"""Secrets of HashiCorp Vault and OpenBao for Python gateways: one middleware, and ``request.state.secrets``."""

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
