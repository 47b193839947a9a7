"""examples/kubernetes/terraform sets a server up as setup.sh does: the same calls, with the same bodies."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.scripted import Exchange, ScriptedServer, answer
from vault_middleware.parsing import duration

from .terraform import Configuration

FOLDER = Path(__file__).parents[2] / "examples" / "kubernetes"
MAIN = (FOLDER / "terraform" / "main.tf").read_text(encoding="utf-8")

Writes = dict[str, dict[str, Any]]

#: A name for everything that has one, and every duration, by the script's variables and by Terraform's.
NAMES = {
    "NAMESPACE": "team-x",
    "ROLE": "role-x",
    "AUDIENCE": "audience-x",
    "KUBERNETES_HOST": "https://cluster.example",
    "DATABASE_URL": "postgresql://{{username}}:{{password}}@base.example/x",
    "DATABASE_USER": "user-x",
    "TOKEN_TTL": "10m",
    "TOKEN_MAX_TTL": "20m",
    "LEASE_TTL": "30m",
    "LEASE_MAX_TTL": "40m",
}
#: What a server outside of the cluster needs beside that: the script has files.
FILES = {"KUBERNETES_CA_FILE": "the authority\n", "REVIEWER_TOKEN_FILE": "the-token\n"}
PASSWORD = "of-the-database"


def scripts(folder: Path, names: dict[str, str], deployment: str) -> Writes:
    """What setup.sh writes to a server that has nothing yet."""

    def reply(exchange: Exchange) -> None:
        answer({}, 404 if exchange.request.method == "GET" else 200)(exchange)

    variables = {**names, **({"DEPLOYMENT": deployment} if deployment else {})}
    files = {"DATABASE_PASSWORD_FILE": f"{PASSWORD}\n", **(FILES if names else {})}
    for name, content in files.items():
        (folder / name).write_text(content)
        variables[name] = str(folder / name)
    with ScriptedServer() as server:
        server.on("*", reply)
        environ = {"PATH": os.environ["PATH"], "VAULT_ADDR": server.url, "VAULT_TOKEN": "root", **variables}
        command = ["sh", str(FOLDER / "setup.sh")]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        made = [request for request in server.requests if request.method != "GET"]
        return {each.path.removeprefix("/v1/"): plain(each.json if each.body else {}) for each in made}


def terraforms(names: dict[str, str], deployment: str, text: str = MAIN) -> Writes:
    """What main.tf, or *text*, makes there."""
    variables: dict[str, Any] = {
        name.lower(): int(duration()(value)) if name.endswith("_TTL") else value for name, value in names.items()
    }
    if names:
        variables["kubernetes_ca_cert"] = FILES["KUBERNETES_CA_FILE"]
        variables["token_reviewer_jwt"] = FILES["REVIEWER_TOKEN_FILE"].strip()
    if deployment:
        variables["deployment"] = deployment
    variables["database_password"] = PASSWORD
    return {path: plain(body) for path, body in Configuration(text, variables).writes()}


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """*body* without what makes no difference: how a duration and a policy are laid out, and what is empty."""
    found: dict[str, Any] = {}
    for name, value in body.items():
        if name.endswith("_ttl"):
            found[name] = duration()(value)
        elif name == "policy":
            found[name] = [" ".join(line.split()) for line in value.strip().splitlines()]
        elif name.endswith("_statements"):
            found[name] = [statement.strip() for statement in value]
        elif value:
            found[name] = value
    return found


@pytest.mark.parametrize("names", [pytest.param({}, id="defaults"), pytest.param(NAMES, id="other names")])
@pytest.mark.parametrize("deployment", [pytest.param("", id="namespace by default"), "community"])
def test_terraform_makes_what_the_script_makes(tmp_path: Path, names: dict[str, str], deployment: str) -> None:
    script = scripts(tmp_path, names, deployment)
    assert terraforms(names, deployment) == script
    assert len(script) == 9 + (deployment != "community")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Writes:
    return scripts(tmp_path_factory.mktemp("script"), NAMES, "namespace")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('shared/data/*"               { capabilities = ["read"]', 'shared/data/*" { capabilities = ["read", "list"]'),
        ('    path "sys/leases/revoke"                          { capabilities = ["update"] }\n', ""),
        ('database/creds/${var.role}"', 'database/creds/*"'),
        ('toset(["api-gateway", "shared"])', 'toset(["api-gateway"])'),
        ('version = "2" }', 'version = "1" }'),
        ("bound_service_account_names      = [var.role]", 'bound_service_account_names = ["*"]'),
        ("bound_service_account_namespaces = [var.namespace]", 'bound_service_account_namespaces = ["lotabots"]'),
        ("audience                         = var.audience\n", ""),
        ("= [vault_policy.gateway.name]", '= [vault_policy.gateway.name, "default"]'),
        ("token_max_ttl                    = var.token_max_ttl", "token_max_ttl = var.token_ttl"),
        ("max_ttl     = var.lease_max_ttl", "max_ttl = var.token_max_ttl"),
        ("disable_local_ca_jwt = var.token_reviewer_jwt != null", "disable_local_ca_jwt = false"),
        ("allowed_roles = [var.role]", 'allowed_roles = ["*"]'),
        ("VALID UNTIL '{{expiration}}'", ""),
        ("GRANT pg_read_all_data", "GRANT pg_write_all_data"),
        ('        DROP OWNED BY "{{name}}";\n', ""),
    ],
)
def test_a_difference_would_be_seen(script: Writes, right: str, wrong: str) -> None:
    assert MAIN.count(right) == 1, right
    assert terraforms(NAMES, "namespace", MAIN.replace(right, wrong)) != script


def test_terraform_finds_the_alternative_well_formed() -> None:
    program = shutil.which("terraform") or shutil.which("tofu")
    if program is None:
        pytest.skip("there is no terraform or tofu here, which would check main.tf")
    done = subprocess.run(
        [program, "fmt", "-check", "-diff", str(FOLDER / "terraform")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
