"""SecretConfig: what the environment and keywords come to, and what is said about those that are wrong."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vault_middleware.config import VARIABLES, SecretConfig
from vault_middleware.errors import ConfigurationError, VaultMiddlewareError

CANARY = "c4n4ry-s3cr3t"


def wrong(environ: Mapping[str, str] | None = None, /, **keywords: Any) -> str:
    """The message about wrong settings, from the environment or as keywords."""
    with pytest.raises(ConfigurationError) as caught:
        SecretConfig(**keywords) if environ is None else SecretConfig.from_env(environ)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return str(caught.value)


# -- defaults and the declaration


def test_an_empty_environment_gives_the_defaults_of_the_service() -> None:
    config = SecretConfig.from_env({})
    assert config == SecretConfig()
    assert {each.name: getattr(config, each.name) for each in dataclasses.fields(config)} == {
        "vault_addr": "http://vault.lotabots.svc:8200",
        "vault_role": "api-gateway",
        "namespace": "lotabots",
        "auth_method": "kubernetes",
        "auth_mount": "kubernetes",
        "auth_namespace": None,
        "kubernetes_token_path": "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "jwt_path": None,
        "role_id": None,
        "secret_id": None,
        "secret_id_file": None,
        "token": None,
        "token_file": None,
        "cacert": None,
        "capath": None,
        "client_cert": None,
        "client_key": None,
        "tls_server_name": None,
        "skip_verify": False,
        "client_timeout": 5.0,
        "request_timeout": 10.0,
        "max_retries": 2,
        "rate_limit": None,
        "proxy_addr": None,
        "kv_version": None,
        "cache_ttl": 300.0,
        "cache_negative_ttl": 60.0,
        "cache_stale_ttl": 3600.0,
        "cache_max_entries": 1024,
        "prefetch": (),
        "startup": "eager",
        "startup_timeout": 30.0,
        "max_leases": 256,
        "lease_min_validity": 1.0,
        "lease_idle_ttl": 0.0,
        "shutdown_timeout": 5.0,
        "audit_log": "stderr",
        "audit_mode": "strict",
        "allowed_paths": (),
    }


def test_every_field_has_one_documented_variable() -> None:
    assert [variable.field for variable in VARIABLES] == [field.name for field in dataclasses.fields(SecretConfig)]
    names = [name for variable in VARIABLES for name in (variable.name, variable.also) if name]
    assert len(names) == len(set(names))
    assert all(name.startswith("VAULT_") and name.isupper() for name in names)
    assert all(variable.meaning and not variable.meaning.endswith(".") for variable in VARIABLES)
    assert {variable.name for variable in VARIABLES if variable.secret} == {
        "VAULT_ROLE_ID",
        "VAULT_SECRET_ID",
        "VAULT_TOKEN",
    }


def test_the_names_that_are_read_are_these() -> None:
    assert {name for variable in VARIABLES for name in (variable.name, variable.also) if name} == {
        "VAULT_ADDR", "VAULT_ROLE", "VAULT_NAMESPACE", "VAULT_AUTH_METHOD",
        "VAULT_AUTH_MOUNT", "VAULT_AUTH_NAMESPACE", "VAULT_KUBERNETES_TOKEN_PATH", "VAULT_JWT_PATH",
        "VAULT_ROLE_ID", "VAULT_SECRET_ID", "VAULT_SECRET_ID_FILE", "VAULT_TOKEN",
        "VAULT_TOKEN_FILE", "VAULT_CACERT", "VAULT_CAPATH", "VAULT_CLIENT_CERT",
        "VAULT_CLIENT_KEY", "VAULT_TLS_SERVER_NAME", "VAULT_SKIP_VERIFY", "VAULT_CLIENT_TIMEOUT",
        "VAULT_REQUEST_TIMEOUT", "VAULT_MAX_RETRIES", "VAULT_RATE_LIMIT", "VAULT_PROXY_ADDR",
        "VAULT_HTTP_PROXY", "VAULT_KV_VERSION", "VAULT_CACHE_TTL", "VAULT_CACHE_NEGATIVE_TTL",
        "VAULT_CACHE_STALE_TTL", "VAULT_CACHE_MAX_ENTRIES", "VAULT_PREFETCH", "VAULT_STARTUP",
        "VAULT_STARTUP_TIMEOUT", "VAULT_MAX_LEASES", "VAULT_LEASE_MIN_VALIDITY", "VAULT_LEASE_IDLE_TTL",
        "VAULT_SHUTDOWN_TIMEOUT", "VAULT_AUDIT_LOG", "VAULT_AUDIT_MODE", "VAULT_ALLOWED_PATHS",
    }  # fmt: skip


@pytest.mark.parametrize("variable", [v for v in VARIABLES if " " not in v.default], ids=lambda v: v.name)
def test_the_default_that_is_documented_is_the_default_that_is_used(variable: Any) -> None:
    if variable.default and variable.default != "all":
        assert variable.parse(variable.default) == getattr(SecretConfig(), variable.field)
    else:
        assert getattr(SecretConfig(), variable.field) in (None, (), "")


def test_the_settings_can_be_given_as_keywords() -> None:
    config = SecretConfig(
        vault_addr="https://vault.example.org:8200",
        vault_role="edge",
        namespace="team/project/",
        client_timeout=2,
        cache_ttl="1h30m",  # type: ignore[arg-type]
        prefetch=["a/b", "dynamic:database/creds/app"],  # type: ignore[arg-type]
        allowed_paths=["a/*", "database/*"],  # type: ignore[arg-type]
        rate_limit="10",  # type: ignore[arg-type]
        skip_verify="TRUE",  # type: ignore[arg-type]
        kv_version="2",  # type: ignore[arg-type]
        kubernetes_token_path=Path("/run/token"),  # type: ignore[arg-type]
    )
    assert config.namespace == "team/project"
    assert (config.client_timeout, config.cache_ttl) == (2.0, 5400.0)
    assert isinstance(config.client_timeout, float)
    assert config.prefetch == ("a/b", "database/creds/app")
    assert config.allowed_paths == ("a/*", "database/*")
    assert config.rate_limit == (10.0, 10)
    assert config.skip_verify is True
    assert config.kv_version == 2
    assert config.kubernetes_token_path == "/run/token"


def test_a_setting_cannot_be_given_by_position_nor_changed_afterwards() -> None:
    with pytest.raises(TypeError):
        SecretConfig("http://127.0.0.1:8200")  # type: ignore[call-arg]
    config = SecretConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.namespace = "other"  # type: ignore[misc]


def test_a_copy_with_one_change_is_checked_again() -> None:
    config = dataclasses.replace(SecretConfig(token=CANARY), namespace="")
    assert config.namespace == ""
    assert config.token == CANARY
    with pytest.raises(ConfigurationError, match="VAULT_CACHE_TTL"):
        dataclasses.replace(config, cache_ttl=-1.0)


# -- the environment


def test_the_environment_is_read_whole() -> None:
    config = SecretConfig.from_env(
        {
            "VAULT_ADDR": "https://[::1]:8200/",
            "VAULT_ROLE": "edge",
            "VAULT_NAMESPACE": "team",
            "VAULT_AUTH_NAMESPACE": "other/",
            "VAULT_AUTH_METHOD": "AppRole",
            "VAULT_AUTH_MOUNT": "approle/prod/",
            "VAULT_ROLE_ID": CANARY,
            "VAULT_SECRET_ID_FILE": "/not/there/yet",
            "VAULT_SKIP_VERIFY": "1",
            "VAULT_CLIENT_TIMEOUT": "250ms",
            "VAULT_REQUEST_TIMEOUT": "90",
            "VAULT_MAX_RETRIES": "0",
            "VAULT_RATE_LIMIT": "0.5:3",
            "VAULT_KV_VERSION": "1",
            "VAULT_CACHE_MAX_ENTRIES": "1",
            "VAULT_PREFETCH": "a/b , dynamic:database/creds/app,, a/b",
            "VAULT_STARTUP": "LAZY",
            "VAULT_AUDIT_LOG": "OFF",
            "VAULT_AUDIT_MODE": "buffered",
            "VAULT_ALLOWED_PATHS": "a/*,database/creds/*",
        }
    )
    assert config.vault_addr == "https://[::1]:8200"
    assert (config.vault_role, config.namespace, config.auth_namespace) == ("edge", "team", "other")
    assert (config.auth_method, config.auth_mount) == ("approle", "approle/prod")
    assert config.role_id == CANARY
    assert config.secret_id_file == "/not/there/yet"
    assert config.skip_verify
    assert (config.client_timeout, config.request_timeout, config.max_retries) == (0.25, 90.0, 0)
    assert config.rate_limit == (0.5, 3)
    assert (config.kv_version, config.cache_max_entries) == (1, 1)
    assert config.prefetch == ("a/b", "database/creds/app")
    assert (config.startup, config.audit_log, config.audit_mode) == ("lazy", "off", "buffered")
    assert config.allowed_paths == ("a/*", "database/creds/*")


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("VAULT_ROLE", "from-the-process")
    assert SecretConfig.from_env().vault_role == "from-the-process"


def test_what_kubernetes_injects_for_a_service_named_vault_is_ignored() -> None:
    injected = {
        "VAULT_PORT": "tcp://10.0.0.1:8200",
        "VAULT_PORT_8200_TCP": "tcp://10.0.0.1:8200",
        "VAULT_SERVICE_HOST": "10.0.0.1",
        "VAULT_SERVICE_PORT": "8200",
        "VAULT_FORMAT": "json",
    }
    assert SecretConfig.from_env(injected) == SecretConfig()


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_an_empty_variable_counts_as_not_set_but_for_the_namespaces(blank: str) -> None:
    environ = {name: blank for variable in VARIABLES for name in (variable.name, variable.also) if name}
    assert SecretConfig.from_env(environ) == SecretConfig(namespace="", auth_namespace="")


def test_the_newline_that_an_echo_has_left_does_no_harm() -> None:
    config = SecretConfig.from_env({"VAULT_TOKEN": f"{CANARY}\n", "VAULT_ADDR": " https://vault:8200\n"})
    assert (config.token, config.vault_addr) == (CANARY, "https://vault:8200")


@pytest.mark.parametrize(
    ("environ", "method"),
    [
        ({}, "kubernetes"),
        ({"VAULT_TOKEN": CANARY}, "token"),
        ({"VAULT_TOKEN_FILE": "/run/token"}, "token"),
        ({"VAULT_TOKEN": CANARY, "VAULT_AUTH_METHOD": "kubernetes"}, "kubernetes"),
        ({"VAULT_AUTH_METHOD": "proxy"}, "proxy"),
        ({"VAULT_AUTH_METHOD": "jwt", "VAULT_JWT_PATH": "/run/jwt"}, "jwt"),
        ({"VAULT_AUTH_METHOD": "approle", "VAULT_ROLE_ID": "r"}, "approle"),
    ],
)
def test_the_log_in_is_kubernetes_unless_a_token_is_set_or_a_method_is_named(
    environ: dict[str, str], method: str
) -> None:
    config = SecretConfig.from_env(environ)
    assert config.auth_method == method
    assert config.auth_mount == method


def test_the_proxy_is_read_from_either_name_and_the_first_one_wins() -> None:
    assert SecretConfig.from_env({"VAULT_HTTP_PROXY": "http://b:1"}).proxy_addr == "http://b:1"
    both = {"VAULT_PROXY_ADDR": "http://a:1", "VAULT_HTTP_PROXY": "http://b:1"}
    assert SecretConfig.from_env(both).proxy_addr == "http://a:1"
    assert SecretConfig.from_env({**both, "VAULT_PROXY_ADDR": ""}).proxy_addr == "http://b:1"
    assert "VAULT_HTTP_PROXY: " in wrong({"VAULT_HTTP_PROXY": "socks"})


# -- addresses


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
        ("HTTPS://Vault.Example.org", "https://Vault.Example.org"),
        ("https://vault.svc.:8200/", "https://vault.svc.:8200"),
        ("http://my_vault:8200", "http://my_vault:8200"),
        ("http://[fd00::1]:8200", "http://[fd00::1]:8200"),
        ("https://vault:", "https://vault"),
        ("unix:///run/vault/proxy.sock", "unix:///run/vault/proxy.sock"),
        ("UNIX:///run/Vault.sock", "unix:///run/Vault.sock"),
    ],
)
def test_an_address_is_http_https_or_a_unix_socket(given: str, used: str) -> None:
    assert SecretConfig(vault_addr=given).vault_addr == used


@pytest.mark.parametrize(
    "given",
    [
        "vault:8200",
        "//vault:8200",
        "ftp://vault",
        "http:/vault",
        "http://",
        "http://:8200",
        "http://vault:0",
        "http://vault:65536",
        "http://vault:port",
        "http://vault:80:80",
        "http://vault:+80",
        "http://vault/v1",
        "http://vault//",
        "http://vault?x=1",
        "http://vault?",
        "http://vault#",
        "http://va ult",
        "http://va\tult",
        "http://vault\\@evil",
        "http://väult",
        "http://-vault",
        "http://a..b",
        "http://%61",
        "http://::1:8200",
        "http://[::1",
        "http://[::1]x",
        "http://[v1.x]",
        "http://[fe80::1%25eth0]",
        "http://a" + "b" * 300,
        "unix://",
        "unix://run/vault.sock",
        "unix:/run/vault.sock",
        "unix:///run/\x00",
    ],
)
def test_any_other_address_is_refused(given: str) -> None:
    assert "VAULT_ADDR: " in wrong({"VAULT_ADDR": given})


@pytest.mark.parametrize(
    "given",
    [
        f"https://user:{CANARY}@vault:8200",
        f"https://{CANARY}@vault",
        f"https://user:{CANARY}@",
        f"https://user:{CANARY}/x@vault",
        f"user:{CANARY}@vault",
        f"https://vault/?token={CANARY}",
        f"https://vault:{CANARY}",
        CANARY,
    ],
)
@pytest.mark.parametrize("name", ["VAULT_ADDR", "VAULT_PROXY_ADDR", "VAULT_HTTP_PROXY"])
def test_an_address_that_may_hold_a_password_is_never_shown(name: str, given: str) -> None:
    shown, proxy = outcome({name: given})
    assert CANARY not in shown
    assert proxy in (None, given)
    assert name != "VAULT_ADDR" or "VAULT_ADDR: " in shown


def outcome(environ: Mapping[str, str]) -> tuple[str, str | None]:
    """What is printed of the settings or of the error about them, and the proxy's address."""
    try:
        config = SecretConfig.from_env(environ)
    except ConfigurationError as error:
        return repr(error) + "".join(traceback.TracebackException.from_exception(error).format()), None
    return repr(config), config.proxy_addr


