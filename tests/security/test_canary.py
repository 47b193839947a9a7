"""No secret leaves: a canary in every value, and a look at everything that is written, printed, raised or pickled."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from vault_middleware import RequestSecrets, SecretsManager, VaultMiddleware, VaultWSGIMiddleware
from vault_middleware.devstack import DevStack
from vault_middleware.errors import VaultMiddlewareError

from ..integration.support import DYNAMIC, JWT, STATIC, eventually, settings


class Everything(logging.Handler):
    """Keeps each record as text, its arguments and traceback too, of every logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.getMessage()} {record.args!r} {record.__dict__!r}")
        if record.exc_info:
            self.texts.append("".join(traceback.format_exception(*record.exc_info)))


@pytest.fixture
def log() -> Iterator[Everything]:
    handler = Everything()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def failures(*calls: Callable[[], object]) -> list[VaultMiddlewareError]:
    """What each call raises."""
    raised = []
    for call in calls:
        with pytest.raises(VaultMiddlewareError) as error:
            call()
        raised.append(error.value)
    return raised


def everything_of(error: BaseException) -> str:
    """All that can be seen of an error: message, arguments, attributes, causes, and how it pickles."""
    seen: list[str] = []
    one: BaseException | None = error
    while one is not None:
        seen += [str(one), repr(one), repr(one.args), repr(vars(one)), "".join(traceback.format_exception(one))]
        one = one.__cause__ or one.__context__
    return "\n".join([*seen, repr(pickle.dumps(error))])


def printed(*objects: object) -> str:
    return "\n".join(f"{one!r} {one!s} {one:>1}" if _formats(one) else f"{one!r} {one!s}" for one in objects)


def _formats(one: object) -> bool:
    return type(one).__format__ is not object.__format__


def test_no_value_and_no_token_is_seen_anywhere_through_a_whole_life(
    make_stack: Callable[..., DevStack], tmp_path: Path, log: Everything, capfd: pytest.CaptureFixture[str]
) -> None:
    stack = make_stack(lease_ttl=2, lease_max_ttl=4, token_ttl=3, token_max_ttl=6)
    audit, registry = tmp_path / "audit.jsonl", CollectorRegistry()
    canaries = stack.secret_values()
    seen: list[str] = []
    with SecretsManager(settings(stack, VAULT_AUDIT_LOG=str(audit)), registry=registry) as manager:
        tokens: set[str] = set()

        def note() -> set[str]:
            for generation in list(manager._engine.session._generations):
                tokens.add(generation.token.value)
            return tokens

        users: set[str] = set()
        with RequestSecrets(manager) as request:
            dynamic = request.get_dynamic_secret(DYNAMIC)
            secrets = [request.get_secret(STATIC), request.get_secret(JWT), dynamic]
            canaries |= {dynamic["password"]}

            def rotated() -> bool:
                note()
                now = manager.get_dynamic_secret(DYNAMIC)
                canaries.add(now["password"])
                users.add(now["username"])
                return len(users) > 1 and len(tokens) > 1

            eventually(rotated, "a rotation of the lease and of the token")
            jwt = stack.token_path.read_text()
            canaries |= tokens | {jwt}
            errors = failures(
                lambda: request.get_secret("api-gateway/none"),
                lambda: request.get_secret("nothing/here"),
                lambda: request.get_dynamic_secret(STATIC),
                lambda: request.get_secret("../x"),
                lambda: manager.get_secret(STATIC, version=99),
            )
            with pytest.raises(KeyError) as missing:
                secrets[0]["no such key"]
            seen.append("".join(traceback.format_exception(missing.value)))
            engine = manager._engine
            seen.append(
                printed(
                    *secrets,
                    secrets[1]["keys"],
                    dynamic.lease,
                    request,
                    manager,
                    manager.config,
                    engine.cache,
                    *engine.cache.entries.values(),
                    *engine.leases.live(),
                    *engine.session._generations,
                    *[generation.token for generation in engine.session._generations],
                    manager.health(),
                    VaultMiddleware(_asgi, manager=manager),
                    VaultWSGIMiddleware(_wsgi, manager=manager),
                )
            )
            assert json.dumps(manager.health())
            for secret in (*secrets, secrets[1]["keys"]):
                with pytest.raises(TypeError, match="cannot be pickled"):
                    pickle.dumps(secret)
                assert copy.deepcopy(secret) is secret
        stack.bao.seal()
        errors += failures(lambda: manager.get_secret("api-gateway/another"))
        stack.bao.unseal()
        seen += [everything_of(error) for error in errors]
        seen.append(generate_latest(registry).decode())
    out, err = capfd.readouterr()
    seen += [out, err, audit.read_text(), *log.texts]
    assert len(canaries) >= 8
    for text in seen:
        for canary in canaries:
            assert canary not in text


async def _asgi(scope: object, receive: object, send: object) -> None:
    """Never called."""


def _wsgi(environ: object, start_response: object) -> list[bytes]:
    return []


def test_after_close_the_package_holds_no_value_and_no_token_any_more(stack: DevStack) -> None:
    manager = SecretsManager(settings(stack), registry=CollectorRegistry()).start()
    manager.get_secret(STATIC)
    manager.get_dynamic_secret(DYNAMIC)
    manager.close()
    assert not manager._engine.cache.entries
    assert not manager._engine.leases.live()
    assert manager._engine.session.current is None
