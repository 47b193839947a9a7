"""The log-in: which credential, at which namespace, in which order, and what a refusal means."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.calling import LONG, bare
from tests.scripted import Reply, ScriptedServer, answer, reset, silence
from vault_middleware.config import SecretConfig
from vault_middleware.errors import AuthenticationError, VaultSealed, VaultUnavailable
from vault_middleware.vault.auth import Login
from vault_middleware.vault.transport import Transport

JWT = "eyJ-canary.of-the.service-account"
ISSUED = "hvs.canary-issued"
SECRET_ID = "canary-secret-id"
GIVEN = "hvs.canary-given"

QUESTION = "/v1/lotabots/sys/internal/ui/mounts"
INSIDE = "/v1/lotabots/auth/kubernetes/login"
ROOT = "/v1/auth/kubernetes/login"

GRANTED = answer({"auth": {"client_token": ISSUED, "lease_duration": 3600, "renewable": True}})
EXISTS = answer({"data": {}})
UNKNOWN = answer({"errors": ["permission denied"]}, 403)
AS_IF_MISSING = answer({"errors": ["permission denied"]}, 403)
NO_ROLE = answer({"errors": ['invalid role name "api-gateway"']}, 400)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.on(QUESTION, EXISTS)
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The service account's token."""
    path = tmp_path / "token"
    path.write_text(f"{JWT}\n", encoding="ascii")
    return path


Make = Callable[..., Login]


@pytest.fixture
def make(server: ScriptedServer, file: Path) -> Iterator[Make]:
    made: list[Transport] = []

    def make(*, clock: Callable[[], float] = lambda: 1000.0, **settings: Any) -> Login:
        settings = {"kubernetes_token_path": str(file), "client_timeout": LONG, **settings}
        config = SecretConfig(vault_addr=server.url, **settings)
        made.append(Transport(config, clock=clock))
        return Login(config, made[-1], clock=clock)

    yield make
    for transport in made:
        transport.close()


def refused(login: Login, *secrets: str) -> AuthenticationError:
    """The refusal; neither a credential nor a token hangs on it."""
    with pytest.raises(AuthenticationError) as caught:
        login(LONG)
    bare_of_all(caught.value, *secrets)
    return caught.value


def unavailable(login: Login) -> VaultUnavailable:
    with pytest.raises(VaultUnavailable) as caught:
        login(LONG)
    bare_of_all(caught.value)
    return caught.value


def bare_of_all(error: Any, *secrets: str) -> None:
    assert "canary" not in repr(error.__dict__) + repr(error.args)
    bare(error, JWT, ISSUED, SECRET_ID, GIVEN, *secrets)


def paths(server: ScriptedServer) -> list[str]:
    return [request.path for request in server.requests]


# -- where


def test_a_namespace_that_exists_is_logged_in_at(server: ScriptedServer, make: Make) -> None:
    server.on(INSIDE, GRANTED)
    login = make()
    token = login(LONG)
    assert (token.value, token.lease_duration, token.renewable, token.owned) == (ISSUED, 3600.0, True, True)
    assert (token.namespace, token.auth_path, token.deadline) == ("lotabots", "lotabots/auth/kubernetes/login", 4600.0)
    assert login.namespace == "lotabots"
    assert paths(server) == [QUESTION, INSIDE]
    assert server.to(INSIDE)[0].json == {"jwt": JWT, "role": "api-gateway"}
    assert not any("x-vault-token" in request.headers for request in server.requests)
    assert ISSUED not in repr(token)


@pytest.mark.parametrize("reply", [UNKNOWN, answer({"errors": ["namespace not found"]}, 404)])
def test_where_the_namespace_does_not_exist_the_root_is_logged_in_at(
    server: ScriptedServer, make: Make, reply: Reply
) -> None:
    server.on(QUESTION, reply)
    server.on(ROOT, GRANTED)
    login = make()
    token = login(LONG)
    assert (token.namespace, token.auth_path, login.namespace) == ("", "auth/kubernetes/login", "")
    assert paths(server) == [QUESTION, ROOT]