# -- numbers, words


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("0", 0.0),
        ("90", 90.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("90s", 90.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("1m250ms", 60.25),
        ("5us", 5e-6),
        ("5µs", 5e-6),
        ("7d", 604800.0),
        (" 5m\n", 300.0),
        (7, 7.0),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_seconds_or_in_vaults_form(given: Any, seconds: float) -> None:
    config = SecretConfig(cache_stale_ttl=given)
    assert config.cache_stale_ttl == pytest.approx(seconds)
    assert isinstance(config.cache_stale_ttl, float)


@pytest.mark.parametrize(
    "given",
    [
        "-1", "-5m", "--5", "5 m", "5 minutes", "m", "5M", "5m30", "1h 30m", "nan", "inf", "1e3", "1_000", "٣", "5m-1s",
        "11y", "4000d", "9" * 400, "0x10", ".", True, None, [], float("nan"), float("inf"), -1,
    ],
)  # fmt: skip
def test_any_other_duration_is_refused(given: Any) -> None:
    message = wrong(cache_stale_ttl=given)
    assert "VAULT_CACHE_STALE_TTL (cache_stale_ttl): " in message
    assert "1h30m" in message
    assert len(message) < 300


def test_a_number_beyond_all_bounds_is_refused_in_our_own_words() -> None:
    for huge in (10**5000, -(10**5000)):
        assert "a number of many digits is " in wrong(cache_stale_ttl=huge)
        assert "a number of many digits is no whole number" in wrong(max_leases=huge)
        assert "a number of many digits is no rate limit" in wrong(rate_limit=huge)


@pytest.mark.parametrize("field", ["client_timeout", "request_timeout", "cache_ttl", "startup_timeout"])
def test_a_time_in_which_something_must_happen_cannot_be_nothing(field: str) -> None:
    assert f"VAULT_{field.upper()}" in wrong(**{field: 0})
    assert f"VAULT_{field.upper()}" in wrong({f"VAULT_{field.upper()}": "0s"})


@pytest.mark.parametrize("word", ["1", "t", "T", "true", "TRUE", "True", "tRuE", True])
def test_a_switch_is_on_as_in_go(word: Any) -> None:
    assert SecretConfig(skip_verify=word).skip_verify is True


@pytest.mark.parametrize("word", ["0", "f", "F", "false", "FALSE", "False", False])
def test_a_switch_is_off_as_in_go(word: Any) -> None:
    assert SecretConfig(skip_verify=word).skip_verify is False


@pytest.mark.parametrize("word", ["yes", "on", "2", "truee", 1, None])
def test_any_other_switch_is_refused(word: Any) -> None:
    assert "VAULT_SKIP_VERIFY" in wrong(skip_verify=word)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_retries", ["-1", "1.0", "x", "101", 2.0, True, "٣", "1" * 30]),
        ("cache_max_entries", ["0", "-5", "1e3", 10**9]),
        ("max_leases", ["0", "many"]),
        ("kv_version", ["0", "3", "v", "v3", "1.0", 1.0, True]),
        ("startup", ["now", "eager lazy", 1]),
        ("audit_mode", ["loose"]),
        ("auth_method", ["ldap", "userpass"]),
        ("rate_limit", ["x", "0", "0:5", "-1", "5:0", "5:-1", "5:1.5", "5:", ":5", "1e3", "nan", (5,), (5, 0), (5, 1.5),
                        (0, 5), (float("nan"), 1), (5, True), True, "9" * 400]),
        ("vault_role", ["", "a\x00b", "a\nb", 5, None]),
        ("tls_server_name", ["a b", "-", "a/b"]),
        ("prefetch", ["/a", "a//b", "a/../b", "a/./b", "a?b", "a#b", "a%2e", "a\\b", "a/", "dynamic:", "a\x7f", 5, [5],
                      ["a", ""], [" "]]),
        ("allowed_paths", ["/a/*", "a\x00", 5, [5], [""]]),
        ("namespace", ["/a", "/", "a//b", "..", "a/..", ".", "a b", "a?", "%61", "a\\b", "ä", "sys", "auth/x", "a\n/b", 5]),
        ("auth_namespace", ["/a", "..", "a b"]),
        ("auth_mount", ["/kubernetes", "auth/kubernetes", "a//b", "../sys", "a b", "a%2fb", "a?b"]),
        ("kubernetes_token_path", ["", "a\x00", 5, None]),
    ],
)  # fmt: skip
def test_what_is_not_accepted_is_refused_with_the_variables_name(field: str, values: list[Any]) -> None:
    name = field.upper() if field.startswith("vault_") else f"VAULT_{field.upper()}"
    for value in values:
        assert f"  {name} ({field}): " in wrong(**{field: value}), value


