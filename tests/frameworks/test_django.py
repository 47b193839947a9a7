"""Django: the middleware under WSGI and ASGI, its settings and checks, and the end of each kind of request."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from django.core.checks import CheckMessage
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import AsyncClient, Client, override_settings
from starlette.types import Message
from werkzeug.test import Client as WSGIClient
from werkzeug.test import create_environ

from tests.fakes import DYNAMIC, STATIC, FakeVault, audit_lines, manager_over
from vault_middleware import SecretsManager, current_secrets
from vault_middleware.engine import engine
from vault_middleware.errors import AccessorClosed, ConfigurationError, SecretUnavailable, VaultMiddlewareError
from vault_middleware.integrations.django import VaultMiddleware, check_settings, secrets_manager

from .asking import CLOSED, OPEN, get, http_scope, once
from .django_project import MIDDLEWARE, holding, passing_sync, project, seen
from .leaking import Leaking

PASSING = f"{passing_sync.__module__}.passing_sync"

stacks = pytest.mark.parametrize(
    "middleware",
    [[MIDDLEWARE], [PASSING, MIDDLEWARE], [MIDDLEWARE, PASSING]],
    ids=["alone", "within a sync one", "around a sync one"],
)


@pytest.fixture(autouse=True)
def settings(manager: SecretsManager) -> Iterator[None]:
    seen.clear()
    with project(VAULT_MIDDLEWARE={"MANAGER": manager, "HANDLE_ERRORS": True}):
        yield


def asgi(path: str) -> Any:
    return get(ASGIHandler(), path)


def wsgi(path: str) -> Any:
    return WSGIClient(WSGIHandler()).get(path, buffered=True)


def collect() -> None:
    """Collect what a response that failed half-way under ASGI left: the request's own body, which Django leaves open then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@stacks
@pytest.mark.parametrize("view", ["/view", "/aview"])
@pytest.mark.parametrize("ask", [wsgi, asgi])
def test_a_view_of_each_kind_finds_the_secrets_under_each_kind_of_server(
    ask: Any, view: str, middleware: list[str]
) -> None:
    with override_settings(MIDDLEWARE=middleware):
        assert ask(view).text == "value-1"
    assert repr(seen[0]) == CLOSED


def test_a_streamed_body_reads_to_its_end_under_wsgi() -> None:
    answer = WSGIClient(WSGIHandler()).get("/stream")
    assert answer.text == "user-1user-1"
    answer.close()
    assert seen[1:] == [OPEN, OPEN]
    assert repr(seen[0]) == CLOSED


def test_a_stream_that_is_given_up_closes_the_accessor_under_wsgi() -> None:
    answer = WSGIClient(WSGIHandler()).get("/stream", buffered=False)
    assert next(iter(answer.response)) == b"user-1"
    assert repr(seen[0]) == OPEN
    answer.close()
    assert repr(seen[0]) == CLOSED


def test_a_streamed_body_reads_to_its_end_under_asgi() -> None:
    assert asgi("/astream").text == "user-1user-1"
    assert seen[1:] == [OPEN, OPEN]
    assert repr(seen[0]) == CLOSED


def test_a_body_that_fails_closes_the_accessor_under_asgi() -> None:
    gc.disable()  # which would close it too, in the end
    try:
        asgi("/astream?fail=1")
        assert repr(seen[0]) == CLOSED
        collect()
    finally:
        gc.enable()


@pytest.mark.parametrize("ask", [wsgi, asgi])
def test_a_view_that_fails_closes_the_accessor(ask: Any) -> None:
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=False):
        assert ask("/fail").status_code == 500
    assert repr(seen[0]) == CLOSED


def test_a_client_that_goes_away_closes_the_accessor_and_gives_its_lease_back(manager: SecretsManager) -> None:
    holding.clear()

    async def receive() -> Message:
        if not holding:
            holding.append(asyncio.Event())
            return {"type": "http.request", "body": b"", "more_body": False}
        await holding[0].wait()
        return {"type": "http.disconnect"}

    once(ASGIHandler(), http_scope("/hang"), receive=receive)
    assert repr(seen[0]) == CLOSED
    assert manager.health()["leases"]["active"] == 1


