"""Traversal and injection at a real server: its own audit log says that nothing outside the prefix was asked for."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.certificates import Authority
from tests.scripted import ScriptedServer, answer, redirect
from vault_middleware import RequestSecrets, SecretConfig, SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.errors import InvalidSecretPath, SecretError, SecretNotFound, SecretUnavailable

from ..integration.support import running

TARGET = "api-gateway/api-key"

#: One step up, as it is written to get past a filter.
UPS = [
    *("..", "%2e%2e", "%2E%2E", ".%2e", "%2e.", "%2E.", "%252e%252e", "%25252e%25252e", "%c0%ae%c0%ae", "%e0%80%ae."),
    *(
        "%uff0e%uff0e",
        "%u002e%u002e",
        "..;",
        "..;x=1",
        "..%00",
        "..\x00",
        ".. ",
        " ..",
        "..\t",
        ".\r.",
        ".\n.",
        "...",
        "....",
    ),
    *(
        "\uff0e\uff0e",
        "\u2024\u2024",
        "\u2025",
        "\ufe52\ufe52",
        ".\u200b.",
        ".\u00ad.",
        ".\ufeff.",
        ".\u202e.",
        "..\u2028",
    ),
    *("\udc2e\udc2e", "\udcc0\udcae", "\xc0\xae\xc0\xae", "．．", "..%c0%af", "..%ef%bc%8f", "..%5c", "..\\"),
]
#: What may pass for a slash.
SLASHES = [
    *("/", "//", "/./", "\\", "\\/", "%2f", "%2F", "%252f", "%5c", "%5C", "%c0%af", "%e0%80%af", "%u2215"),
    *("\uff0f", "\u2215", "\u2044", "\u29f8", "\uff3c", "\u2216", "\x2f\x00", "\xc0\xaf", "\udc2f", "\r\n/", ";/"),
]
#: What ends a path, or begins something else.
INJECTIONS = [
    *(
        "?list=true",
        "?help=1",
        "?version=1",
        "%3flist=true",
        "#",
        "#x",
        "%23",
        "&a=b",
        ";a=b",
        "\x00",
        "%00",
        "\x00.json",
    ),
    *("\r\nX-Vault-Token: root", "\nX-Vault-Namespace: root", "\r\n\r\nGET /v1/sys/seal HTTP/1.1\r\nHost: x\r\n\r\n"),
    *(
        "%0d%0aX-Vault-Token:%20root",
        "\u560d\u560aX-Vault-Token:root",
        " HTTP/1.1",
        "\tHTTP/1.1",
        "@evil.example",
        ":8200",
    ),
    *(
        "\u2028x",
        "\x85x",
        "\x7f",
        "\x1b[2J",
        "{{identity}}",
        "${jndi:ldap://x}",
        "'; DROP TABLE x; --",
        "$(id)",
        "`id`",
    ),
    *("*", "+", "**", "~", ".", "a" * 1100, "é" * 600, "/" * 50, "\ud800", "\udfff", "\U000e0001"),
]

TENANTS = [
    *(f"{up}{slash}{TARGET}" for up, slash in itertools.product(UPS, SLASHES)),
    *(f"x{slash}{up}{slash}{up}{slash}{TARGET}" for up, slash in itertools.product(UPS, SLASHES[:12])),
    *(f"jwt{injection}" for injection in INJECTIONS),
    *INJECTIONS,
    *(f"{up}/sys/mounts" for up in UPS),
    *(
        "/api-gateway/api-key",
        "//api-gateway/api-key",
        "http://127.0.0.1/v1/x",
        "\\\\host\\share",
        "C:\\x",
        "file:///etc/passwd",
    ),
]


def asked_of(line: dict[str, Any]) -> str:
    """The full path of a request, as the server understood it."""
    request = line["request"]
    return f"{request.get('namespace', {}).get('path', '')}{request['path']}"


def test_the_traversal_and_injection_list_reaches_nothing_outside_its_prefix(stack: DevStack) -> None:
    with running(stack) as manager, RequestSecrets(manager) as request:
        manager.get_secret("shared/jwt")  # log-in and mount are behind us
        before = len(stack.bao.audit_log())
        refused = 0
        for tenant in TENANTS:
            for getter in (manager.get_secret, request.get_dynamic_secret):
                with pytest.raises(SecretError) as failed:
                    getter(f"shared/{tenant}")
                assert type(failed.value) in (InvalidSecretPath, SecretNotFound), tenant
                refused += type(failed.value) is InvalidSecretPath
        lines = [line for line in stack.bao.audit_log()[before:] if line["type"] == "request"]
        ours = [line for line in lines if "root" not in line["auth"].get("policies", [])]
        for line in ours:
            path = asked_of(line)
            assert path.startswith("lotabots/shared/"), path
            assert ".." not in path.split("/")
            assert line["request"]["operation"] == "read"
            assert not line["request"].get("data")
        # What is harmless below its prefix was asked for, once; the rest was refused before that.
        assert 0 < len(ours) <= len(TENANTS) * 2 - refused
        assert refused > len(TENANTS)


def test_a_hostile_first_segment_reaches_no_path_of_the_servers_own(stack: DevStack) -> None:
    with running(stack) as manager:
        manager.get_secret("shared/jwt")
        before = len(stack.bao.audit_log())
        for first in (
            "sys",
            "SYS",
            "auth",
            "Auth",
            "identity",
            "cubbyhole",
            "s\u0131s",
            "ſys",
            "sys ",
            "sys\u200b",
            "..",
            "%73ys",
        ):
            with pytest.raises(SecretError):
                manager.get_secret(f"{first}/mounts")
        for line in stack.bao.audit_log()[before:]:
            if line["type"] == "request" and "root" not in line["auth"].get("policies", []):
                # The question for the mount, and whether our token is valid, as the answer was 403.
                assert asked_of(line).startswith(
                    ("sys/internal/ui/mounts/lotabots/", "lotabots/auth/token/lookup-self")
                )


# -- redirects, with a whole manager


MOUNT = {"data": {"path": "lotabots/shared/", "type": "kv", "options": {"version": "1"}}}

ENDPOINTS = {
    "log-in": "/v1/auth/kubernetes/login",
    "mount": "/v1/sys/internal/ui/mounts/lotabots/shared/jwt",
    "read": "/v1/lotabots/shared/jwt",
    "health": "/v1/sys/health",
    "namespace": "/v1/lotabots/sys/internal/ui/mounts",
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirecting_server_never_gets_a_credential_to_a_second_host(
    endpoint: str, status: int, tmp_path: Any
) -> None:
    token = tmp_path / "token"
    token.write_text("service.account.token")
    with ScriptedServer() as second, ScriptedServer() as server:
        second.on("*", answer({"auth": {"client_token": "x", "lease_duration": 9}, "data": {"value": "theirs"}}))
        server.on("/v1/lotabots/sys/internal/ui/mounts", answer({"errors": []}, 403))
        server.on("/v1/auth/kubernetes/login", answer({"auth": {"client_token": "ours", "lease_duration": 60}}))
        server.on("/v1/sys/internal/ui/mounts/lotabots/shared/jwt", answer(MOUNT))
        server.on("/v1/lotabots/shared/jwt", answer({"data": {"value": "good"}}))
        server.on("/v1/sys/health", answer({"sealed": False}))
        server.on(ENDPOINTS[endpoint], redirect(f"{second.url}{ENDPOINTS[endpoint]}", status))
        config = SecretConfig(
            vault_addr=server.url,
            startup="lazy",
            audit_log="off",
            kubernetes_token_path=str(token),
            request_timeout=1.0,
        )
        with SecretsManager(config, registry=CollectorRegistry()) as manager:
            if endpoint == "health":
                assert manager.get_secret("shared/jwt")["value"] == "good"
                manager._engine.breaker.suspect()
            else:
                with pytest.raises(SecretUnavailable, match=r"redirects to http://127.0.0.1.*VAULT_ADDR") as failed:
                    manager.get_secret("shared/jwt")
                assert "theirs" not in str(failed.value)
        assert second.connections == 0


def test_https_to_http_is_refused_by_a_whole_manager(tmp_path: Any) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    with ScriptedServer() as plain, ScriptedServer(tls=pair) as server:
        server.on("*", redirect(f"{plain.url}/v1/lotabots/shared/jwt"))
        config = SecretConfig(
            vault_addr=server.url,
            auth_method="token",
            token="t",
            auth_namespace="",
            startup="lazy",
            audit_log="off",
            cacert=str(authority.path),
        )
        with SecretsManager(config, registry=CollectorRegistry()) as manager:
            with pytest.raises(SecretUnavailable, match=r"redirects to http://"):
                asyncio.run(manager.aget_secret("shared/jwt"))
        assert server.requests
        assert server.requests[0].headers["x-vault-token"] == "t"
        assert plain.connections == 0
