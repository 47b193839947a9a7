"""VaultClient: what it asks, what it makes of each answer, and when it tries again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.calling import LONG, TOKEN, bare
from tests.scripted import Exchange, ScriptedServer, answer, cut, page, reset
from tests.waiting import eventually, in_threads
from vault_middleware.config import SecretConfig
from vault_middleware.errors import (
    AuthenticationError,
    SecretAccessDenied,
    SecretNotFound,
    VaultMiddlewareError,
    VaultSealed,
    VaultUnavailable,
)
from vault_middleware.vault.client import Forbidden, Grant, LeaseGone, Reading, Token, VaultClient
from vault_middleware.vault.paths import Mount

QUESTION = "/v1/sys/internal/ui/mounts/lotabots/"
KV2 = answer({"data": {"path": "lotabots/app/", "type": "kv", "options": {"version": "2"}}})
KV1 = answer({"data": {"path": "lotabots/app/", "type": "kv", "options": {"version": "1"}}})
DATABASE = answer({"data": {"path": "lotabots/database/", "type": "database", "options": None}})
CREDS = "/v1/lotabots/database/creds/role"
LEASE = "database/creds/role/abc.ns1"
CANARY = "canary-in-the-server's-answer"


class Waits(threading.Event):
    """A closing that is never set: notes how long was waited, and waits not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        return self.is_set()


@pytest.fixture
def closing() -> Waits:
    return Waits()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.on(f"{QUESTION}app/key", KV2)
        server.on(f"{QUESTION}database/creds/role", DATABASE)
        yield server


Make = Callable[..., VaultClient]


@pytest.fixture
def make(server: ScriptedServer, closing: Waits) -> Iterator[Make]:
    made: list[VaultClient] = []

    def make(**settings: Any) -> VaultClient:
        config = SecretConfig(vault_addr=server.url, **{"client_timeout": LONG, **settings})
        made.append(VaultClient(config, closing=closing, uniform=lambda low, high: high))
        return made[-1]

    yield make
    for client in made:
        client.close()


def a_token(value: str = TOKEN, *, namespace: str = "lotabots", **fields: Any) -> Token:
    shown: dict[str, Any] = {"lease_duration": 600.0, "renewable": True, "deadline": 600.0, "owned": True, **fields}
    return Token(value, namespace=namespace, auth_path="auth/kubernetes/login", **shown)


def read(
    client: VaultClient,
    path: str = "app/key",
    *,
    version: int | None = None,
    timeout: float = LONG,
    correlation_id: str | None = None,
    token: Token | None = None,
) -> Reading:
    return client.read(path, token or a_token(), version=version, timeout=timeout, correlation_id=correlation_id)