@pytest.mark.parametrize(
    "reply",
    [
        AS_IF_MISSING,
        answer({"errors": ["1 error occurred:\n\t* permission denied\n\n"]}, 403),
        answer({"errors": []}, 403),
        answer({"errors": ["no handler for route"]}, 404),
    ],
)
def test_a_namespace_that_refuses_as_if_the_mount_were_missing_leads_to_the_root(
    server: ScriptedServer, make: Make, reply: Reply
) -> None:
    server.on(INSIDE, reply)
    server.on(ROOT, GRANTED)
    assert make()(LONG).namespace == ""
    assert paths(server) == [QUESTION, INSIDE, ROOT]


@pytest.mark.parametrize(
    "reply",
    [
        NO_ROLE,
        answer({"errors": ["invalid expiration time (exp) claim: token is expired"]}, 403),
        answer({"errors": ["service account name not authorized"]}, 403),
        answer({"errors": ["invalid audience (aud) claim: audience claim does not match"]}, 403),
    ],
)
def test_a_namespace_that_refuses_with_a_reason_is_the_only_one_asked(
    server: ScriptedServer, make: Make, reply: Reply
) -> None:
    server.on(INSIDE, reply)
    server.on(ROOT, GRANTED)
    error = refused(make())
    assert "lotabots/auth/kubernetes/login answered" in str(error)
    assert not error.passing
    assert paths(server) == [QUESTION, INSIDE]


def test_every_answer_is_reported(server: ScriptedServer, make: Make) -> None:
    server.on(INSIDE, AS_IF_MISSING)
    server.on(ROOT, NO_ROLE)
    message = str(refused(make()))
    assert "lotabots/auth/kubernetes/login answered 403" in message
    assert "; auth/kubernetes/login answered 400 (the role 'api-gateway' is not known there" in message
    assert "check VAULT_ROLE" in message


def test_what_worked_first_is_kept_and_asked_for_no_more(server: ScriptedServer, make: Make) -> None:
    server.on(INSIDE, AS_IF_MISSING)
    server.on(ROOT, GRANTED, AS_IF_MISSING, GRANTED)
    login = make()
    login(LONG)
    refused(login)
    assert login(LONG).namespace == ""
    assert paths(server) == [QUESTION, INSIDE, ROOT, ROOT, ROOT]


def test_what_failed_is_not_kept(server: ScriptedServer, make: Make) -> None:
    server.on(QUESTION, UNKNOWN, EXISTS)
    server.on(ROOT, AS_IF_MISSING)
    server.on(INSIDE, GRANTED)
    login = make()
    refused(login)
    assert login.namespace == ""
    assert login(LONG).namespace == "lotabots"


@pytest.mark.parametrize(("namespace", "path"), [("team", "/v1/team/auth/kubernetes/login"), ("", ROOT)])
def test_a_namespace_of_the_settings_settles_it(server: ScriptedServer, make: Make, namespace: str, path: str) -> None:
    server.on(path, AS_IF_MISSING, GRANTED)
    login = make(auth_namespace=namespace)
    refused(login)
    assert login(LONG).namespace == namespace
    assert paths(server) == [path, path]


def test_without_a_namespace_there_is_no_question(server: ScriptedServer, make: Make) -> None:
    server.on(ROOT, GRANTED)
    assert make(namespace="")(LONG).namespace == ""
    assert paths(server) == [ROOT]


@pytest.mark.parametrize("reply", [answer({}, 500), answer({}, 429), answer({}, 400), reset])
def test_a_question_without_an_answer_is_no_log_in_anywhere(server: ScriptedServer, make: Make, reply: Reply) -> None:
    server.on(QUESTION, reply)
    unavailable(make())
    assert paths(server) == [QUESTION]


