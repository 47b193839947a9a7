"""What a getter returns: immutable at every depth, and silent about its values."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import pprint
import reprlib
import traceback
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from vault_middleware.secret import DynamicSecret, Lease, Secret

CANARY = "c4n4ry"

LEASE = Lease(f"database/creds/app/{CANARY}", 60.0, True, 1060.0)


def nested() -> dict[str, Any]:
    return {
        "user": CANARY,
        "hosts": [{"password": CANARY}, [CANARY, 1]],
        "deep": {"er": {"key": CANARY, "none": None, "flag": True}},
        "empty": [],
    }


@pytest.fixture(params=["static", "dynamic"])
def secret(request: pytest.FixtureRequest) -> Secret:
    if request.param == "static":
        return Secret("app/db", nested(), version=3, request_id="r-1")
    return DynamicSecret("app/db", nested(), LEASE, request_id="r-1")


# -- a mapping


def test_a_secret_is_read_like_a_dict(secret: Secret) -> None:
    assert isinstance(secret, Mapping)
    assert secret["user"] == CANARY
    assert secret.get("missing") is None
    assert secret.get("missing", 1) == 1
    assert "user" in secret
    assert "missing" not in secret
    assert sorted(secret) == ["deep", "empty", "hosts", "user"]
    assert len(secret) == 4
    assert {**secret} == dict(secret.items())
    assert secret["deep"]["er"]["key"] == CANARY
    assert secret["hosts"][0]["password"] == CANARY
    assert secret["hosts"][1][0] == CANARY


def test_a_secret_knows_where_it_came_from(secret: Secret) -> None:
    assert secret.path == "app/db"
    assert secret.request_id == "r-1"
    assert secret.version == (None if isinstance(secret, DynamicSecret) else 3)


def test_secrets_with_the_same_values_are_equal() -> None:
    assert Secret("a", nested()) == Secret("b", nested())
    assert Secret("a", {"x": 1, "deep": {"y": 2}}) == {"x": 1, "deep": {"y": 2}}
    assert Secret("a", nested()) != Secret("a", {**nested(), "user": "other"})
    assert DynamicSecret("a", nested(), LEASE) == Secret("a", nested())


def test_a_secret_can_be_referred_to_weakly(secret: Secret) -> None:
    assert weakref.ref(secret)() is secret


def test_a_key_that_is_missing_names_the_keys_that_are_there_and_no_value(secret: Secret) -> None:
    with pytest.raises(KeyError) as caught:
        secret["password"]
    assert "'app/db'" in str(caught.value)
    assert "hosts" in str(caught.value)
    assert "password" in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__context__ is None


def test_the_values_can_be_sent_on_as_json_where_that_is_meant(secret: Secret) -> None:
    assert json.loads(json.dumps(dict(secret))) == nested()


# -- it does not change


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.__setitem__("user", "x"),
        lambda s: s.__delitem__("user"),
        lambda s: s.pop("user"),
        lambda s: s.update(user="x"),
        lambda s: setattr(s, "path", "x"),
        lambda s: setattr(s, "version", 1),
        lambda s: setattr(s, "other", 1),
        lambda s: delattr(s, "path"),
        lambda s: s["deep"].__setitem__("x", 1),
        lambda s: s["deep"]["er"].update(key="x"),
        lambda s: s["deep"].__ior__({"x": 1}),
        lambda s: s["deep"].pop("er"),
        lambda s: s["deep"].popitem(),
        lambda s: s["deep"].clear(),
        lambda s: s["deep"].setdefault("x", 1),
        lambda s: s["deep"].__delitem__("er"),
        lambda s: s["hosts"].append(1),
        lambda s: s["hosts"].__setitem__(0, 1),
        lambda s: s["hosts"][0].__setitem__("password", "x"),
        lambda s: s["hosts"][1].__delitem__(0),
    ],
)
def test_a_secret_cannot_be_changed_at_any_depth(secret: Secret, change: Callable[[Any], object]) -> None:
    with pytest.raises((TypeError, AttributeError)) as caught:
        change(secret)
    assert CANARY not in str(caught.value)
    assert json.loads(json.dumps(dict(secret))) == nested()
    assert secret.path == "app/db"


def test_what_the_secret_was_made_from_may_change_without_changing_it() -> None:
    data = nested()
    secret = Secret("a", data)
    data["user"] = "other"
    data["deep"]["er"]["key"] = "other"
    data["hosts"].append("other")
    assert json.loads(json.dumps(dict(secret))) == nested()


def test_a_copy_of_a_secret_is_the_secret(secret: Secret) -> None:
    assert copy.copy(secret) is secret
    assert copy.deepcopy(secret) is secret
    assert copy.deepcopy(secret["deep"]) is secret["deep"]
    assert copy.copy(secret["hosts"]) is secret["hosts"]
    assert copy.deepcopy([secret["hosts"]])[0] is secret["hosts"]


# -- it does not show


def shown_by(value: object) -> str:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s %r", (value, value), None)
    single = logging.LogRecord("x", logging.INFO, "x", 1, "%s", (value,), None)
    return "\n".join(
        [
            *(repr(value), str(value), f"{value}", f"{value!r}"),
            *(pprint.pformat(value), pprint.pformat([value]), pprint.pformat({"a": value}), reprlib.repr(value)),
            *(record.getMessage(), single.getMessage()),
        ]
    )


def test_no_value_is_printed_at_any_depth(secret: Secret) -> None:
    for value in (secret, secret["deep"], secret["deep"]["er"], secret["hosts"], secret["hosts"][0], [secret["hosts"]]):
        assert CANARY not in shown_by(value)
    assert "app/db" in repr(secret)
    assert "hosts" in repr(secret)


def test_the_lease_prints_no_lease_id() -> None:
    secret = DynamicSecret("a", nested(), LEASE)
    for value in (LEASE, secret, [LEASE]):
        assert CANARY not in shown_by(value)
    assert "60.0" in repr(LEASE)


def test_no_value_is_in_a_traceback_that_prints_local_variables(secret: Secret) -> None:
    def handler() -> None:
        deep, hosts, whole = secret["deep"], secret["hosts"], {"s": secret}
        raise LookupError(f"{deep} {hosts} {whole}")

    with pytest.raises(LookupError) as caught:
        handler()
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert CANARY not in shown


def test_a_secret_cannot_be_pickled_in_any_protocol_nor_in_parts(secret: Secret) -> None:
    for value in (secret, secret["deep"], secret["hosts"], {"s": secret}, [secret["hosts"][0]], secret["hosts"][1]):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="pickled"):
                pickle.dumps(value, protocol)


def test_a_secret_has_no_dict_of_its_attributes(secret: Secret) -> None:
    assert not hasattr(secret, "__dict__")


def test_json_refuses_a_secret_as_a_whole(secret: Secret) -> None:
    with pytest.raises(TypeError) as caught:
        json.dumps(secret)
    assert CANARY not in str(caught.value)


# -- leases


def test_a_lease_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LEASE.deadline = 0.0  # type: ignore[misc]


def test_a_renewal_makes_a_new_secret_with_the_same_values() -> None:
    before = DynamicSecret("a", nested(), LEASE, request_id="r-1")
    renewed = dataclasses.replace(LEASE, deadline=2000.0)
    after = before.with_lease(renewed)
    assert (before.lease.deadline, after.lease.deadline) == (1060.0, 2000.0)
    assert after == before
    assert (after.path, after.request_id) == ("a", "r-1")
    assert after["deep"] is before["deep"]
    assert type(after) is DynamicSecret


def test_the_lease_of_a_secret_cannot_be_replaced_in_place() -> None:
    secret = DynamicSecret("a", nested(), LEASE)
    with pytest.raises(TypeError, match="DynamicSecret cannot be changed"):
        secret.lease = LEASE
