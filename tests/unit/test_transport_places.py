"""Where the transport goes and where it does not: redirects, proxies, unix sockets, addresses that answer nothing."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calling import LONG, PATH, SHORT, TOKEN, Make, ask, bare, failure, transports
from tests.scripted import ScriptedServer, answer, drip, redirect
from vault_middleware.errors import VaultUnavailable


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def make() -> Iterator[Make]:
    with transports() as make:
        yield make


# -- redirects


def test_a_redirect_within_the_server_is_followed_with_the_token_and_the_body(
    server: ScriptedServer, make: Make
) -> None:
    server.on(PATH, redirect(f"{server.url}/v1/there?version=2"))
    server.on("/v1/there", answer({"ok": 1}))
    got = make(server).request("any", "PUT", PATH, timeout=LONG, token=TOKEN, body={"a": 1}, params={"version": 2})
    assert got.body == {"ok": 1}
    (there,) = server.to("/v1/there")
    assert (there.method, there.target, there.json) == ("PUT", "/v1/there?version=2", {"a": 1})
    assert there.headers["x-vault-token"] == TOKEN


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_a_path_stays_at_the_server(server: ScriptedServer, make: Make, status: int) -> None:
    server.on(PATH, redirect("/v1/there", status))
    server.on("/v1/there", answer({"ok": 1}))
    assert ask(make(server)).body == {"ok": 1}
    assert server.to("/v1/there")[0].method == "GET"


def test_a_redirect_to_another_host_is_refused_and_that_host_hears_nothing(server: ScriptedServer, make: Make) -> None:
    with ScriptedServer() as other:
        server.on(PATH, redirect(f"{other.url}{PATH}"))
        message = failure(make(server))
    assert "redirects to http://127.0.0.1" in message
    assert "set VAULT_ADDR" in message
    assert other.connections == 0


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1:{port}/v1/there",
        "http://localhost:{port}/v1/there",
        "http://user@127.0.0.1:{port}/v1/there",
        "http://127.0.0.1:{port}@127.0.0.1:1/v1/there",
        "//127.0.0.1:1/v1/there",
        "/\t/127.0.0.1:1/v1/there",
        "ftp://127.0.0.1:{port}/v1/there",
        "file:///etc/passwd",
        "http://[",
        "there",
        "",
    ],
)
def test_a_redirect_to_anything_but_the_server_that_was_asked_is_refused(
    server: ScriptedServer, make: Make, location: str
) -> None:
    server.on(PATH, redirect(location.format(port=server.port)))
    assert "no other server" in failure(make(server))
    assert [request.path for request in server.requests] == [PATH]


def test_the_body_of_a_redirect_is_not_read(server: ScriptedServer, make: Make) -> None:
    head = b"HTTP/1.1 307 Gone\r\nLocation: /v1/there\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.on(PATH, drip(head, b"1\r\n \r\n"))
    server.on("/v1/there", answer({"ok": 1}))
    assert ask(make(server)).body == {"ok": 1}


def test_redirects_in_a_circle_end(server: ScriptedServer, make: Make) -> None:
    server.on(PATH, redirect(PATH))
    assert "in a circle" in failure(make(server))
    assert len(server.requests) == 3


# -- what the environment and the settings say


def test_proxies_netrc_and_certificates_of_the_environment_are_ignored(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password something\n", encoding="ascii")
    netrc.chmod(0o600)
    with ScriptedServer() as other:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.url)
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "not-there"))
        monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path / "not-there"))
        server.on(PATH, answer({}))
        assert ask(make(server)).status == 200
    assert other.connections == 0
    assert "authorization" not in server.requests[0].headers


def test_the_proxy_of_the_settings_is_used(server: ScriptedServer, make: Make) -> None:
    server.on("*", answer({"by": "proxy"}))
    transport = make("http://vault.invalid:8200", proxy_addr=server.url.replace("//", "//someone:something@"))
    assert ask(transport).body == {"by": "proxy"}
    (request,) = server.requests
    assert request.target == f"http://vault.invalid:8200{PATH}"
    assert request.headers["proxy-authorization"].startswith("Basic ")


def test_a_dripping_proxy_cannot_hold_a_call(server: ScriptedServer, make: Make) -> None:
    server.on("*", drip(b"HTTP/1.1 200 OK\r\n", b"X-Filler: 1\r\n"))
    for scheme in ("http", "https"):
        assert "VAULT_" in failure(make(f"{scheme}://vault.invalid:8200", proxy_addr=server.url), SHORT)
    assert len(server.requests) == 2


def test_a_proxy_that_refuses_the_connection_is_what_the_message_names(make: Make) -> None:
    with ScriptedServer() as gone:
        pass
    message = failure(make("http://vault.invalid:8200", proxy_addr=gone.url.replace("//", "//someone:something@")))
    assert "check VAULT_PROXY_ADDR" in message
    assert "something" not in message


def test_a_redirect_that_a_proxy_makes_up_is_refused(server: ScriptedServer, make: Make) -> None:
    server.on("*", redirect("http://elsewhere.invalid/"))
    assert "no other server" in failure(make("http://vault.invalid:8200", proxy_addr=server.url))
    assert len(server.requests) == 1


def test_a_unix_socket_is_an_address_and_no_proxy_comes_in_between(make: Make, tmp_path: Path) -> None:
    with ScriptedServer(unix=str(tmp_path / "s")) as local, ScriptedServer() as proxy:
        local.on(PATH, answer({"ok": 1}))
        transport = make(local, proxy_addr=proxy.url)
        assert ask(transport).body == {"ok": 1}
        assert ask(transport).body == {"ok": 1}
        assert local.connections == 1
        assert local.requests[0].headers["host"] == "localhost"
        assert proxy.connections == 0


def test_a_dripping_unix_socket_cannot_hold_a_call(make: Make, tmp_path: Path) -> None:
    with ScriptedServer(unix=str(tmp_path / "s")) as local:
        local.on(PATH, drip(b"HTTP/1.1 200 OK\r\n", b"X-Filler: 1\r\n"))
        assert "in time" in failure(make(local), SHORT)


def test_a_unix_socket_redirects_nowhere_else(make: Make, tmp_path: Path) -> None:
    with ScriptedServer(unix=str(tmp_path / "s")) as local, ScriptedServer() as other:
        local.on(PATH, redirect(f"{other.url}{PATH}"))
        assert "no other server" in failure(make(local))
    assert other.connections == 0


def test_a_unix_socket_that_is_not_there_says_so(make: Make, tmp_path: Path) -> None:
    assert "check VAULT_ADDR" in failure(make(f"unix://{tmp_path}/gone"))


def test_a_unix_socket_that_nobody_listens_on_says_so(make: Make, tmp_path: Path) -> None:
    with ScriptedServer(unix=str(tmp_path / "s")) as gone:
        pass
    assert "refuses the connection" in failure(make(gone))


def test_a_refused_connection_says_to_check_the_address_and_its_port(make: Make) -> None:
    with ScriptedServer() as gone:
        pass
    message = failure(make(gone))
    assert gone.url in message
    assert "refuses the connection; check VAULT_ADDR and its port" in message


def test_a_name_that_does_not_resolve_says_so(make: Make) -> None:
    message = failure(make("http://vault.invalid:8200"))
    assert "does not resolve" in message
    assert "DNS" in message


def test_an_address_of_a_name_that_does_not_answer_leaves_time_for_the_next(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on(PATH, answer({"ok": 1}))
    with contextlib.ExitStack() as opened:
        # A listener that accepts nobody, with its queue full: to connect there takes for ever.
        deaf = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        addresses = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
            for port in (deaf.getsockname()[1], server.port)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: addresses)
        assert ask(make("http://vault.example:8200"), 1.0).body == {"ok": 1}
        del addresses[1]
        assert "in time" in failure(make("http://vault.example:8200"), SHORT)


def test_a_host_that_no_name_can_be_is_an_error_of_ours(make: Make) -> None:
    assert "check" in failure(make(f"http://{'a' * 70}.invalid:8200"))


@pytest.mark.parametrize("token", ["line\nbreak", "schlüssel-€"])
def test_a_token_that_no_header_can_hold_is_an_error_of_ours_without_it(
    server: ScriptedServer, make: Make, token: str
) -> None:
    with pytest.raises(VaultUnavailable) as caught:
        make(server).request("any", "GET", PATH, timeout=LONG, token=token)
    bare(caught.value)
    assert token not in repr(caught.value)
    assert server.requests == []