def test_a_rate_limit_has_the_burst_that_vaults_client_gives_it() -> None:
    assert SecretConfig.from_env({"VAULT_RATE_LIMIT": "10.7"}).rate_limit == (10.7, 10)
    assert SecretConfig.from_env({"VAULT_RATE_LIMIT": "0.2"}).rate_limit == (0.2, 1)
    assert SecretConfig.from_env({"VAULT_RATE_LIMIT": "10:40"}).rate_limit == (10.0, 40)
    assert SecretConfig(rate_limit=5).rate_limit == (5.0, 5)  # type: ignore[arg-type]
    assert SecretConfig(rate_limit=[5, 9]).rate_limit == (5.0, 9)  # type: ignore[arg-type]


def test_no_namespace_can_be_said_in_three_ways() -> None:
    assert SecretConfig(namespace="").namespace == ""
    assert SecretConfig(namespace=None).namespace == ""  # type: ignore[arg-type]
    assert SecretConfig.from_env({"VAULT_NAMESPACE": ""}).namespace == ""


def test_the_namespace_of_the_log_in_is_found_out_unless_it_is_named() -> None:
    assert SecretConfig().auth_namespace is None
    assert SecretConfig(auth_namespace="").auth_namespace == ""
    assert SecretConfig(auth_namespace="team/").auth_namespace == "team"


