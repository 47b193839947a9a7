"""The doctor and the server: each way in which it can be out of reach or unable to answer, made real, is told apart."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.scripted import ScriptedServer, answer, page, redirect
from vault_middleware.cli.findings import Findings
from vault_middleware.devstack import DevStack, OpenBao
from vault_middleware.devstack.cluster import Node

from .doctoring import causes, examine, finding
from .support import eventually

HEALTH = {"sealed": False, "initialized": True, "version": "2.7.2"}


@pytest.fixture(scope="module")
def secure() -> Iterator[OpenBao]:
    """A server with TLS."""
    with OpenBao(tls="server") as bao:
        yield bao


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port whose queue is full, so that a connection to it is never answered, as where a network policy drops it."""
    with socket.socket() as listener, contextlib.ExitStack() as callers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(3):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(address)
        yield address[1]


def test_a_name_that_does_not_resolve(stack: DevStack) -> None:
    findings = examine(stack, VAULT_ADDR="http://vault.invalid:8200")
    assert causes(findings) == ["name-not-resolving"]
    assert "vault.invalid" in finding(findings, "name-not-resolving").found


def test_a_connection_that_is_refused(stack: DevStack) -> None:
    assert causes(examine(stack, VAULT_ADDR="http://127.0.0.1:1")) == ["connection-refused"]


def test_a_server_that_was_stopped(stack: DevStack) -> None:
    stack.bao.kill()
    assert causes(examine(stack)) == ["connection-refused"]


def test_a_connection_that_is_swallowed(stack: DevStack, silent_port: int) -> None:
    findings = examine(stack, VAULT_ADDR=f"http://127.0.0.1:{silent_port}")
    assert causes(findings) == ["connection-times-out"]
    assert "network policy" in finding(findings, "connection-times-out").mend


def test_a_server_that_takes_the_connection_and_hangs(stack: DevStack) -> None:
    stack.bao.pause()
    assert causes(examine(stack)) == ["server-hangs"]


def test_a_certificate_of_an_authority_that_we_do_not_trust(stack: DevStack, secure: OpenBao, tmp_path: Path) -> None:
    other = Authority(tmp_path).path
    assert causes(examine(stack, VAULT_ADDR=secure.address, VAULT_CACERT=other)) == ["tls-unknown-authority"]
    assert causes(examine(stack, VAULT_ADDR=secure.address)) == ["tls-unknown-authority"]


def test_a_certificate_for_another_name(stack: DevStack, secure: OpenBao) -> None:
    settings = {"VAULT_CACERT": str(secure.ca_path), "VAULT_TLS_SERVER_NAME": "vault.example.org"}
    assert causes(examine(stack, VAULT_ADDR=secure.address, settings=settings)) == ["tls-wrong-name"]


