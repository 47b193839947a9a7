"""Django's backend beside its requests: commands, transactions, server-side cursors, and settings that are wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from tests.integration.support import DYNAMIC, eventually, running
from vault_middleware import SecretsManager
from vault_middleware.devstack import DevStack

from .kinds import django_databases
from .test_on_postgres import rotate

pytestmark = pytest.mark.integration


@pytest.fixture
def manager(stack: DevStack) -> Iterator[SecretsManager]:
    with running(stack) as started:
        yield started


@pytest.fixture
def connection(stack: DevStack, manager: SecretsManager) -> Iterator[Any]:
    made: Any = django_databases(stack, manager, DYNAMIC)["default"]
    yield made
    made.close()


def who(connection: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        return str(cursor.fetchone()[0])


def test_a_command_without_requests_follows_before_its_next_query(
    stack: DevStack, manager: SecretsManager, connection: Any
) -> None:
    first = who(connection)
    rotate(manager)
    assert first in stack.postgres.users(), "nobody but its owner knows whether it is in use"
    assert who(connection) != first
    eventually(lambda: first not in stack.postgres.users(), "the old user to go")


def test_a_transaction_keeps_its_connection_and_the_next_one_begins_on_another(
    manager: SecretsManager, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "get_connection", lambda using=None: connection)
    with transaction.atomic():
        first = who(connection)
        rotate(manager)
        with transaction.atomic():
            assert who(connection) == first
        assert who(connection) == first
    with transaction.atomic():
        assert who(connection) != first


def test_a_server_side_cursor_keeps_its_connection(manager: SecretsManager, connection: Any) -> None:
    first = who(connection)
    with connection.chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 10000)")
        assert cursor.fetchone() == (1,)
        rotate(manager)
        assert who(connection) == first
        assert len(cursor.fetchall()) == 9999
    assert who(connection) != first


def test_a_connection_is_not_closed_under_its_owner_who_has_only_just_taken_it(
    manager: SecretsManager, connection: Any
) -> None:
    who(connection)
    connection.close_if_unusable_or_obsolete()  # as at a request's end
    connection.ensure_connection()
    rotate(manager)
    assert connection.connection is not None
    connection.close_if_unusable_or_obsolete()
    assert connection.connection is None, "an old one does not stay beyond its request"


def test_between_two_requests_it_is_closed_by_the_rotation_itself(
    stack: DevStack, manager: SecretsManager, connection: Any
) -> None:
    first = who(connection)
    connection.close_if_unusable_or_obsolete()
    rotation = threading.Thread(target=rotate, args=(manager,))
    rotation.start()
    rotation.join(20)
    assert connection.connection is None
    eventually(lambda: first not in stack.postgres.users(), "the old user to go")
    assert who(connection) != first


def test_without_persistent_connections_the_lease_is_given_back_with_each_request(
    stack: DevStack, manager: SecretsManager
) -> None:
    connection: Any = django_databases(stack, manager, DYNAMIC, CONN_MAX_AGE=0)["default"]
    first = who(connection)
    connection.close_if_unusable_or_obsolete()
    rotate(manager)
    eventually(lambda: first not in stack.postgres.users(), "the old user to go")


def test_settings_that_cannot_work_say_what_to_set(stack: DevStack, manager: SecretsManager) -> None:
    for options, word in (({}, "vault_path"), ({"vault_path": DYNAMIC, "pool": True}, "use CONN_MAX_AGE")):
        given = {"vault_manager": manager, **options}
        connection: Any = django_databases(stack, manager, DYNAMIC, OPTIONS=given, CONN_MAX_AGE=0)["default"]
        with pytest.raises(ImproperlyConfigured, match=word):
            who(connection)