def test_after_a_request_there_is_no_current_accessor() -> None:
    Client().get("/view")
    with pytest.raises(AccessorClosed):
        current_secrets()

    async def main() -> None:
        await AsyncClient().get("/aview")  # in this very task, where no task's end undoes anything
        with pytest.raises(AccessorClosed):
            current_secrets()

    asyncio.run(main())


def test_the_audit_line_names_the_request(vault: FakeVault, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    with (
        manager_over(vault, audit=audit) as manager,
        override_settings(VAULT_MIDDLEWARE={"MANAGER": manager}),
    ):
        Client().get("/view", headers={"X-Request-ID": "by-wsgi"})
        get(ASGIHandler(), "/aview", **{"X-Request-ID": "by-asgi"})
    lines = audit_lines(audit, "secret_access")
    assert [(line["request_id"], line["method"], line["path"]) for line in lines] == [
        ("by-wsgi", "GET", "/view"),
        ("by-asgi", "GET", "/aview"),
    ]


def test_an_error_of_ours_is_answered_where_that_is_wanted(manager: SecretsManager) -> None:
    answer = wsgi("/missing")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error\n")
    with override_settings(VAULT_MIDDLEWARE={"MANAGER": manager}), pytest.raises(LookupError):
        Client().get("/missing")


def test_one_that_may_pass_is_answered_503_with_retry_after(vault: FakeVault) -> None:
    vault.down = True
    with (
        manager_over(vault, request_timeout="200ms") as manager,
        override_settings(VAULT_MIDDLEWARE={"MANAGER": manager, "HANDLE_ERRORS": True}),
    ):
        answer = wsgi("/view")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


def test_the_settings_lie_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    monkeypatch.setenv("VAULT_ROLE", "of-the-environment")
    values = {"VAULT_ROLE": "of-the-settings", "VAULT_AUDIT_LOG": "off", "VAULT_SKIP_VERIFY": False}
    with override_settings(VAULT_MIDDLEWARE=values):
        config = secrets_manager().config
        assert secrets_manager() is secrets_manager()
    assert (config.vault_addr, config.vault_role) == ("http://127.0.0.1:1", "of-the-settings")


def test_threads_that_ask_for_the_manager_at_once_get_the_same_one() -> None:
    found: set[int] = set()
    with override_settings(VAULT_MIDDLEWARE={"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_AUDIT_LOG": "off"}):
        threads = [threading.Thread(target=lambda: found.add(id(secrets_manager()))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(found) == 1


def test_with_other_settings_the_manager_that_was_made_before_is_closed(vault: FakeVault) -> None:
    values = {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_AUDIT_LOG": "off"}
    with patch.object(engine, "VaultClient", vault), override_settings(VAULT_MIDDLEWARE=values):
        made = secrets_manager()
        assert Client().get("/view").text == "value-1"
        made.get_dynamic_secret(DYNAMIC)
        assert made.started
        with override_settings(VAULT_MIDDLEWARE={**values, "VAULT_ROLE": "another"}):
            assert not made.started
            assert vault.tokens_revoked == 1
            assert secrets_manager() is not made
            another = secrets_manager()
        assert secrets_manager() not in (made, another)
    with pytest.raises(SecretUnavailable, match="closed"):
        made.get_secret(STATIC)


def test_a_manager_of_the_projects_own_stays_open_with_other_settings(manager: SecretsManager) -> None:
    assert Client().get("/view").text == "value-1"
    with override_settings(VAULT_MIDDLEWARE={"MANAGER": manager}):
        assert manager.started
    assert manager.get_secret(STATIC)["value"] == "value-1"


# -- the tripwire


@contextmanager
def tripwire(leaking: Leaking, mode: str) -> Iterator[None]:
    with override_settings(VAULT_MIDDLEWARE={"MANAGER": leaking.manager, "TRIPWIRE": mode}):
        yield


@stacks
@pytest.mark.parametrize("ask", [wsgi, asgi])
@pytest.mark.parametrize(("place", "where"), [("body", "body"), ("header", "header"), ("cookie", "header")])
def test_a_live_value_in_a_response_raises_an_alarm_and_is_held_back_where_that_is_wanted(
    leaking: Leaking, ask: Any, place: str, where: str, middleware: list[str]
) -> None:
    for number, (mode, status, action) in enumerate((("alarm", 200, "let through"), ("block", 500, "held back")), 1):
        with tripwire(leaking, mode), override_settings(MIDDLEWARE=middleware):
            answer = ask(f"/leak?in={place}")
        assert answer.status_code == status
        assert (leaking.value() in answer.text + str(answer.headers)) == (mode == "alarm")
        assert leaking.counted(where) == number
        line = audit_lines(leaking.audit, "leak_found")[-1]
        read = audit_lines(leaking.audit, "secret_access")[-2]  # the last is this test's own
        assert (line["where"], line["action"]) == (where, action)
        assert line["request_id"] == read["request_id"]
        assert seen == ["closed"] * number, "what the response has open is closed, whether it is sent or not"


@pytest.mark.parametrize("path", ["/leak/stream", "/leak/astream", "/leak/file"])
@pytest.mark.parametrize("ask", [wsgi, asgi])
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_a_streamed_body_is_looked_at_piece_by_piece_and_ends_where_it_stands(
    leaking: Leaking, ask: Any, path: str
) -> None:
    with tripwire(leaking, "alarm"):
        assert leaking.value() in ask(path).text
    assert leaking.counted("body") == 1
    with tripwire(leaking, "block"):
        if ask is wsgi:
            body = WSGIHandler()(create_environ(path), lambda *_start: None)
            with closing(body), pytest.raises(VaultMiddlewareError, match="held back"):
                list(body)
        else:
            sent: list[Any] = []
            with suppress(VaultMiddlewareError):
                once(ASGIHandler(), http_scope(path), {"type": "http.request"}, sent=sent)
            assert leaking.value().encode() not in b"".join(message.get("body", b"") for message in sent)
            assert not any(message["type"] == "http.response.body" and not message.get("more_body") for message in sent)
            collect()
    assert leaking.counted("body") == 2


@pytest.mark.parametrize("mode", ["alarm", "block"])
def test_a_response_without_a_live_value_goes_out_as_it_is(leaking: Leaking, mode: str) -> None:
    with tripwire(leaking, mode):
        assert wsgi("/leak?in=none").text == "fine"
        assert asgi("/leak?in=none").text == "fine"
        assert wsgi("/stream").text == asgi("/astream").text == "user-1user-1"
    assert audit_lines(leaking.audit, "leak_found") == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"TRIPWIRE": "loud"}, "'alarm' nor 'block'"),
        ({"VAULT_CLIENT_TIMEOUT": "soon"}, "VAULT_CLIENT_TIMEOUT"),
        ({"VAULT_ROLLE": "x"}, "VAULT_ROLLE"),
        (["VAULT_ROLE"], "VAULT_MIDDLEWARE"),
    ],
    ids=["tripwire", "value", "name", "kind"],
)
def test_a_wrong_setting_fails_the_start_and_is_an_error_of_the_checks(values: Any, named: str) -> None:
    with override_settings(VAULT_MIDDLEWARE=values):
        with pytest.raises(ConfigurationError, match=named):
            VaultMiddleware(lambda _request: None)
        (found,) = check_settings()
    assert found.id == "vault_middleware.E001"
    assert named in found.msg


def test_a_project_without_the_middleware_is_warned_by_the_checks() -> None:
    with override_settings(MIDDLEWARE=[]):
        assert [each.id for each in check_settings()] == ["vault_middleware.W001"]


def test_a_sound_project_has_nothing_to_be_told() -> None:
    assert check_settings() == []


def test_the_checks_run_by_being_an_installed_application() -> None:
    from django.core import checks

    with override_settings(
        INSTALLED_APPS=["vault_middleware.integrations.django.VaultConfig"], VAULT_MIDDLEWARE={"VAULT_ROLLE": "x"}
    ):
        found: list[CheckMessage] = checks.run_checks()
    assert "vault_middleware.E001" in {each.id for each in found}
    assert STATIC not in str(found)
