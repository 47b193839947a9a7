"""Flask: the extension with one application, with a factory, with settings of its own, and the life of a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flask
import pytest

from tests.fakes import DYNAMIC, STATIC, FakeVault, audit_lines, manager_over
from vault_middleware import SecretConfig, SecretsManager
from vault_middleware.errors import AccessorClosed, ConfigurationError
from vault_middleware.integrations.flask import Vault, current_secrets

from .asking import CLOSED, OPEN
from .leaking import Leaking

seen: list[Any] = []


@pytest.fixture
def app(manager: SecretsManager) -> flask.Flask:
    seen.clear()
    app = flask.Flask(__name__)
    Vault(app, manager, handle_errors=True)

    @app.get("/")
    def view() -> str:
        assert flask.request.state.secrets is current_secrets()  # type: ignore[attr-defined]
        return str(current_secrets().get_secret(STATIC)["value"])

    @app.get("/stream")
    def stream() -> Iterator[str]:
        secrets = flask.request.state.secrets  # type: ignore[attr-defined]
        seen.append(secrets)

        def body() -> Iterator[str]:
            for _ in range(2):
                seen.append(repr(secrets))
                yield str(current_secrets().get_dynamic_secret(DYNAMIC)["username"])

        return body()

    @app.get("/fail")
    def fail() -> str:
        seen.append(current_secrets())
        raise RuntimeError("the view fails")

    @app.get("/missing")
    def missing() -> str:
        return str(current_secrets().get_secret("nowhere/at-all"))

    @app.teardown_request
    def teardown(_error: BaseException | None) -> None:
        seen.append(repr(current_secrets()))

    return app


def test_a_view_finds_the_secrets_in_the_state_and_anywhere_beneath(app: flask.Flask) -> None:
    assert app.test_client().get("/", buffered=True).text == "value-1"


def test_the_state_takes_what_the_application_puts_there(manager: SecretsManager) -> None:
    app = flask.Flask(__name__)
    Vault(app, manager)

    @app.before_request
    def before() -> None:
        flask.request.state.tenant = "acme"  # type: ignore[attr-defined]

    @app.get("/")
    def view() -> str:
        assert flask.request.state.secrets_manager is manager  # type: ignore[attr-defined]
        return str(flask.request.state.tenant)  # type: ignore[attr-defined]

    assert app.test_client().get("/", buffered=True).text == "acme"


def test_a_streamed_body_reads_to_its_end_and_then_the_accessor_is_closed(app: flask.Flask) -> None:
    answer = app.test_client().get("/stream", buffered=True)
    assert answer.text == "user-1user-1"
    assert repr(seen[0]) == CLOSED
    assert seen.count(OPEN) == 3  # two pieces, and the teardown
    assert len(seen) == 4


def test_a_stream_that_is_given_up_closes_the_accessor(app: flask.Flask) -> None:
    with app.test_client().get("/stream", buffered=False) as answer:
        assert next(answer.iter_encoded()) == b"user-1"
        assert repr(seen[0]) == OPEN
    assert repr(seen[0]) == CLOSED


def test_a_view_that_fails_closes_the_accessor_after_the_teardown(app: flask.Flask) -> None:
    assert app.test_client().get("/fail", buffered=True).status_code == 500
    assert repr(seen[0]) == CLOSED
    assert seen[1] == OPEN


def test_an_error_of_ours_is_answered_without_a_word_about_the_secret(app: flask.Flask) -> None:
    answer = app.test_client().get("/missing", buffered=True)
    assert (answer.status_code, answer.text) == (500, "Internal Server Error\n")


def test_one_that_may_pass_is_answered_503_with_retry_after(vault: FakeVault) -> None:
    vault.down = True
    with manager_over(vault, request_timeout="200ms") as manager:
        app = flask.Flask(__name__)
        Vault(app, manager, handle_errors=True)
        app.add_url_rule("/", view_func=lambda: str(current_secrets().get_secret(STATIC)))
        answer = app.test_client().get("/", buffered=True)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


def test_applications_of_a_factory_have_a_manager_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_AUDIT_LOG", "off")
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    vault = Vault()

    def create_app(role: str) -> flask.Flask:
        app = flask.Flask(__name__)
        app.config.update(VAULT_ROLE=role, VAULT_MAX_RETRIES=0, VAULT_ALLOWED_PATHS=["app/*", "db/*"], OTHER="x")
        vault.init_app(app)
        return app

    one, two = create_app("one"), create_app("two")
    with one.app_context():
        first = vault.manager
    with two.app_context():
        second = vault.manager
    assert (first.config.vault_role, second.config.vault_role) == ("one", "two")
    assert first.config.max_retries == 0
    assert first.config.allowed_paths == ("app/*", "db/*")
    assert first.config.vault_addr == "http://127.0.0.1:1"


def test_settings_that_are_passed_in_are_the_only_ones() -> None:
    app = flask.Flask(__name__)
    app.config["VAULT_ROLE"] = "ignored"
    vault = Vault(app, config=SecretConfig(vault_addr="http://127.0.0.1:1", vault_role="mine", audit_log="off"))
    with app.app_context():
        assert vault.manager.config.vault_role == "mine"


def test_a_wrong_setting_fails_when_the_application_is_made() -> None:
    app = flask.Flask(__name__)
    app.config["VAULT_CLIENT_TIMEOUT"] = "soon"
    with pytest.raises(ConfigurationError, match="VAULT_CLIENT_TIMEOUT"):
        Vault(app)


@pytest.mark.parametrize(("path", "where"), [("/body", "body"), ("/header", "header")])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "by init_app"])
def test_a_live_value_in_a_response_raises_an_alarm_and_is_held_back_where_that_is_wanted(
    leaking: Leaking, path: str, where: str, late: bool
) -> None:
    for mode, status, action in (("alarm", 200, "let through"), ("block", 500, "held back")):
        app = flask.Flask(__name__)
        if late:
            Vault(tripwire=mode, manager=leaking.manager).init_app(app)
        else:
            Vault(app, leaking.manager, tripwire=mode)

        @app.get("/body")
        def body() -> str:
            return leaking.value()

        @app.get("/header")
        def header() -> flask.Response:
            return flask.Response("fine", headers={"X-Key": leaking.value()})

        before = leaking.counted(where)
        answer = app.test_client().get(path, buffered=True, headers={"X-Request-ID": "asked"})
        assert answer.status_code == status
        assert (leaking.value() in answer.text + str(answer.headers)) == (mode == "alarm")
        assert leaking.counted(where) == before + 1
        line = audit_lines(leaking.audit, "leak_found")[-1]
        assert (line["where"], line["action"], line["request_id"]) == (where, action, "asked")


def test_a_tripwire_that_is_none_fails_when_the_application_is_made(manager: SecretsManager) -> None:
    with pytest.raises(ConfigurationError, match="'alarm' nor 'block'"):
        Vault(flask.Flask(__name__), manager, tripwire="loud")


def test_twice_on_one_application_is_an_error_that_says_so(app: flask.Flask, manager: SecretsManager) -> None:
    with pytest.raises(ConfigurationError, match="once"):
        Vault(app, manager)


def test_without_the_extension_the_manager_is_an_error_that_says_what_to_call() -> None:
    with flask.Flask(__name__).app_context(), pytest.raises(ConfigurationError, match="init_app"):
        _ = Vault().manager


def test_a_request_that_came_through_no_server_says_what_to_use(app: flask.Flask) -> None:
    app.teardown_request_funcs.clear()
    with app.test_request_context("/"), pytest.raises(AccessorClosed, match="test_client"):
        _ = flask.request.state  # type: ignore[attr-defined]