# -- what belongs together


@pytest.mark.parametrize(
    ("method", "named"),
    [("jwt", "VAULT_JWT_PATH"), ("approle", "VAULT_ROLE_ID"), ("token", "VAULT_TOKEN")],
)
def test_a_method_without_its_credential_is_refused(method: str, named: str) -> None:
    assert f"  {named}: the method {method} needs it" in wrong({"VAULT_AUTH_METHOD": method})


def test_a_secret_id_may_be_missing_because_a_role_may_do_without() -> None:
    assert SecretConfig(auth_method="approle", role_id="r").secret_id is None


def test_a_client_key_needs_its_certificate(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch()
    assert "  VAULT_CLIENT_CERT: VAULT_CLIENT_KEY needs it" in wrong({"VAULT_CLIENT_KEY": str(key)})
    assert SecretConfig(client_cert=str(key)).client_key is None


@pytest.mark.parametrize("name", ["VAULT_CACERT", "VAULT_CAPATH", "VAULT_CLIENT_CERT", "VAULT_CLIENT_KEY"])
def test_a_certificate_that_is_not_there_is_found_at_once(name: str, tmp_path: Path) -> None:
    assert f"  {name}: " in wrong({name: str(tmp_path / "missing")})
    wrong_kind = tmp_path
    if name == "VAULT_CAPATH":
        wrong_kind = tmp_path / "file"
        wrong_kind.touch()
    assert f"  {name}: " in wrong({name: str(wrong_kind)})


def test_certificates_that_are_there_are_taken(tmp_path: Path) -> None:
    pem = tmp_path / "a.pem"
    pem.touch()
    config = SecretConfig.from_env(
        {
            "VAULT_CACERT": str(pem),
            "VAULT_CAPATH": str(tmp_path),
            "VAULT_CLIENT_CERT": str(pem),
            "VAULT_CLIENT_KEY": str(pem),
            "VAULT_TLS_SERVER_NAME": "vault.example.org",
        }
    )
    assert (config.cacert, config.capath, config.client_key) == (str(pem), str(tmp_path), str(pem))


def test_the_files_that_are_read_at_every_log_in_may_come_later() -> None:
    environ = dict.fromkeys(
        ["VAULT_KUBERNETES_TOKEN_PATH", "VAULT_JWT_PATH", "VAULT_SECRET_ID_FILE", "VAULT_TOKEN_FILE"], "/not/there"
    )
    assert SecretConfig.from_env(environ).token_file == "/not/there"


def test_the_audit_log_is_a_known_word_or_a_file_in_a_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("stderr", "stdout", "logging", "off", "./audit.log", str(tmp_path / "audit.log"), "/dev/null"):
        assert SecretConfig.from_env({"VAULT_AUDIT_LOG": word}).audit_log == word
    for word in ("syslog", "audit.log", "-", str(tmp_path), "./", "no/such/folder/audit.log", "a\x00/b"):
        assert "  VAULT_AUDIT_LOG: " in wrong({"VAULT_AUDIT_LOG": word})


def test_a_prefetched_path_must_be_permitted() -> None:
    environ = {"VAULT_PREFETCH": "shared/jwt,api/key", "VAULT_ALLOWED_PATHS": "shared/*"}
    assert "  VAULT_PREFETCH: 'api/key' is not permitted by VAULT_ALLOWED_PATHS" in wrong(environ)
    assert SecretConfig.from_env({**environ, "VAULT_ALLOWED_PATHS": "shared/*,api/*"}).prefetch[1] == "api/key"


def test_a_bad_value_is_not_reported_a_second_time_by_what_hangs_on_it() -> None:
    message = wrong({"VAULT_AUTH_METHOD": "token", "VAULT_TOKEN": "a b"})
    assert message.count("VAULT_TOKEN") == 1
    assert "needs it" not in wrong({"VAULT_AUTH_METHOD": "jtw"})


# -- errors


def test_all_that_is_wrong_is_said_at_once() -> None:
    environ = {
        "VAULT_ADDR": "vault",
        "VAULT_CACHE_TTL": "5 minutes",
        "VAULT_MAX_RETRIES": "two",
        "VAULT_AUTH_METHOD": "jwt",
        "VAULT_AUDIT_LOG": "syslog",
        "VAULT_SKIP_VERIFY": "maybe",
    }
    lines = wrong(environ).splitlines()[1:]
    assert {line.split(":")[0].strip() for line in lines} == (environ.keys() - {"VAULT_AUTH_METHOD"}) | {
        "VAULT_JWT_PATH"
    }


def test_the_error_is_a_value_error_of_the_package_and_can_be_pickled() -> None:
    with pytest.raises(ValueError, match="VAULT_ADDR") as caught:
        SecretConfig(vault_addr="x")
    assert isinstance(caught.value, VaultMiddlewareError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", ["VAULT_TOKEN", "VAULT_SECRET_ID", "VAULT_ROLE_ID"])
def test_a_credential_that_is_wrong_is_not_shown_even_with_its_local_variables(name: str) -> None:
    def start(environ: list[dict[str, str]]) -> None:
        SecretConfig.from_env(environ.pop())

    with pytest.raises(ConfigurationError, match=name) as caught:
        start([{name: f"{CANARY}\x00{CANARY}", "VAULT_CACHE_TTL": "x"}])
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in shown.stack if frame.filename.endswith("config.py")]
    assert ours
    assert not any(CANARY in text for frame in ours for text in (frame.locals or {}).values())
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("value", [5, [CANARY], {"x": CANARY}, CANARY.encode()])
@pytest.mark.parametrize(
    "field", ["token", "secret_id", "role_id", "vault_addr", "proxy_addr", "namespace", "cache_ttl"]
)
def test_a_value_of_the_wrong_type_is_refused_without_being_shown(field: str, value: object) -> None:
    if (field, value) == ("cache_ttl", 5):
        return
    message = wrong(**{field: value})
    assert field in message
    assert CANARY not in message


# -- what is shown, copied and carried away


def secretive() -> SecretConfig:
    return SecretConfig(
        token=f"{CANARY}-t",
        role_id=f"{CANARY}-r",
        secret_id=f"{CANARY}-s",
        proxy_addr=f"http://user:{CANARY}@proxy:3128",
    )


def test_no_credential_is_printed() -> None:
    config = secretive()
    for shown in (repr(config), str(config), f"{config}", f"{config!r}", f"{[config]}"):
        assert CANARY not in shown
        assert "token='******'" in shown
        assert "proxy_addr='http://******@proxy:3128'" in shown
    assert "token=None" in repr(SecretConfig())


@pytest.mark.parametrize(
    "given",
    [
        {"token": CANARY},
        {"secret_id": CANARY},
        {"role_id": CANARY},
        {"proxy_addr": f"http://u:{CANARY}@p:1"},
    ],
)
def test_settings_with_a_credential_cannot_be_pickled_and_others_can(given: dict[str, Any]) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="credential"):
            pickle.dumps(SecretConfig(**given), protocol)
        if protocol >= 2:
            plain = SecretConfig(namespace="team", cache_ttl=7)
            assert pickle.loads(pickle.dumps(plain, protocol)) == plain