def fails(kind: type[VaultMiddlewareError], call: Callable[[], object]) -> str:
    """The message of the failure; nothing of the server's answer, and no token, hangs on it."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    bare(caught.value, CANARY)
    return str(caught.value)


def kv2(data: object, **metadata: object) -> dict[str, object]:
    return {"request_id": "r-1", "data": {"data": data, "metadata": {"version": 4, **metadata}}}


# -- reading


def test_kv_v2_is_read_below_data_and_knows_its_version(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/app/data/key", answer(kv2({"value": "v"})))
    reading = read(make())
    assert (dict(reading.data), reading.version, reading.request_id) == ({"value": "v"}, 4, "r-1")
    assert (reading.lease_id, reading.lease_duration, reading.ttl) == ("", 0.0, None)
    assert server.requests[-1].headers["x-vault-token"] == TOKEN


def test_a_version_of_kv_v2_is_asked_for_by_its_number(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/app/data/key", answer(kv2({}, version=2)))
    assert read(make(), version=2).version == 2
    assert server.requests[-1].target == "/v1/lotabots/app/data/key?version=2"


def test_kv_v1_is_read_as_it_is_and_its_cache_hint_is_no_lease(server: ScriptedServer, make: Make) -> None:
    server.on(f"{QUESTION}app/key", KV1)
    server.on("/v1/lotabots/app/key", answer({"data": {"value": "v"}, "lease_id": "", "lease_duration": 2764800}))
    reading = read(make())
    assert (dict(reading.data), reading.version, reading.lease_id, reading.lease_duration) == (
        {"value": "v"},
        None,
        "",
        0.0,
    )


def test_a_version_where_none_are_kept_is_refused_instead_of_ignored(server: ScriptedServer, make: Make) -> None:
    server.on(f"{QUESTION}app/key", KV1)
    assert "has no versions" in fails(SecretNotFound, lambda: read(make(), version=2))
    assert server.to("/v1/lotabots/app/key") == []


def test_a_dynamic_secret_comes_with_its_lease_and_its_age(server: ScriptedServer, make: Make) -> None:
    body = {"lease_id": LEASE, "lease_duration": 60, "renewable": True, "data": {"username": "u", "password": "p"}}
    server.on(CREDS, answer(body, 200, {"Age": "12"}))
    reading = read(make(), "database/creds/role")
    assert (reading.lease_id, reading.lease_duration, reading.renewable, reading.age) == (LEASE, 60.0, True, 12.0)
    assert reading.mount == Mount("lotabots/database/", "database", None)
    assert "abc" not in repr(reading)
    assert "'p'" not in repr(reading)


def test_a_static_role_has_a_time_to_live_and_no_lease(server: ScriptedServer, make: Make) -> None:
    server.on(f"{QUESTION}database/static-creds/role", DATABASE)
    data = {"username": "u", "password": "p", "ttl": 17, "rotation_period": 60}
    server.on("/v1/lotabots/database/static-creds/role", answer({"data": data, "lease_id": ""}))
    assert read(make(), "database/static-creds/role").ttl == 17.0


def test_a_key_named_ttl_in_kv_is_data_and_nothing_more(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/app/data/key", answer(kv2({"ttl": "soon", "rotation_period": 5})))
    assert read(make()).ttl is None


def test_what_was_read_cannot_be_changed(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/app/data/key", answer(kv2({"a": {"b": [1]}})))
    data = read(make()).data
    with pytest.raises(TypeError):
        data["a"]["b"] = 2
    assert "1" not in repr(data)


def test_segments_are_percent_encoded(server: ScriptedServer, make: Make) -> None:
    server.on("*", KV2)
    with pytest.raises(VaultMiddlewareError):
        read(make(), "app/a b&c")
    assert [request.target for request in server.requests] == [
        f"{QUESTION}app/a%20b%26c",
        "/v1/lotabots/app/data/a%20b%26c",
    ]


def test_without_a_namespace_nothing_leads_the_path(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/sys/internal/ui/mounts/kv/key", answer({"data": {"path": "kv/", "type": "kv", "options": None}}))
    server.on("/v1/kv/key", answer({"data": {"a": 1}}))
    assert dict(read(make(namespace=""), "kv/key").data) == {"a": 1}


def test_no_request_has_a_namespace_header(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/app/data/key", answer(kv2({})))
    server.on("*", answer({"lease_duration": 1, "renewable": True, "auth": {"client_token": "t", "lease_duration": 1}}))
    client = make()
    read(client)
    client.renew_lease(LEASE, 60, a_token(), LONG)
    client.renew_token(a_token(), LONG)
    client.probe(LONG)
    assert len(server.requests) == 5
    assert not any("x-vault-namespace" in request.headers for request in server.requests)


def test_the_correlation_id_travels_with_the_read_alone(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/app/data/key", answer(kv2({})))
    read(make(), correlation_id="request-7")
    question, reading = server.requests
    assert "x-correlation-id" not in question.headers
    assert reading.headers["x-correlation-id"] == "request-7"


def test_through_a_proxy_reads_differ_in_no_header_and_carry_no_token(server: ScriptedServer, make: Make) -> None:
    server.on(CREDS, answer({"lease_id": LEASE, "lease_duration": 60, "data": {"a": 1}}, 200, {"Set-Cookie": "a=b"}))
    client = make(auth_method="proxy")
    token = client.log_in(LONG)
    for correlation_id in ("one", "two"):
        read(client, "database/creds/role", correlation_id=correlation_id, token=token)
    first, second = server.to(CREDS)
    assert first.headers == second.headers
    assert "x-vault-token" not in first.headers
    assert client.token_is_valid(token, LONG)
    assert not server.to("/v1/auth/token/lookup-self")


# -- which mount


def test_a_mount_is_asked_for_once(server: ScriptedServer, make: Make) -> None:
    server.on("*", answer(kv2({})))
    client = make()
    for path in ("app/key", "app/other", "app/deep/er"):
        read(client, path)
    assert len([request for request in server.requests if request.path.startswith(QUESTION)]) == 1


def test_the_version_of_the_settings_saves_the_question(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/app/data/key", answer(kv2({"a": 1})))
    assert dict(read(make(kv_version=2)).data) == {"a": 1}
    server.on("/v1/lotabots/app/key", answer({"data": {"a": 2}}))
    assert dict(read(make(kv_version=1)).data) == {"a": 2}
    assert not any(request.path.startswith(QUESTION) for request in server.requests)


def test_the_version_of_the_settings_makes_no_kv_of_a_database(server: ScriptedServer, make: Make) -> None:
    server.on(CREDS, answer({"lease_id": LEASE, "lease_duration": 60, "data": {"a": 1}}))
    assert read(make(kv_version=2), "database/creds/role").lease_id == LEASE


@pytest.mark.parametrize("settings", [{}, {"kv_version": 2}])
def test_a_mount_itself_holds_no_secret(server: ScriptedServer, make: Make, settings: dict[str, Any]) -> None:
    server.on(f"{QUESTION}app", KV2)
    assert "name a secret below it" in fails(SecretNotFound, lambda: read(make(**settings), "app"))


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_mount_that_may_not_be_seen_is_a_refusal_without_a_mount(
    server: ScriptedServer, make: Make, status: int
) -> None:
    server.on(f"{QUESTION}app/key", answer({"errors": ["preflight capability check"]}, status))
    with pytest.raises(Forbidden) as caught:
        read(make())
    assert caught.value.mount is None


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "text",
        {},
        {"path": "lotabots/app/"},
        {"type": "kv"},
        {"path": 1, "type": "kv"},
        {"path": "lotabots/app/", "type": ["kv"]},
        {"path": "lotabots/app", "type": "kv"},
        {"path": "lotabots/other/", "type": "kv"},
        {"path": "", "type": "kv"},
        {"path": "/", "type": "kv"},
    ],
)
def test_a_mount_that_is_none_is_not_believed(server: ScriptedServer, make: Make, data: object) -> None:
    server.on(f"{QUESTION}app/key", answer({"data": data}))
    assert "is not Vault's" in fails(VaultUnavailable, lambda: read(make()))


@pytest.mark.parametrize("options", [None, [], {}, {"version": None}, {"version": 7}])
def test_a_kv_mount_without_a_version_is_one_of_version_1(server: ScriptedServer, make: Make, options: object) -> None:
    server.on(f"{QUESTION}app/key", answer({"data": {"path": "lotabots/app/", "type": "kv", "options": options}}))
    assert make().mount_of("app/key", a_token(), LONG) == Mount("lotabots/app/", "kv", 1)


def test_eight_reads_of_one_mount_at_once_ask_for_it_once(server: ScriptedServer, make: Make) -> None:
    entered: list[int] = []

    def slowly(exchange: Exchange) -> None:
        eventually(lambda: len(entered) == 8, "all eight to be there")
        KV2(exchange)

    server.on("*", answer(kv2({"value": "v"})))
    for number in range(8):
        server.on(f"{QUESTION}app/{number}", slowly)
    client = make()

    def value(number: int) -> object:
        entered.append(number)
        return read(client, f"app/{number}").data["value"]

    assert in_threads(8, value) == ["v"] * 8
    assert len([request for request in server.requests if request.path.startswith(QUESTION)]) == 1
    assert len(server.requests) == 9


# -- what is not there, what may not be


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"deletion_time": "2026-01-01T00:00:00Z"}, "has been deleted; undelete it"),
        ({"destroyed": True}, "has been destroyed; write a new version"),
    ],
)
@pytest.mark.parametrize("status", [200, 404])
def test_a_version_that_is_gone_says_how(
    server: ScriptedServer, make: Make, status: int, metadata: dict[str, Any], words: str
) -> None:
    server.on("/v1/lotabots/app/data/key", answer(kv2(None, **metadata), status))
    assert f"version 4 of 'app/key' {words}" in fails(SecretNotFound, lambda: read(make(), version=4))


def test_a_secret_that_is_not_there_names_its_mount(server: ScriptedServer, make: Make) -> None:
    message = fails(SecretNotFound, lambda: read(make()))
    assert "there is no secret 'app/key' in the mount 'lotabots/app/'" in message


def test_a_path_that_repeats_the_namespace_is_told_the_right_spelling(server: ScriptedServer, make: Make) -> None:
    server.on("*", answer({"errors": []}, 404))
    server.on(
        f"{QUESTION}lotabots/app/key", answer({"data": {"path": "lotabots/lotabots/", "type": "kv", "options": None}})
    )
    assert "write 'app/key'" in fails(SecretNotFound, lambda: read(make(), "lotabots/app/key"))


def test_an_unknown_database_role_is_not_found(server: ScriptedServer, make: Make) -> None:
    server.on(CREDS, answer({"errors": [f"unknown role: role {CANARY}"]}, 400))
    assert "there is no secret" in fails(SecretNotFound, lambda: read(make(), "database/creds/role"))


@pytest.mark.parametrize(("status", "errors"), [(405, ["1 error occurred:\n\t* unsupported operation\n\n"]), (405, [])])
def test_an_engine_that_wants_a_write_is_out_of_scope_and_the_error_says_so(
    server: ScriptedServer, make: Make, status: int, errors: list[str]
) -> None:
    server.on(CREDS, answer({"errors": errors}, status))
    message = fails(SecretNotFound, lambda: read(make(), "database/creds/role"))
    assert "its engine (database) wants a write" in message


def test_a_refusal_knows_the_mount_and_its_error_names_the_line_for_the_policy(
    server: ScriptedServer, make: Make
) -> None:
    server.on("/v1/lotabots/app/data/key", answer({"errors": [f"permission denied {CANARY}"]}, 403))
    client = make()
    with pytest.raises(Forbidden) as caught:
        read(client)
    assert caught.value.mount == Mount("lotabots/app/", "kv", 2)
    error = client.denied("app/key", caught.value.mount)
    assert isinstance(error, SecretAccessDenied)
    assert 'path "lotabots/app/data/key" { capabilities = ["read"] }' in str(error)
    assert "there is no such mount" in str(client.denied("app/key", None))


def test_a_quote_in_a_path_ends_nothing_in_the_line_for_the_policy(make: Make) -> None:
    line = str(make().denied('app/x" { capabilities = ["sudo"] } path "y', None))
    assert r'path "lotabots/app/x\" { capabilities = [\"sudo\"] } path \"y" {' in line


# -- further tries


@pytest.mark.parametrize("status", [412, 429, 500, 502, 503, 504])
def test_a_read_of_kv_is_tried_again_where_the_server_says_later(
    server: ScriptedServer, make: Make, closing: Waits, status: int
) -> None:
    server.on("/v1/lotabots/app/data/key", answer({"errors": []}, status), answer({}, status), answer(kv2({"a": 1})))
    assert dict(read(make()).data) == {"a": 1}
    assert len(closing.waited) == 2
    assert closing.waited[0] < closing.waited[1]


@pytest.mark.parametrize("reply", [reset, cut({"data": {}}, 3), page(b"<html>", 502)])
def test_a_read_of_kv_is_tried_again_where_the_connection_broke(server: ScriptedServer, make: Make, reply: Any) -> None:
    server.on("/v1/lotabots/app/data/key", reply, answer(kv2({"a": 1})))
    assert dict(read(make()).data) == {"a": 1}


def test_the_question_for_the_mount_is_tried_again_as_well(server: ScriptedServer, make: Make) -> None:
    server.on(f"{QUESTION}app/key", reset, answer({}, 500), KV2)
    server.on("/v1/lotabots/app/data/key", answer(kv2({"a": 1})))
    assert dict(read(make()).data) == {"a": 1}


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_further_tries_are_as_many_as_the_settings_say(server: ScriptedServer, make: Make, retries: int) -> None:
    server.on("/v1/lotabots/app/data/key", answer({"errors": [CANARY]}, 500))
    assert "(500)" in fails(VaultUnavailable, lambda: read(make(max_retries=retries)))
    assert len(server.to("/v1/lotabots/app/data/key")) == 1 + retries


def test_what_the_server_asks_to_wait_is_waited(server: ScriptedServer, make: Make, closing: Waits) -> None:
    server.on("/v1/lotabots/app/data/key", answer({}, 429, {"Retry-After": "3"}), answer(kv2({"a": 1})))
    read(make())
    assert closing.waited == [3.0]


def test_a_wait_that_does_not_fit_into_the_time_ends_the_tries(
    server: ScriptedServer, make: Make, closing: Waits
) -> None:
    server.on("/v1/lotabots/app/data/key", answer({}, 429, {"Retry-After": "300"}))
    assert "(429)" in fails(VaultUnavailable, lambda: read(make()))
    assert closing.waited == []


@pytest.mark.parametrize("status", [400, 403, 404, 405, 472, 473])
def test_a_plain_refusal_is_not_tried_again(server: ScriptedServer, make: Make, closing: Waits, status: int) -> None:
    server.on("/v1/lotabots/app/data/key", answer({"errors": []}, status))
    with pytest.raises(VaultMiddlewareError):
        read(make())
    assert len(server.to("/v1/lotabots/app/data/key")) == 1
    assert closing.waited == []


def test_a_sealed_server_is_not_asked_again(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/app/data/key", answer({"errors": ["Vault is sealed"]}, 503))
    assert "unseal it" in fails(VaultSealed, lambda: read(make()))
    assert len(server.to("/v1/lotabots/app/data/key")) == 1


@pytest.mark.parametrize("reply", [answer({}, 500), answer({}, 429), answer({}, 412), reset, page(b"<html>")])
def test_a_read_that_may_make_a_lease_is_never_tried_again(server: ScriptedServer, make: Make, reply: Any) -> None:
    server.on(CREDS, reply)
    fails(VaultUnavailable, lambda: read(make(), "database/creds/role"))
    assert len(server.to(CREDS)) == 1


def test_nothing_is_tried_again_while_closing(server: ScriptedServer, make: Make, closing: Waits) -> None:
    server.on("/v1/lotabots/app/data/key", answer({}, 500))
    closing.set()
    fails(VaultUnavailable, lambda: read(make()))
    assert len(server.to("/v1/lotabots/app/data/key")) == 1


# -- leases


def test_a_lease_is_renewed_where_it_lives(server: ScriptedServer, make: Make) -> None:
    for path in ("/v1/sys/leases/renew", "/v1/lotabots/sys/leases/renew"):
        server.on(path, answer({"lease_id": LEASE, "lease_duration": 8, "renewable": True}))
    grant = make().renew_lease(LEASE, 59.6, a_token(), LONG)
    assert (grant.lease_duration, grant.renewable) == (8.0, True)
    make().renew_lease("lotabots/database/creds/role/abc", 60, a_token(), LONG)
    inside, root = server.requests
    assert (inside.path, inside.json) == ("/v1/lotabots/sys/leases/renew", {"lease_id": LEASE, "increment": 60})
    assert root.path == "/v1/sys/leases/renew"


@pytest.mark.parametrize("reason", ["lease not found", "lease is not renewable", "lease expired"])
def test_a_lease_that_is_over_is_gone(server: ScriptedServer, make: Make, reason: str) -> None:
    server.on("*", answer({"errors": [f"failed to renew {CANARY}: {reason}"]}, 400))
    with pytest.raises(LeaseGone) as caught:
        make().renew_lease(LEASE, 60, a_token(), LONG)
    assert caught.value.reason == reason
    bare(caught.value, CANARY, LEASE)


@pytest.mark.parametrize("status", [400, 404, 412, 429, 473, 500, 503])
def test_a_renewal_that_fails_otherwise_can_pass_and_is_tried_once(
    server: ScriptedServer, make: Make, status: int
) -> None:
    server.on("*", answer({"errors": [f"failed: dial tcp 10.0.0.1:5432: {CANARY}"]}, status))
    fails(VaultUnavailable, lambda: make().renew_lease(LEASE, 60, a_token(), LONG))
    assert len(server.requests) == 1


@pytest.mark.parametrize("call", ["renew", "revoke"])
def test_a_lease_call_that_the_policy_refuses_is_forbidden_and_its_line_is_known(
    server: ScriptedServer, make: Make, call: str
) -> None:
    server.on("*", answer({"errors": ["permission denied"]}, 403))
    client = make()
    calls: dict[str, Callable[[], object]] = {
        "renew": lambda: client.renew_lease(LEASE, 60, a_token(), LONG),
        "revoke": lambda: client.revoke_lease(LEASE, a_token(), LONG),
    }
    with pytest.raises(Forbidden):
        calls[call]()
    line = f'path "lotabots/sys/leases/{call}" {{ capabilities = ["update"] }}'
    assert line in client.lease_line(call, LEASE)


def test_a_lease_is_revoked_where_it_lives(server: ScriptedServer, make: Make) -> None:
    server.on("*", answer(None, 204))
    make().revoke_lease(LEASE, a_token(), LONG)
    (request,) = server.requests
    assert (request.path, request.json) == ("/v1/lotabots/sys/leases/revoke", {"lease_id": LEASE})


def test_revoking_a_lease_that_is_over_is_no_error(server: ScriptedServer, make: Make) -> None:
    server.on("*", answer({"errors": ["lease not found"]}, 400))
    make().revoke_lease(LEASE, a_token(), LONG)


@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_revocation_that_failed_says_so(server: ScriptedServer, make: Make, status: int) -> None:
    server.on("*", answer({"errors": [f"failed to revoke: {CANARY}"]}, status))
    fails(VaultUnavailable, lambda: make().revoke_lease(LEASE, a_token(), LONG))


# -- the token


def test_a_token_is_renewed_where_it_came_from_and_stays_whose_it_was(server: ScriptedServer, make: Make) -> None:
    server.on("*", answer({"auth": {"client_token": "other", "lease_duration": 300, "renewable": False}}))
    token = a_token(namespace="team", owned=False)
    renewed = make().renew_token(token, LONG)
    (request,) = server.requests
    assert (request.path, request.json) == ("/v1/team/auth/token/renew-self", {"increment": "600s"})
    assert (renewed.value, renewed.lease_duration, renewed.renewable, renewed.owned, renewed.namespace) == (
        TOKEN,
        300.0,
        False,
        False,
        "team",
    )
    assert TOKEN not in repr(renewed)


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_token_that_may_not_be_renewed_is_an_authentication_error(
    server: ScriptedServer, make: Make, status: int
) -> None:
    server.on("*", answer({"errors": [CANARY]}, status))
    assert "renew-self" in fails(AuthenticationError, lambda: make().renew_token(a_token(), LONG))


def test_whether_a_token_is_valid_is_what_its_look_up_says(server: ScriptedServer, make: Make) -> None:
    server.on("*", answer({"data": {}}), answer({"errors": ["permission denied"]}, 403), answer({}, 500))
    client = make()
    assert client.token_is_valid(a_token(namespace=""), LONG)
    assert not client.token_is_valid(a_token(namespace=""), LONG)
    fails(VaultUnavailable, lambda: client.token_is_valid(a_token(namespace=""), LONG))
    assert {request.path for request in server.requests} == {"/v1/auth/token/lookup-self"}


def test_revoking_a_token_that_is_not_valid_any_more_is_no_error(server: ScriptedServer, make: Make) -> None:
    denied = answer({"errors": ["permission denied"]}, 403)
    server.on("/v1/lotabots/auth/token/revoke-self", answer(None, 204), denied, answer({}, 500))
    server.on("/v1/lotabots/auth/token/lookup-self", denied)
    client = make()
    client.revoke_token(a_token(), LONG)
    client.revoke_token(a_token(), LONG)
    fails(VaultUnavailable, lambda: client.revoke_token(a_token(), LONG))


def test_a_policy_that_does_not_let_a_token_revoke_itself_is_named(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/auth/token/revoke-self", answer({"errors": ["permission denied"]}, 403))
    server.on("/v1/lotabots/auth/token/lookup-self", answer({"data": {}}))
    refused = fails(VaultUnavailable, lambda: make().revoke_token(a_token(), LONG))
    assert 'path "auth/token/revoke-self" { capabilities = ["update"] }' in str(refused)


# -- the server's health


@pytest.mark.parametrize("status", [200, 429, 473])
def test_a_server_that_can_answer_reads_is_up(server: ScriptedServer, make: Make, status: int) -> None:
    server.on("/v1/sys/health", answer({"initialized": True, "sealed": False}, status))
    make().probe(LONG)
    assert "x-vault-token" not in server.requests[0].headers


@pytest.mark.parametrize("reply", [answer({}, 404), answer({}, 403), answer({}, 472), answer({}, 500), page(b"ok")])
def test_what_answers_otherwise_is_not_up(server: ScriptedServer, make: Make, reply: Any) -> None:
    server.on("/v1/sys/health", reply)
    fails(VaultUnavailable, lambda: make().probe(LONG))


def test_a_sealed_server_is_not_up(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/sys/health", answer({"initialized": True, "sealed": True}, 503))
    fails(VaultSealed, lambda: make().probe(LONG))


# -- values that no server should send

NO_DURATIONS = ["-1", "1e999", "NaN", "Infinity", "-Infinity", "true", '"60"', "null", "[]", "{}"]
DEEP = '{"a":' * 600 + "1" + "}" * 600


@pytest.mark.parametrize("value", NO_DURATIONS)
def test_a_duration_that_is_none_is_not_believed(server: ScriptedServer, make: Make, value: str) -> None:
    lease = f'{{"lease_id": "l", "lease_duration": {value}, "renewable": true, "data": {{}}}}'
    auth = f'{{"auth": {{"client_token": "t", "lease_duration": {value}}}}}'
    server.on(CREDS, page(lease.encode()))
    server.on("/v1/lotabots/sys/leases/renew", page(lease.encode()))
    server.on("/v1/lotabots/auth/token/renew-self", page(auth.encode()))
    client = make()
    fails(VaultUnavailable, lambda: read(client, "database/creds/role"))
    fails(VaultUnavailable, lambda: client.renew_lease(LEASE, 60, a_token(), LONG))
    fails(VaultUnavailable, lambda: client.renew_token(a_token(), LONG))


@pytest.mark.parametrize("value", ["1e308", "9" * 400, "315360001"])
def test_a_duration_beyond_ten_years_is_cut_to_them(server: ScriptedServer, make: Make, value: str) -> None:
    server.on("*", page(f'{{"lease_duration": {value}, "renewable": 1}}'.encode()))
    grant = make().renew_lease(LEASE, 60, a_token(), LONG)
    assert grant == Grant(315360000.0, False, grant.started)


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"data": null}',
        '{"data": []}',
        '{"data": [1]}',
        '{"data": "text"}',
        '{"data": {"data": []}}',
        '{"data": {"data": "text", "metadata": []}}',
        '{"data": {"data": {}}, "lease_id": 7}',
        '{"data": {"data": {}}, "lease_id": {"a": 1}}',
        '{"data": {"data": {}}, "request_id": [1]}',
        f'{{"data": {{"data": {DEEP}}}}}',
        '{"data": {"data": {}}, "lease_id": "l", "lease_duration": 0}',
    ],
)
def test_a_secret_that_is_none_is_not_believed(server: ScriptedServer, make: Make, body: str) -> None:
    server.on("/v1/lotabots/app/data/key", page(body.encode()))
    assert "is not Vault's" in fails(VaultUnavailable, lambda: read(make()))


@pytest.mark.parametrize("number", ["true", '"4"', "4.5", "null", "[]"])
def test_a_version_that_is_no_number_is_none(server: ScriptedServer, make: Make, number: str) -> None:
    body = f'{{"data": {{"data": {{}}, "metadata": {{"version": {number}}}}}}}'
    server.on("/v1/lotabots/app/data/key", page(body.encode()))
    assert read(make()).version is None


def test_a_huge_request_id_is_cut(server: ScriptedServer, make: Make) -> None:
    server.on("/v1/lotabots/app/data/key", answer({**kv2({}), "request_id": "r" * 1_000_000}))
    assert read(make()).request_id == "r" * 128


@pytest.mark.parametrize("ttl", ["-1", "null", '"1"', "NaN"])
def test_a_static_role_with_a_time_that_is_none_is_not_believed(server: ScriptedServer, make: Make, ttl: str) -> None:
    server.on(CREDS, page(f'{{"data": {{"rotation_period": 1, "ttl": {ttl}}}}}'.encode()))
    fails(VaultUnavailable, lambda: read(make(), "database/creds/role"))


@pytest.mark.parametrize(
    "auth",
    [
        None,
        [],
        {},
        {"client_token": ""},
        {"client_token": 7},
        {"client_token": "a\r\nX-Evil: 1"},
        {"client_token": "ü"},
    ],
)
def test_a_renewal_without_a_token_that_a_header_can_hold_is_not_believed(
    server: ScriptedServer, make: Make, auth: Any
) -> None:
    server.on("*", answer({"auth": {"lease_duration": 5, **auth} if isinstance(auth, dict) else auth}))
    fails(VaultUnavailable, lambda: make().renew_token(a_token(), LONG))


@pytest.mark.parametrize("errors", [{"a": 1}, 7, [None, 7, {"deep": [[[]]]}], "lease not found"])
def test_errors_of_any_shape_are_no_more_than_a_failure(server: ScriptedServer, make: Make, errors: object) -> None:
    server.on("*", answer({"errors": errors}, 400))
    fails(VaultUnavailable, lambda: make().renew_lease(LEASE, 60, a_token(), LONG))
