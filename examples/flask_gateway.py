"""An API gateway in Flask: forwards with the API key from Vault, and asks the database as a dynamic user.

Run it:  gunicorn "examples.flask_gateway:create_app()"   or   waitress-serve --call examples.flask_gateway:create_app
Settings of its own, besides those of vault-middleware: UPSTREAM_URL, DATABASE_HOST, DATABASE_PORT, DATABASE_NAME.
"""

import os

import psycopg
import requests
from flask import Blueprint, Flask, Response, current_app, request

from vault_middleware.integrations.flask import Vault, current_secrets

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8081")

vault = Vault()
gateway = Blueprint("gateway", __name__)


def create_app() -> Flask:
    """The application; its settings may also come from ``app.config["VAULT_…"]``."""
    app = Flask(__name__)
    app.config["DATABASE"] = {
        "host": os.environ.get("DATABASE_HOST", "127.0.0.1"),
        "port": os.environ.get("DATABASE_PORT", "5432"),
        "dbname": os.environ.get("DATABASE_NAME", "postgres"),
    }
    vault.init_app(app)
    app.register_blueprint(gateway)
    return app


@gateway.get("/api/<path:path>")
def forward(path: str) -> Response:
    """Ask the upstream, with the key that the client never sees."""
    key = current_secrets().get_secret("api-gateway/api-key")["value"]  # or request.state.secrets
    answer = requests.get(
        f"{UPSTREAM_URL}/{path}",
        params=request.args.to_dict(flat=False),
        headers={"X-API-Key": key, "X-Request-ID": request.headers.get("X-Request-ID", "")},
        timeout=10,
    )
    return Response(answer.content, answer.status_code, content_type=answer.headers.get("Content-Type"))


@gateway.get("/who")
def who() -> dict[str, str | None]:
    """The database's own word for who asks: a user that Vault has made for this process."""
    credential = current_secrets().get_dynamic_secret("database/creds/api-gateway")
    database = current_app.config["DATABASE"]
    with psycopg.connect(user=credential["username"], password=credential["password"], **database) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    return {"database_user": row[0] if row else None}
