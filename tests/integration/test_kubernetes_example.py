"""examples/kubernetes: the script sets a bare server up so that the defaults work, and the manifests are valid."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from tests.integration.support import DYNAMIC, JWT, STATIC, answers, eventually, serve
from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.devstack import DevStack, Kubernetes, OpenBao, Postgres
from vault_middleware.devstack.kubernetes import API_AUDIENCE
from vault_middleware.errors import SecretAccessDenied, VaultMiddlewareError

FOLDER = Path(__file__).parents[2] / "examples" / "kubernetes"
MANIFESTS = [
    pytest.param(document, id=f"{path.name}-{document['kind']}-{document['metadata']['name']}")
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]


@dataclass
class Bare:
    """Servers that nobody has set up."""

    bao: OpenBao
    postgres: Postgres
    kubernetes: Kubernetes
    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        """What a pod sets besides the defaults."""
        return {"VAULT_ADDR": self.bao.address, "VAULT_KUBERNETES_TOKEN_PATH": str(self.folder / "token")}

    def project_token(self, audience: str = "vault") -> None:
        """What the kubelet does."""
        (self.folder / "token").write_text(self.kubernetes.service_account_token(audience=audience))

    def set_up(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the script, as for a server outside the cluster."""
        (self.folder / "reviewer").write_text(self.kubernetes.service_account_token("vault-reviewer") + "\n")
        (self.folder / "ca").write_text(self.kubernetes.ca_certificate)
        (self.folder / "password").write_text(self.postgres.superuser_password + "\n")
        environ = {
            "PATH": os.environ["PATH"],
            "VAULT_ADDR": self.bao.address,
            "VAULT_TOKEN": self.bao.root_token,
            "KUBERNETES_HOST": self.kubernetes.address,
            "KUBERNETES_CA_FILE": str(self.folder / "ca"),
            "REVIEWER_TOKEN_FILE": str(self.folder / "reviewer"),
            "DATABASE_URL": f"postgresql://{{{{username}}}}:{{{{password}}}}@{self.postgres.host}:{self.postgres.port}"
            "/postgres?sslmode=disable",
            "DATABASE_USER": self.postgres.superuser,
            "DATABASE_PASSWORD_FILE": str(self.folder / "password"),
            **variables,
        }
        return subprocess.run(
            ["sh", str(FOLDER / "setup.sh")], env=environ, capture_output=True, text=True, check=False
        )

    def write_secrets(self) -> None:
        for path in ("api-gateway/data/api-key", "shared/data/jwt"):
            self.bao.request("POST", f"lotabots/{path}", {"data": {"value": "canary"}})


@pytest.fixture(scope="module", params=["namespace", "community"])
def bare(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """Servers after the script has run on them, twice, as it may be run again."""
    with OpenBao() as bao, Postgres() as postgres, Kubernetes() as kubernetes:
        servers = Bare(bao, postgres, kubernetes, tmp_path_factory.mktemp("bare"))
        for _ in range(2):
            done = servers.set_up(DEPLOYMENT=request.param)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
            assert bao.root_token not in done.stdout
        servers.write_secrets()
        yield servers


def test_after_the_script_a_gateway_works_with_the_defaults(bare: Bare) -> None:
    bare.project_token()
    config = SecretConfig.from_env({**bare.environ, "VAULT_AUDIT_LOG": "off"})
    with SecretsManager(config, registry=CollectorRegistry()) as manager:
        assert manager.get_secret(STATIC)["value"] == "canary"
        assert manager.get_secret(JWT)["value"] == "canary"
        credential = manager.get_dynamic_secret(DYNAMIC)
        user = credential["username"]
        assert bare.postgres.can_log_in(user, credential["password"])
        assert credential.lease.renewable
        with pytest.raises(SecretAccessDenied):
            manager.get_secret("other/secret")
    eventually(lambda: user not in bare.postgres.users(), "the database user to be revoked at the stop", 10)


def test_a_token_that_is_not_for_vault_is_refused_after_the_script(bare: Bare) -> None:
    bare.project_token(audience=API_AUDIENCE)
    config = SecretConfig.from_env({**bare.environ, "VAULT_AUDIT_LOG": "off", "VAULT_STARTUP_TIMEOUT": "1s"})
    with pytest.raises(VaultMiddlewareError, match="audience"):
        SecretsManager(config, registry=CollectorRegistry()).start()


def test_the_script_says_what_the_server_refuses_and_ends_there(bare: Bare) -> None:
    done = bare.set_up(VAULT_TOKEN="not-a-token")
    assert done.returncode == 1
    assert "the server answered 403" in done.stderr
    assert "not-a-token" not in done.stdout + done.stderr


def test_the_gateway_of_the_deployment_answers_its_probes_and_its_scrape(bare: Bare, tmp_path: Path) -> None:
    bare.project_token()
    deployment = _deployment()
    pod = deployment["spec"]["template"]
    container = pod["spec"]["containers"][0]
    scrape = pod["metadata"]["annotations"]
    prefetch = next(each["value"] for each in container["env"] if each["name"] == "VAULT_PREFETCH")
    stack = cast(DevStack, SimpleNamespace(environ=bare.environ, postgres=bare.postgres))
    command = ("uvicorn", "--port", "{port}", "--log-level", "warning", container["args"][-1])
    with serve(command, stack, tmp_path, root=FOLDER, VAULT_PREFETCH=prefetch) as running:
        eventually(lambda: answers(running, "/health/live"), "the gateway to answer")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            path = container[probe]["httpGet"]["path"]
            assert httpx.get(running.url + path, trust_env=False).status_code == 200, path
        metrics = httpx.get(running.url + scrape["prometheus.io/path"], trust_env=False)
        assert "vault_server_up 1.0" in metrics.text
        assert httpx.get(f"{running.url}/who", trust_env=False).json()["user"] in bare.postgres.users()
        assert [line["outcome"] for line in running.lines("secret_access") if line["request_id"]] == ["hit", "hit"]


@pytest.mark.parametrize("document", MANIFESTS)
@pytest.mark.parametrize("version", ["1.29", "1.34"])
def test_a_manifest_is_valid_by_the_published_schemas(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_refuse_a_wrong_manifest() -> None:
    wrong = _deployment()
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.34", strict=True)


def test_script_and_manifests_speak_of_the_same_things() -> None:
    script = (FOLDER / "setup.sh").read_text()
    pod = _deployment()["spec"]["template"]["spec"]
    container = pod["containers"][0]
    env = {each["name"]: each["value"] for each in container["env"]}
    token = pod["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]
    assert f"AUDIENCE:-{token['audience']}}}" in script
    assert env["VAULT_KUBERNETES_TOKEN_PATH"] == f"{container['volumeMounts'][0]['mountPath']}/{token['path']}"
    config = SecretConfig.from_env({})
    assert f"ROLE:-{config.vault_role}}}" in script
    assert f"NAMESPACE:-{config.namespace}}}" in script
    assert pod["serviceAccountName"] == config.vault_role
    assert set(env) <= {f"VAULT_{name.upper()}" for name in ("addr", "cacert", "kubernetes_token_path", "prefetch")}


def _deployment() -> dict[str, Any]:
    with contextlib.closing((FOLDER / "deployment.yaml").open()) as file:
        found: dict[str, Any] = yaml.safe_load(file)
    return found