@pytest.mark.parametrize("reply", [answer({}, 412), answer({}, 429), answer({}, 473), answer({}, 500), reset])
def test_a_server_that_cannot_answer_now_is_unavailable_and_the_root_is_not_tried(
    server: ScriptedServer, make: Make, reply: Reply
) -> None:
    server.on(INSIDE, reply)
    unavailable(make())
    assert paths(server) == [QUESTION, INSIDE]


def test_a_sealed_server_is_named_so(server: ScriptedServer, make: Make) -> None:
    server.on(QUESTION, answer({"errors": ["Vault is sealed"]}, 503))
    assert isinstance(unavailable(make()), VaultSealed)


def test_the_time_is_for_the_whole_log_in(server: ScriptedServer, make: Make) -> None:
    now = [0.0]

    def slow(exchange: Any) -> None:
        now[0] += 60.0
        EXISTS(exchange)

    server.on(QUESTION, slow)
    server.on(INSIDE, silence)
    with pytest.raises(VaultUnavailable, match="in time"):
        make(clock=lambda: now[0])(30.0)


# -- which refusals can pass


@pytest.mark.parametrize("path", [INSIDE, ROOT])
def test_a_refusal_that_a_server_without_token_review_gives_as_well_can_pass(
    server: ScriptedServer, make: Make, path: str
) -> None:
    server.on(INSIDE, AS_IF_MISSING)
    server.on(ROOT, AS_IF_MISSING)
    error = refused(make(auth_namespace="lotabots" if path == INSIDE else ""))
    assert error.passing
    assert "TokenReview" in str(error)
    assert "VAULT_AUTH_MOUNT" in str(error)


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (400, 'invalid role name "api-gateway"', "check VAULT_ROLE"),
        (400, "missing client token", "check the auth method's settings"),
        (403, "invalid expiration time (exp) claim: token is expired", "has expired"),
        (403, "service account name not authorized", "the role 'api-gateway' is bound to"),
        (403, "namespace not authorized", "the role 'api-gateway' is bound to"),
        (403, "invalid audience (aud) claim: audience claim does not match", "the projected volume"),
        (418, "canary: something new", "check the auth method's settings"),
    ],
)
def test_a_refusal_with_a_reason_lasts_and_says_what_to_check_in_our_words(
    server: ScriptedServer, make: Make, status: int, text: str, words: str
) -> None:
    server.on(INSIDE, answer({"errors": [text, f"canary {JWT}"]}, status))
    error = refused(make())
    assert words in str(error)
    assert not error.passing


@pytest.mark.parametrize(
    "auth",
    [
        None,
        [],
        {},
        {"client_token": ISSUED},
        {"client_token": ISSUED, "lease_duration": -1},
        {"client_token": ISSUED, "lease_duration": True},
        {"client_token": [ISSUED], "lease_duration": 1},
        {"client_token": f"{ISSUED}\n", "lease_duration": 1},
    ],
)
def test_a_log_in_without_a_usable_token_in_it_is_not_vaults(server: ScriptedServer, make: Make, auth: object) -> None:
    server.on(INSIDE, answer({"auth": auth}))
    assert "is not Vault's" in str(unavailable(make()))


def test_a_token_of_0_seconds_never_ends(server: ScriptedServer, make: Make) -> None:
    server.on(INSIDE, answer({"auth": {"client_token": ISSUED, "lease_duration": 0}}))
    assert make()(LONG).deadline == math.inf


# -- which credential


def test_the_service_accounts_token_is_read_again_each_time(server: ScriptedServer, make: Make, file: Path) -> None:
    server.on(INSIDE, GRANTED)
    login = make()
    login(LONG)
    file.write_text("the.second.one", encoding="ascii")
    login(LONG)
    assert [request.json["jwt"] for request in server.to(INSIDE)] == [JWT, "the.second.one"]


