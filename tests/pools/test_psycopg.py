"""psycopg's pool beside what all pools do: a lease ends with the closing of its connection, or with its loss."""

from __future__ import annotations

import pytest

from tests.integration.support import DYNAMIC, eventually, running
from vault_middleware.devstack import DevStack
from vault_middleware.integrations.psycopg import ConnectionPool

from .test_on_postgres import rotate

pytestmark = pytest.mark.integration


def test_the_lease_ends_with_the_closing_of_the_connection_and_not_when_its_object_is_forgotten(
    stack: DevStack,
) -> None:
    where = f"host={stack.postgres.host} port={stack.postgres.port} dbname=postgres"
    with (
        running(stack) as manager,
        ConnectionPool(where, secrets=manager, path=DYNAMIC, min_size=1, max_size=1) as pool,
    ):
        with pool.connection() as connection:
            first = connection.info.user
            rotate(manager)
            assert connection.execute("SELECT 1").fetchone() == (1,)
        eventually(lambda: first not in stack.postgres.users(), "the old user to go")
        assert connection.closed


def test_a_connection_that_was_lost_holds_nothing(stack: DevStack) -> None:
    where = f"host={stack.postgres.host} port={stack.postgres.port} dbname=postgres"
    with (
        running(stack) as manager,
        ConnectionPool(where, secrets=manager, path=DYNAMIC, min_size=1, max_size=1) as pool,
    ):
        connection = pool.getconn()
        first = connection.info.user
        stack.postgres.execute(f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        with pytest.raises(Exception, match=r"terminat|closed"):
            connection.execute("SELECT 1")
        pool.putconn(connection)
        rotate(manager)
        eventually(lambda: first not in stack.postgres.users(), "the old user to go", 8)  # its lease has 10 s or more
