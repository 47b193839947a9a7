"""TLS: whom the transport trusts, what it shows, and what the message says to check where that fails."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.calling import LONG, PATH, TOKEN, Make, ask, failure, transports
from tests.certificates import Authority, Pair
from tests.scripted import ScriptedServer, answer, page, tunnel


@pytest.fixture
def make() -> Iterator[Make]:
    with transports() as make:
        yield make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def other(folder: Path) -> Authority:
    return Authority(folder, "other")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


@pytest.fixture
def server(pair: Pair) -> Iterator[ScriptedServer]:
    with ScriptedServer(tls=pair) as server:
        server.on(PATH, answer({"ok": 1}))
        yield server


def test_a_certificate_of_the_authority_in_the_settings_is_trusted(
    server: ScriptedServer, make: Make, authority: Authority
) -> None:
    transport = make(server, cacert=authority.path)
    assert ask(transport).body == {"ok": 1}
    assert ask(transport).body == {"ok": 1}
    assert server.connections == 1


def test_a_folder_of_authorities_will_do(server: ScriptedServer, make: Make, authority: Authority) -> None:
    folder = Path(authority.path).parent / "capath"
    folder.mkdir()
    hashed = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", authority.path], check=True, capture_output=True, text=True
    ).stdout.strip()
    shutil.copy(authority.path, folder / f"{hashed}.0")
    assert ask(make(server, capath=str(folder))).body == {"ok": 1}


def test_an_unknown_authority_is_refused_before_the_token_is_sent(
    server: ScriptedServer, make: Make, other: Authority
) -> None:
    assert "set VAULT_CACERT" in failure(make(server, cacert=other.path))
    assert server.requests == []


def test_without_an_authority_in_the_settings_a_private_one_is_not_trusted(server: ScriptedServer, make: Make) -> None:
    assert "signed by nobody we trust" in failure(make(server))
    assert server.requests == []


def test_the_authorities_that_requests_brings_are_not_mixed_with_those_of_the_settings(
    server: ScriptedServer, make: Make, authority: Authority, other: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", authority.path)
    monkeypatch.setattr("requests.utils.DEFAULT_CA_BUNDLE_PATH", authority.path)
    assert "set VAULT_CACERT" in failure(make(server, cacert=other.path))
    assert ask(make(server)).body == {"ok": 1}  # they serve where the settings name none


def test_an_authority_from_the_environment_of_requests_is_not_trusted(
    server: ScriptedServer, make: Make, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority.path)
    monkeypatch.setenv("CURL_CA_BUNDLE", authority.path)
    assert "signed by nobody we trust" in failure(make(server))


def test_a_certificate_for_another_name_is_refused_until_the_settings_name_it(make: Make, authority: Authority) -> None:
    with ScriptedServer(tls=authority.issue("named", hosts=["vault.example.org"])) as server:
        server.on(PATH, answer({"ok": 1}))
        message = failure(make(server, cacert=authority.path))
        assert "another name" in message
        assert "VAULT_TLS_SERVER_NAME" in message
        assert server.requests == []
        transport = make(server, cacert=authority.path, tls_server_name="vault.example.org")
        assert ask(transport).body == {"ok": 1}
        assert "another name" in failure(make(server, cacert=authority.path, tls_server_name="vault.example.com"))


def test_an_expired_certificate_is_named_so(make: Make, authority: Authority) -> None:
    with ScriptedServer(tls=authority.issue("expired", expired=True)) as server:
        assert "has expired; renew it" in failure(make(server, cacert=authority.path))
        assert server.requests == []


def test_without_verification_any_certificate_will_do_and_nothing_warns(make: Make, other: Authority) -> None:
    with ScriptedServer(tls=other.issue("anyone", hosts=["elsewhere.example"], expired=True)) as server:
        server.on(PATH, answer({"ok": 1}))
        assert ask(make(server, skip_verify=True)).body == {"ok": 1}


# -- the client's certificate


@pytest.fixture
def mutual(pair: Pair, authority: Authority) -> Iterator[ScriptedServer]:
    with ScriptedServer(tls=pair, client_authority=authority.path) as server:
        server.on(PATH, answer({"ok": 1}))
        yield server


def test_a_client_certificate_of_the_right_authority_is_shown(
    mutual: ScriptedServer, make: Make, authority: Authority
) -> None:
    client = authority.issue("client")
    transport = make(mutual, cacert=authority.path, client_cert=client.cert, client_key=client.key)
    assert ask(transport).body == {"ok": 1}


def test_certificate_and_key_may_be_one_file(mutual: ScriptedServer, make: Make, authority: Authority) -> None:
    client = authority.issue("joined")
    both = Path(client.cert)
    both.write_bytes(both.read_bytes() + Path(client.key).read_bytes())
    assert ask(make(mutual, cacert=authority.path, client_cert=client.cert)).body == {"ok": 1}


def test_a_missing_client_certificate_is_what_the_message_names(
    mutual: ScriptedServer, make: Make, authority: Authority
) -> None:
    message = failure(make(mutual, cacert=authority.path))
    assert "VAULT_CLIENT_CERT" in message
    assert mutual.requests == []


def test_a_client_certificate_that_the_server_does_not_trust_is_what_the_message_names(
    mutual: ScriptedServer, make: Make, authority: Authority, other: Authority
) -> None:
    client = other.issue("stranger")
    message = failure(make(mutual, cacert=authority.path, client_cert=client.cert, client_key=client.key))
    assert "client certificate that it trusts" in message
    assert mutual.requests == []


def test_a_key_of_another_certificate_says_which_files_to_check(
    mutual: ScriptedServer, make: Make, authority: Authority
) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    message = failure(make(mutual, cacert=authority.path, client_cert=one.cert, client_key=two.key))
    assert "do not hold what they should; check VAULT_CACERT" in message
    assert "VAULT_CLIENT_KEY" in message


def test_an_encrypted_key_is_an_error_and_no_question_at_the_terminal(
    mutual: ScriptedServer, make: Make, authority: Authority
) -> None:
    client = authority.issue("locked", password=b"pass phrase")
    message = failure(make(mutual, cacert=authority.path, client_cert=client.cert, client_key=client.key))
    assert "do not hold what they should; check VAULT_CACERT" in message
    assert "VAULT_CLIENT_KEY" in message


# -- files


@pytest.mark.parametrize("content", ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_of_authorities_that_holds_none_says_which_files_to_check(
    server: ScriptedServer, make: Make, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(content, encoding="ascii")
    assert "check VAULT_CACERT" in failure(make(server, cacert=str(file)))


def test_a_file_of_authorities_that_has_gone_says_which_files_to_check(
    server: ScriptedServer, make: Make, authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    shutil.copy(authority.path, file)
    transport = make(server, cacert=str(file))
    file.unlink()
    message = failure(transport)
    assert "cannot be opened" in message
    assert "VAULT_CACERT" in message


def replace(source: str, target: Path) -> None:
    """Put the content of *source* in the place of *target* in one step, as a mounted secret changes."""
    copy = target.with_suffix(".new")
    shutil.copy(source, copy)
    os.replace(copy, target)


def test_a_file_of_authorities_that_is_replaced_is_picked_up(
    make: Make, authority: Authority, other: Authority, tmp_path: Path
) -> None:
    now = [0.0]
    file = tmp_path / "ca.pem"
    shutil.copy(other.path, file)
    with ScriptedServer(tls=authority.issue("rotated")) as server:
        server.on(PATH, answer({"ok": 1}))
        transport = make(server, cacert=str(file), clock=lambda: now[0])
        assert "VAULT_CACERT" in failure(transport)
        replace(authority.path, file)
        now[0] += 2.0
        assert ask(transport).body == {"ok": 1}
        server.show(other.issue("rotated-again"))
        replace(other.path, file)
        now[0] += 2.0
        assert ask(transport).body == {"ok": 1}
        assert server.connections == 3  # a connection from before the change is not used again


def test_a_client_certificate_that_is_replaced_is_shown(
    mutual: ScriptedServer, make: Make, authority: Authority, other: Authority, tmp_path: Path
) -> None:
    now = [0.0]
    wrong, right = other.issue("wrong"), authority.issue("right")
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    shutil.copy(wrong.cert, cert)
    shutil.copy(wrong.key, key)
    transport = make(mutual, cacert=authority.path, client_cert=str(cert), client_key=str(key), clock=lambda: now[0])
    assert "VAULT_CLIENT_CERT" in failure(transport)
    replace(right.cert, cert)
    replace(right.key, key)
    now[0] += 2.0
    assert ask(transport).body == {"ok": 1}


def test_a_file_that_is_half_replaced_leaves_what_was_loaded_before(
    server: ScriptedServer, make: Make, authority: Authority, tmp_path: Path
) -> None:
    now = [0.0]
    file = tmp_path / "ca.pem"
    shutil.copy(authority.path, file)
    transport = make(server, cacert=str(file), clock=lambda: now[0])
    ask(transport)
    for half in ("-----BEGIN CERTIF", ""):
        file.write_text(half, encoding="ascii")
        now[0] += 2.0
        assert ask(transport).body == {"ok": 1}
    file.unlink()
    now[0] += 2.0
    assert ask(transport).body == {"ok": 1}
    assert server.connections == 1


# -- old versions


def _offers_only(server: ScriptedServer, version: ssl.TLSVersion) -> None:
    """Let *server* speak *version* alone, whatever this machine's OpenSSL thinks of it."""
    context = server._context
    assert context is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("DEFAULT:@SECLEVEL=0")


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose OpenSSL would take the old versions: what refuses them then is ours alone."""
    made = ssl.create_default_context

    def lenient(**options: Any) -> ssl.SSLContext:
        context = made(**options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        return context

    monkeypatch.setattr(ssl, "create_default_context", lenient)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=["TLS 1.0", "TLS 1.1"])
def test_a_server_with_nothing_newer_than_tls_1_1_is_refused_before_the_token_is_sent(
    server: ScriptedServer, make: Make, authority: Authority, version: ssl.TLSVersion
) -> None:
    _offers_only(server, version)
    message = failure(make(server, cacert=authority.path))
    assert "speak TLS 1.2 or newer" in message
    assert server.requests == []


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def test_a_server_with_tls_1_2_or_newer_is_taken(
    server: ScriptedServer, make: Make, authority: Authority, version: ssl.TLSVersion
) -> None:
    _offers_only(server, version)
    assert ask(make(server, cacert=authority.path)).body == {"ok": 1}


@pytest.mark.usefixtures("lenient")
def test_old_versions_are_refused_without_verification_too(server: ScriptedServer, make: Make) -> None:
    _offers_only(server, ssl.TLSVersion.TLSv1_1)
    assert "speak TLS 1.2 or newer" in failure(make(server, skip_verify=True))
    assert server.requests == []


# -- the wrong protocol, and proxies


def test_plain_http_to_a_tls_port_says_to_write_https(server: ScriptedServer, make: Make) -> None:
    message = failure(make(server.url.replace("https:", "http:")))
    assert "speaks TLS; write VAULT_ADDR with https://" in message


def test_https_to_a_plain_port_says_to_write_http(make: Make) -> None:
    with ScriptedServer() as plain:
        message = failure(make(plain.url.replace("http:", "https:")))
        assert "does not speak TLS; write VAULT_ADDR with http://" in message
        assert plain.requests == []


def test_a_redirect_from_https_to_http_is_refused(server: ScriptedServer, make: Make, authority: Authority) -> None:
    server.on(PATH, page(b"", 307, {"Location": f"http://127.0.0.1:{server.port}{PATH}"}))
    assert "no other server" in failure(make(server, cacert=authority.path))


def test_through_a_proxy_the_server_is_verified_and_the_proxy_hears_no_token(
    server: ScriptedServer, make: Make, authority: Authority, other: Authority
) -> None:
    with ScriptedServer() as proxy:
        proxy.on("*", tunnel)
        assert ask(make(server, cacert=authority.path, proxy_addr=proxy.url)).body == {"ok": 1}
        assert "VAULT_CACERT" in failure(make(server, cacert=other.path, proxy_addr=proxy.url))
        for request in proxy.requests:
            assert request.method == "CONNECT"
            assert TOKEN not in repr(request)
    assert server.requests[0].headers["x-vault-token"] == TOKEN


def test_a_proxy_that_permits_no_tunnel_is_what_the_message_names(
    server: ScriptedServer, make: Make, authority: Authority
) -> None:
    with ScriptedServer() as proxy:
        proxy.on("*", answer({}, 403))
        assert "VAULT_PROXY_ADDR" in failure(make(server, cacert=authority.path, proxy_addr=proxy.url), LONG)
    assert server.connections == 0
