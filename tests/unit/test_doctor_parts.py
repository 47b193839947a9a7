"""The pure parts of the doctor and the policy writer: claims, rules, permissions, audit lines, and how findings are shown."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scripted import Reply, ScriptedServer, answer, page, silence
from vault_middleware import SecretConfig
from vault_middleware.cli.checks_kubernetes import api_address, review
from vault_middleware.cli.checks_pod import check_claims, read_claims
from vault_middleware.cli.findings import Findings
from vault_middleware.cli.rules import Place, as_hcl, leased, rules_for
from vault_middleware.cli.wanted import Wanted, from_audit_log, wanted
from vault_middleware.errors import ConfigurationError
from vault_middleware.vault.inspection import Permission
from vault_middleware.vault.paths import Mount

NAMESPACE = Place("lotabots", "lotabots", True)
COMMUNITY = Place("lotabots", "", False)
ROOT_AUTH = Place("lotabots", "", True)

KV2 = Mount("lotabots/api-gateway/", "kv", 2)
KV1 = Mount("lotabots/shared/", "kv", 1)
DATABASE = Mount("lotabots/database/", "database", None)

WANTED: list[tuple[Wanted, Mount | None]] = [
    (Wanted("api-gateway/api-key"), KV2),
    (Wanted("shared/jwt"), KV1),
    (Wanted("database/creds/api-gateway"), DATABASE),
]


def token(claims: object) -> str:
    encoded = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{encoded}.signature"


def paths(place: Place, *, default: bool = True, these: list[tuple[Wanted, Mount | None]] | None = None) -> list[str]:
    return [rule.path for rule in rules_for(WANTED if these is None else these, place, default_policy=default)]


# -- claims


def test_what_a_token_says_of_itself_is_read_and_shown_without_the_token() -> None:
    claims = read_claims(token({"sub": "system:serviceaccount:a:b", "aud": ["vault"], "exp": 200, "iat": 100}))
    assert claims is not None
    assert str(claims) == "system:serviceaccount:a:b, audience vault"
    assert (claims.issued, claims.expires) == (100.0, 200.0)


_CLAIMS = ("sub", "aud", "exp", "iat", "iss")
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(
    st.dictionaries(
        st.sampled_from(_CLAIMS),
        st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
    )
    | _SCALARS
)
def test_claims_of_any_kind_are_read_or_refused(claims: object) -> None:
    found = read_claims(token(claims))
    assert found is None or (str(found).isprintable() and len(str(found)) < 2500)


@given(st.text())
def test_any_text_is_a_token_or_none(text: str) -> None:
    read_claims(text)
    read_claims(f"a.{text}.b")


@pytest.mark.parametrize(
    ("left", "sign"), [(-61, "failed"), (-30, "warning"), (30, "warning"), (61, "ok"), (None, "ok")]
)
def test_a_token_is_judged_with_a_minute_of_leeway(left: float | None, sign: str) -> None:
    claims = read_claims(token({"sub": "x"} if left is None else {"exp": 1000 + left}))
    assert claims is not None
    findings = Findings()
    check_claims(claims, SecretConfig(), findings, now=1000.0)
    assert [each.sign for each in findings.found] == [sign]


# -- rules


def test_a_namespaces_policy_is_relative_to_it() -> None:
    assert paths(NAMESPACE) == [
        "api-gateway/data/api-key",
        "shared/jwt",
        "database/creds/api-gateway",
        "sys/leases/revoke",
    ]


def test_a_roots_policy_reaches_into_the_namespace_for_the_leases_too() -> None:
    assert paths(ROOT_AUTH)[-2:] == ["lotabots/sys/leases/renew", "lotabots/sys/leases/revoke"]
    assert paths(ROOT_AUTH)[0] == "lotabots/api-gateway/data/api-key"


def test_without_namespaces_the_leases_are_the_servers() -> None:
    assert paths(COMMUNITY)[-1:] == ["sys/leases/revoke"]
    assert paths(COMMUNITY)[1] == "lotabots/shared/jwt"


def test_without_the_default_policy_its_calls_are_there() -> None:
    own = ["auth/token/lookup-self", "auth/token/renew-self", "auth/token/revoke-self"]
    assert paths(COMMUNITY, default=False)[-5:] == ["sys/leases/renew", "sys/leases/revoke", *own]
    assert paths(ROOT_AUTH, default=False)[-3:] == own


def test_a_policy_of_a_parent_namespace_begins_with_the_child() -> None:
    place = Place("org/team", "org", True)
    mount = Mount("org/team/kv/", "kv", 2)
    assert paths(place, these=[(Wanted("kv/a"), mount), (Wanted("database/creds/x", dynamic=True), None)]) == [
        "team/kv/data/a",
        "team/database/creds/x",
        "team/sys/leases/renew",
        "team/sys/leases/revoke",
    ]


def test_without_leases_there_is_no_rule_for_them() -> None:
    assert paths(COMMUNITY, these=WANTED[:2]) == ["lotabots/api-gateway/data/api-key", "lotabots/shared/jwt"]


def test_an_unknown_mount_gives_both_spellings_unless_the_audit_log_knows() -> None:
    assert paths(COMMUNITY, these=[(Wanted("kv/a"), None)]) == ["lotabots/kv/data/a", "lotabots/kv/a"]
    assert paths(COMMUNITY, these=[(Wanted("kv/a", dynamic=False, versioned=True), None)]) == ["lotabots/kv/data/a"]
    assert paths(COMMUNITY, these=[(Wanted("kv/a", dynamic=False, versioned=False), None)]) == ["lotabots/kv/a"]


@pytest.mark.parametrize(
    ("path", "mount", "makes"),
    [
        ("database/creds/x", DATABASE, True),
        ("database/static-creds/x", DATABASE, False),
        ("shared/jwt", KV1, False),
        ("aws/creds/x", None, True),
        ("kv/x", None, False),
    ],
)
def test_which_reads_make_leases(path: str, mount: Mount | None, makes: bool) -> None:
    assert leased(Wanted(path), mount) is makes


def test_a_quote_in_a_path_ends_nothing_in_the_policy() -> None:
    rules = rules_for([(Wanted('shared/a"b'), KV1)], COMMUNITY, default_policy=True)
    assert 'path "lotabots/shared/a\\"b" {' in as_hcl(rules, COMMUNITY, role="r", default_policy=True)


@pytest.mark.parametrize("place", [NAMESPACE, COMMUNITY, ROOT_AUTH, Place("", "", False)])
@pytest.mark.parametrize("default", [True, False])
def test_every_rule_is_explained_and_the_text_is_a_policy_with_comments(place: Place, default: bool) -> None:
    rules = rules_for(WANTED, place, default_policy=default)
    text = as_hcl(rules, place, role="api-gateway", default_policy=default)
    for rule in rules:
        assert f'# {rule.why}\npath "{rule.path}" {{\n  capabilities = ["{rule.capability}"]\n}}' in text
    kinds = {line[:1] for line in text.splitlines()}
    assert kinds == {"#", "p", " ", "}", ""}
    assert max(map(len, text.splitlines())) < 128


# -- permissions


@pytest.mark.parametrize(
    ("rule", "glob", "path", "covers"),
    [
        ("a/b", False, "a/b", True),
        ("a/b", False, "a/bc", False),
        ("a/", True, "a/b/c", True),
        ("a/b", True, "a/bc", True),
        ("a/", True, "b", False),
        ("a/+/c", False, "a/b/c", True),
        ("a/+/c", False, "a/b/d", False),
        ("a/+/c", False, "a/b/c/d", False),
        ("a/+/c", True, "a/b/cde/f", True),
        ("+/b", False, "a/b", True),
        ("a/+", False, "a/b", True),
        ("a/+", False, "a/b/c", False),
        ("a/+", False, "a", False),
    ],
)
def test_a_permission_covers_what_the_server_would_let_through(rule: str, glob: bool, path: str, covers: bool) -> None:
    assert Permission(rule, glob, frozenset({"read"})).covers(path) is covers


# -- which paths


def line(**fields: object) -> str:
    start = {"time": "2026-01-01T00:00:00.000Z", "event": "secret_access", "kind": "static", "outcome": "hit"}
    return json.dumps({**start, **fields}) + "\n"


def test_the_audit_log_tells_what_was_read_of_which_kind_and_leaves_out_what_was_refused(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_text(
        line(secret_path="b/2", version=3)
        + line(secret_path="a/1", outcome="miss")
        + line(secret_path="a/1", version=None)
        + line(secret_path="d/creds/x", kind="dynamic")
        + line(secret_path="e/stale", outcome="stale")
        + line(secret_path="no/denied", outcome="denied")
        + line(secret_path="no/error", outcome="error")
        + line(secret_path="no/negative", outcome="negative")
        + line(secret_path="no/cut…")
        + line(event="lease_renewed", secret_path="no/event")
        + '{"cut off'
        + "\n[1]\nnothing\n"
    )
    assert from_audit_log(log) == [
        Wanted("a/1", False, False),
        Wanted("b/2", False, True),
        Wanted("d/creds/x", True, False),
        Wanted("e/stale", False, False),
    ]


def test_a_file_that_is_no_audit_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("hello\n")
    with pytest.raises(ConfigurationError, match="holds no audit line"):
        from_audit_log(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        from_audit_log(tmp_path)


def test_the_paths_come_from_the_arguments_else_the_given_log_else_the_prefetch_else_the_apps_log(
    tmp_path: Path,
) -> None:
    given, own = tmp_path / "given", tmp_path / "own"
    given.write_text(line(secret_path="from/given"))
    own.write_text(line(secret_path="from/own"))
    both = SecretConfig.from_env({"VAULT_PREFETCH": "dynamic:from/prefetch", "VAULT_AUDIT_LOG": str(own)})

    def found(paths: list[str], log: str | None, config: SecretConfig) -> list[str]:
        return [each.path for each in wanted(paths, log, config)]

    assert found(["from/arguments"], str(given), both) == ["from/arguments"]
    assert found([], str(given), both) == ["from/given"]
    assert found([], None, both) == ["from/prefetch"]
    assert found([], None, SecretConfig(audit_log=str(own))) == ["from/own"]
    assert found([], None, SecretConfig()) == []


# -- findings


def test_the_cause_is_the_first_failure_and_a_warning_only_without_one() -> None:
    findings = Findings()
    assert findings.cause is None
    findings.ok("a", "well")
    findings.warn("b", "code-b", "so so", why="w", mend="m")
    assert findings.cause is not None
    assert findings.cause.code == "code-b"
    assert not findings.failed
    findings.fail("c", "code-c", "bad", why="w", mend="m")
    findings.fail("d", "code-d", "bad", why="w", mend="m")
    assert findings.cause is not None
    assert findings.cause.code == "code-c"
    assert "begin with: c (code-c)" in findings.as_text()
    report = json.loads(findings.as_json(seconds=1.0))
    assert (report["healthy"], report["cause"], report["seconds"]) == (False, "code-c", 1.0)


def test_a_pods_cluster_is_found_in_its_environment() -> None:
    assert api_address({}) is None
    assert api_address({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}) == (
        "https://10.0.0.1:6443"
    )
    assert api_address({"KUBERNETES_SERVICE_HOST": "fd00::1"}) == "https://[fd00::1]:443"


# -- what the cluster says

ISSUER = "https://kubernetes.default.svc"


def _status(code: int, reason: str) -> Reply:
    return answer({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}, code)


def _reviewed(status: object) -> Reply:
    return answer({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status}, 201)


@pytest.mark.parametrize(
    ("reply", "for_the_api", "for_vault"),
    [
        (_reviewed({"authenticated": True}), "accepted", "accepted"),
        (_reviewed({"user": {}, "error": "invalid bearer token"}), "rejected", "rejected"),
        (_reviewed(None), "unclear", "unclear"),
        (_status(401, "Unauthorized"), "rejected", "unclear"),
        (_status(403, "Forbidden"), "accepted", "unclear"),
        (_status(404, "NotFound"), "unclear", "unclear"),
        (_status(429, "TooManyRequests"), "unclear", "unclear"),
        (_status(500, "InternalError"), "failing", "failing"),
        (page(b"<html>Unauthorized</html>", 401), "unclear", "unclear"),
        (page(b"<html>Forbidden</html>", 403), "unclear", "unclear"),
        (page(b"<html>Bad Gateway</html>", 502), "unclear", "unclear"),
        (page(b"<html>hello</html>"), "unclear", "unclear"),
        (answer([], 201), "unclear", "unclear"),
        (answer({"authenticated": True}, 200), "unclear", "unclear"),
        (page(b"[" * 100_000), "unclear", "unclear"),
    ],
)
def test_only_the_word_of_a_clusters_api_settles_anything(reply: Reply, for_the_api: str, for_vault: str) -> None:
    with ScriptedServer() as server:
        server.on("*", reply)
        found = [review(server.url, "a.b.c", (each,), ISSUER, timeout=10) for each in (ISSUER, "vault")]
    assert [each.verdict for each in found] == [for_the_api, for_vault]
    assert all(each.said and "a.b.c" not in each.said for each in found)


def test_an_api_that_keeps_silent_proves_nothing() -> None:
    with ScriptedServer() as server:
        server.on("*", silence)
        found = review(server.url, "a.b.c", (ISSUER,), ISSUER, timeout=0.2)
    assert (found.verdict, found.said) == ("unclear", "cannot be reached from here (timed out)")


@pytest.mark.parametrize("address", ["", "10.0.0.1:6443", "unix:///run/api.sock", "http://h:port", "https://"])
def test_what_is_no_address_proves_nothing(address: str) -> None:
    assert review(address, "a.b.c", (), "", timeout=1).verdict == "unclear"