def test_a_certificate_that_has_expired(stack: DevStack, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with ScriptedServer(tls=authority.issue("server", expired=True)) as server:
        findings = examine(stack, VAULT_ADDR=server.url, VAULT_CACERT=authority.path)
    assert causes(findings) == ["tls-certificate-expired"]


def test_a_client_certificate_that_is_wanted(stack: DevStack) -> None:
    with OpenBao(tls="mutual") as bao:
        findings = examine(stack, VAULT_ADDR=bao.address, VAULT_CACERT=str(bao.ca_path))
    assert causes(findings) == ["tls-client-certificate"]


def test_plain_http_to_a_port_with_tls(stack: DevStack, secure: OpenBao) -> None:
    findings = examine(stack, VAULT_ADDR=secure.address.replace("https", "http"))
    assert causes(findings) == ["http-to-https"]
    assert "https://" in finding(findings, "http-to-https").mend


def test_tls_to_a_port_without(stack: DevStack) -> None:
    findings = examine(stack, VAULT_ADDR=stack.bao.address.replace("http", "https"))
    assert causes(findings) == ["https-to-http"]


def test_a_server_that_is_sealed(stack: DevStack) -> None:
    stack.bao.seal()
    findings = examine(stack)
    assert causes(findings) == ["server-sealed"]
    assert "operator unseal" in finding(findings, "server-sealed").mend


def test_a_server_that_is_not_initialised(stack: DevStack) -> None:
    class New(OpenBao):
        def _started_first(self) -> None:
            """Nothing is done with it yet."""

    with New() as bao:
        findings = examine(stack, VAULT_ADDR=bao.address)
    assert causes(findings) == ["server-not-initialised"]
    assert "operator init" in finding(findings, "server-not-initialised").mend


def _with_health(stack: DevStack, status: int, *, headers: dict[str, str] | None = None) -> Findings:
    with ScriptedServer() as server:
        server.on("/v1/sys/health", answer(HEALTH, status, headers))
        return examine(stack, VAULT_ADDR=server.url)


def test_a_standby_is_a_warning_before_anything_else(stack: DevStack) -> None:
    findings = _with_health(stack, 429)
    assert finding(findings, "server-standby").sign == "warning"
    assert [each.sign for each in findings.found[: findings.found.index(finding(findings, "server-standby"))]] == [
        "ok"
    ] * 3


def test_a_standby_for_disaster_recovery_cannot_answer(stack: DevStack) -> None:
    assert causes(_with_health(stack, 472)) == ["server-standby"]


def test_a_server_that_does_not_know_its_health(stack: DevStack) -> None:
    assert causes(_with_health(stack, 404)) == ["server-unhealthy"]


def test_something_that_is_not_vault(stack: DevStack) -> None:
    with ScriptedServer() as server:
        server.on("*", page(b"<html><body>hello</body></html>"))
        assert causes(examine(stack, VAULT_ADDR=server.url)) == ["not-vault"]
        server.on("*", redirect("https://elsewhere.example.org/"))
        assert causes(examine(stack, VAULT_ADDR=server.url)) == ["redirected"]


@pytest.mark.parametrize("seconds", [300.0, -300.0])
def test_a_clock_that_is_off_is_the_cause_and_not_the_token_that_it_makes_look_bad(
    stack: DevStack, seconds: float
) -> None:
    stack.write_service_account_token(ttl=200)  # by a clock 300 s ahead it has expired
    findings = examine(stack, wall=lambda: time.time() + seconds)
    assert causes(findings) == ["clock-skew"]
    assert ("ahead" if seconds > 0 else "behind") in finding(findings, "clock-skew").found
    if seconds < 0:
        assert "our clock that is behind" in finding(findings, "clock-skew").found


def test_the_clock_of_a_server_that_is_off_comes_before_the_log_in_that_it_refuses(stack: DevStack) -> None:
    date = email.utils.formatdate(time.time() + 7200, usegmt=True)
    with ScriptedServer() as server:
        server.on("/v1/sys/health", answer(HEALTH, 200, {"Date": date}))
        server.on("/v1/lotabots/sys/internal/ui/mounts", answer({"data": {}}))
        expired = "invalid expiration time (exp) claim: token is expired"
        server.on("/v1/lotabots/auth/kubernetes/login", answer({"errors": [expired]}, 403))
        findings = examine(stack, VAULT_ADDR=server.url)
    assert causes(findings) == ["clock-skew", "token-expired"]


def test_a_small_difference_of_clocks_is_a_warning(stack: DevStack) -> None:
    findings = examine(stack, wall=lambda: time.time() + 20)
    assert causes(findings) == []
    assert finding(findings, "clock-skew").sign == "warning"


def test_a_missing_socket(stack: DevStack, tmp_path: Path) -> None:
    assert causes(examine(stack, VAULT_ADDR=f"unix://{tmp_path}/none.sock")) == ["socket-missing"]


def test_an_http_proxy_that_cannot_be_reached(stack: DevStack) -> None:
    assert causes(examine(stack, VAULT_PROXY_ADDR="http://127.0.0.1:1")) == ["http-proxy"]


def test_the_credential_is_looked_at_although_the_server_cannot_be_reached(stack: DevStack, tmp_path: Path) -> None:
    settings = {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_KUBERNETES_TOKEN_PATH": str(tmp_path / "none")}
    assert causes(examine(stack, settings=settings)) == ["token-missing", "connection-refused"]


def test_a_server_that_fails_in_the_middle_is_a_finding_and_no_crash(
    stack: DevStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vault_middleware.vault.inspection import Inspector

    real: Callable[..., object] = Inspector.lookup

    def lookup(self: Inspector, token: object) -> object:
        found = real(self, token)
        stack.bao.kill()
        return found

    monkeypatch.setattr(Inspector, "lookup", lookup)
    assert causes(examine(stack)) == ["server-failed-meanwhile"]


def test_a_real_standby_is_a_warning_and_what_it_passes_on_is_judged(stack: DevStack) -> None:
    founder = Node("node-1")
    with founder, Node("node-2", founder) as standby:
        eventually(lambda: standby.health() == 429, "the joiner to be a standby")
        findings = examine(stack, VAULT_ADDR=standby.address)
        assert finding(findings, "server-standby").sign == "warning"
        # What the standby passes on is answered: nobody has set up a log-in there.
        assert causes(findings) == ["auth-mount-missing"]