def test_a_copy_of_what_cannot_change_is_the_same_object() -> None:
    config = secretive()
    assert copy.copy(config) is config
    assert copy.deepcopy(config) is config


# -- warnings


@pytest.mark.parametrize(
    "addr",
    [
        "https://vault.example.org",
        "unix:///run/vault.sock",
        "http://localhost:8200",
        "http://LocalHost",
        "http://127.0.0.1:8200",
        "http://127.9.9.9",
        "http://[::1]:8200",
    ],
)
def test_nothing_is_said_about_tls_or_about_what_stays_on_the_host(addr: str) -> None:
    assert SecretConfig(vault_addr=addr).warnings() == []


@pytest.mark.parametrize(
    "addr", ["http://vault.lotabots.svc:8200", "http://10.0.0.1", "http://localhost.example.org", "http://[fd00::1]"]
)
def test_plain_http_to_another_host_is_worth_a_warning_that_says_what_to_do(addr: str) -> None:
    (warning,) = SecretConfig(vault_addr=addr).warnings()
    assert warning.startswith("VAULT_ADDR ")
    assert "use https://" in warning


def test_trusting_any_certificate_is_worth_a_warning_that_says_what_to_do() -> None:
    (warning,) = SecretConfig(vault_addr="https://vault", skip_verify=True).warnings()
    assert warning.startswith("VAULT_SKIP_VERIFY ")
    assert "VAULT_CACERT" in warning
