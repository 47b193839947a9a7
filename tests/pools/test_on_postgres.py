"""Each kind of pool on a real PostgreSQL, one rotation at a time: what happens to idle, busy and refused connections."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.integration.support import DYNAMIC, eventually, running
from vault_middleware import SecretsManager
from vault_middleware.devstack import DevStack

from .kinds import KINDS

pytestmark = pytest.mark.integration

WHO = "SELECT current_user"

#: Of an advisory lock, which holds up a transaction for as long as the test wants.
LOCK = 4711


def rotate(manager: SecretsManager) -> None:
    manager._engine.reader.refresh(DYNAMIC)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def test_after_a_rotation_the_idle_connections_are_closed_and_the_old_user_goes_before_anyone_asks(
    kind: Any, stack: DevStack
) -> None:
    with running(stack) as manager, kind(stack, manager, DYNAMIC) as transaction:
        first = transaction([WHO])
        rotate(manager)
        eventually(lambda: first not in stack.postgres.users(), "the old user to go")
        second = transaction([WHO])
        assert second != first
        assert transaction([WHO]) == second
    eventually(lambda: not stack.postgres.users(), "the database users to go")  # the server revokes in the background


def test_a_busy_connection_finishes_its_transaction_and_its_lease_is_held_until_then(
    kind: Any, stack: DevStack
) -> None:
    seen: list[str] = []
    with stack.postgres.connect() as locker, running(stack) as manager, kind(stack, manager, DYNAMIC) as transaction:
        locker.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        busy = threading.Thread(
            target=lambda: seen.append(transaction([WHO, f"SELECT pg_advisory_xact_lock({LOCK})::text"])), daemon=True
        )
        busy.start()
        waiting = "SELECT usename FROM pg_stat_activity WHERE wait_event = 'advisory'"
        row = eventually(lambda: locker.execute(waiting).fetchone(), "the transaction to be busy")
        assert row
        first = row[0]
        rotate(manager)
        assert transaction([WHO]) != first
        rotate(manager)
        # The second old user goes while the first, older one, is still at work.
        eventually(lambda: len(stack.postgres.users()) == 2, "the idle connections to go")
        assert first in stack.postgres.users()
        # The user can be gone before the server's answer is here that says so.
        eventually(lambda: manager.health()["leases"]["draining"] == 1, "the second lease to be let go of")
        locker.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))
        busy.join(20)
        assert seen == [first]
        eventually(lambda: first not in stack.postgres.users(), "the old user to go with its last connection")


def test_a_credential_that_the_database_refuses_is_replaced_and_the_query_works(kind: Any, stack: DevStack) -> None:
    with running(stack) as manager:
        refused = manager.get_dynamic_secret(DYNAMIC)["username"]
        stack.postgres.execute(f"ALTER ROLE \"{refused}\" PASSWORD 'another'")
        with kind(stack, manager, DYNAMIC) as transaction:
            assert transaction([WHO]) != refused


def test_a_user_that_is_gone_from_the_database_is_replaced_too(kind: Any, stack: DevStack) -> None:
    with running(stack) as manager:
        gone = manager.get_dynamic_secret(DYNAMIC)["username"]
        stack.postgres.execute(f'DROP ROLE "{gone}"')
        with kind(stack, manager, DYNAMIC) as transaction:
            assert transaction([WHO]) != gone