def test_a_token_file_that_comes_later_is_read_then(server: ScriptedServer, make: Make, file: Path) -> None:
    server.on(INSIDE, GRANTED)
    file.rename(file.with_suffix(".later"))
    login = make()
    message = str(refused(login))
    assert "is not there; check VAULT_KUBERNETES_TOKEN_PATH" in message
    assert str(file) in message
    file.with_suffix(".later").rename(file)
    assert login(LONG).value == ISSUED


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds none"),
        (b" \n\t\n", "holds none"),
        (b"canary one\ncanary two", "holds something else"),
        (b"canary\x00", "holds something else"),
        (b"canary\x1b[2J", "holds something else"),
        ("canary-ü".encode(), "cannot be read as one"),
        (b"\xff\xfe\x00", "cannot be read as one"),
        (b"canary" * 20_000, "holds something else"),
    ],
)
def test_a_token_file_that_holds_no_token_is_named_and_nothing_is_sent(
    server: ScriptedServer, make: Make, file: Path, content: bytes, words: str
) -> None:
    file.write_bytes(content)
    message = str(refused(make()))
    assert words in message
    assert "check VAULT_KUBERNETES_TOKEN_PATH" in message
    assert server.requests == []


def test_a_folder_in_the_place_of_a_token_file_is_an_error_of_ours(make: Make, tmp_path: Path) -> None:
    assert "cannot be read as one" in str(refused(make(kubernetes_token_path=str(tmp_path))))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_token_file_that_may_not_be_read_is_an_error_of_ours(make: Make, file: Path) -> None:
    file.chmod(0)
    assert "cannot be read as one" in str(refused(make()))


def test_role_and_mount_of_the_settings_are_used(server: ScriptedServer, make: Make) -> None:
    path = "/v1/auth/k8s/prod/login"
    server.on(path, GRANTED)
    token = make(namespace="", vault_role="other", auth_mount="k8s/prod")(LONG)
    assert server.to(path)[0].json == {"jwt": JWT, "role": "other"}
    assert token.auth_path == "auth/k8s/prod/login"


def test_jwt_shows_the_token_of_its_own_file(server: ScriptedServer, make: Make, tmp_path: Path) -> None:
    file = tmp_path / "jwt"
    file.write_text("of.its.own\n", encoding="ascii")
    server.on("/v1/lotabots/auth/jwt/login", GRANTED)
    login = make(auth_method="jwt", jwt_path=str(file))
    assert login(LONG).value == ISSUED
    assert server.to("/v1/lotabots/auth/jwt/login")[0].json == {"jwt": "of.its.own", "role": "api-gateway"}
    file.unlink()
    assert "check VAULT_JWT_PATH" in str(refused(login))


def test_approle_shows_role_id_and_secret_id(server: ScriptedServer, make: Make, tmp_path: Path) -> None:
    path = "/v1/lotabots/auth/approle/login"
    server.on(path, GRANTED)
    file = tmp_path / "secret-id"
    file.write_text("of-the-file\n", encoding="ascii")
    make(auth_method="approle", role_id="r", secret_id=SECRET_ID)(LONG)
    make(auth_method="approle", role_id="r")(LONG)
    make(auth_method="approle", role_id="r", secret_id=SECRET_ID, secret_id_file=str(tmp_path / "not-there"))(LONG)
    login = make(auth_method="approle", role_id="r", secret_id_file=str(file))
    login(LONG)
    assert [request.json for request in server.to(path)] == [
        {"role_id": "r", "secret_id": SECRET_ID},
        {"role_id": "r", "secret_id": None},
        {"role_id": "r", "secret_id": SECRET_ID},
        {"role_id": "r", "secret_id": "of-the-file"},
    ]
    file.unlink()
    assert "check VAULT_SECRET_ID_FILE" in str(refused(login))


