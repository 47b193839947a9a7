"""A gateway as deployment.yaml runs it: with probes for the kubelet and metrics for Prometheus.

Run it:  uvicorn gateway:app
"""

from prometheus_client import make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from vault_middleware import SecretsManager, VaultMiddleware
from vault_middleware.health import health_asgi

manager = SecretsManager()  # everything from the environment


def who(request: Request) -> Response:
    """What the gateway does with its secrets; here it only tells the database user that it has."""
    request.state.secrets.get_secret("api-gateway/api-key")
    return JSONResponse({"user": request.state.secrets.get_dynamic_secret("database/creds/api-gateway")["username"]})


app = Starlette(
    routes=[
        Route("/who", who),
        Mount("/health", health_asgi(manager)),
        Mount("/metrics", make_asgi_app()),
    ]
)
app.add_middleware(VaultMiddleware, manager=manager)