def test_an_approle_that_is_refused_names_its_variables(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/auth/approle/login", answer({"errors": ["invalid role or secret ID"]}, 400))
    login = make(auth_method="approle", role_id="canary-role-id", secret_id=SECRET_ID)
    error = refused(login, "canary-role-id")
    assert "check VAULT_ROLE_ID and VAULT_SECRET_ID" in str(error)
    assert not error.passing


def test_through_a_proxy_there_is_no_log_in(server: ScriptedServer, make: Make) -> None:
    token = make(auth_method="proxy")(LONG)
    assert (token.value, token.owned, token.renewable, token.deadline) == ("", False, False, math.inf)
    assert server.requests == []


# -- a token that was given

LOOKUP = "/v1/lotabots/auth/token/lookup-self"


def looked_up(**data: object) -> Reply:
    return answer({"data": {"ttl": 100, "creation_ttl": 3600, "renewable": True, **data}})


def test_a_given_token_is_looked_up_and_is_not_ours(server: ScriptedServer, make: Make) -> None:
    server.on(LOOKUP, looked_up())
    token = make(token=GIVEN)(LONG)
    assert server.to(LOOKUP)[0].headers["x-vault-token"] == GIVEN
    assert "x-vault-token" not in server.to(QUESTION)[0].headers
    assert (token.value, token.owned, token.renewable, token.namespace) == (GIVEN, False, True, "lotabots")
    assert (token.lease_duration, token.deadline) == (3600.0, 1100.0)


@pytest.mark.parametrize("creation_ttl", [0, 3600])
def test_a_given_token_without_a_ttl_never_ends(server: ScriptedServer, make: Make, creation_ttl: int) -> None:
    server.on(LOOKUP, looked_up(ttl=0, creation_ttl=creation_ttl))
    assert make(token=GIVEN)(LONG).deadline == math.inf


def test_a_given_token_of_an_older_server_counts_from_what_is_left(server: ScriptedServer, make: Make) -> None:
    server.on(LOOKUP, answer({"data": {"ttl": 100}}))
    token = make(token=GIVEN)(LONG)
    assert (token.lease_duration, token.renewable) == (100.0, False)


def test_a_given_token_of_the_root_is_looked_up_there(server: ScriptedServer, make: Make) -> None:
    server.on(LOOKUP, AS_IF_MISSING)
    server.on("/v1/auth/token/lookup-self", looked_up())
    assert make(token=GIVEN)(LONG).namespace == ""


def test_a_given_token_that_is_not_valid_lasts_so(server: ScriptedServer, make: Make) -> None:
    server.on("*", AS_IF_MISSING)
    error = refused(make(token=GIVEN))
    assert "set VAULT_TOKEN or VAULT_TOKEN_FILE to a valid one" in str(error)
    assert not error.passing


def test_a_token_file_is_read_again_and_may_come_to_hold_a_valid_one(
    server: ScriptedServer, make: Make, tmp_path: Path
) -> None:
    file = tmp_path / "vault-token"
    file.write_text(f"{GIVEN}-1", encoding="ascii")
    server.on(LOOKUP, AS_IF_MISSING, looked_up())
    login = make(token_file=str(file), auth_namespace="lotabots")
    assert refused(login).passing
    file.write_text(f"{GIVEN}-2", encoding="ascii")
    assert login(LONG).value == f"{GIVEN}-2"
    assert [request.headers["x-vault-token"] for request in server.to(LOOKUP)] == [f"{GIVEN}-1", f"{GIVEN}-2"]
    file.write_text("", encoding="ascii")
    assert "check VAULT_TOKEN_FILE" in str(refused(login))


@pytest.mark.parametrize("data", [None, [], "text", {}, {"ttl": "1h"}, {"ttl": -1}, {"ttl": 1, "creation_ttl": None}])
def test_a_look_up_that_is_none_is_not_vaults(server: ScriptedServer, make: Make, data: object) -> None:
    server.on(LOOKUP, answer({"data": data}))
    assert "is not Vault's" in str(unavailable(make(token=GIVEN)))
