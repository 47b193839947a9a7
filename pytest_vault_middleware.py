"""The pytest plugin of vault-middleware: secrets in memory for unit tests, real servers for the others.

It imports the package only when one of its fixtures is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vault_middleware.devstack import DevStack
    from vault_middleware.testing import StubManager

_MARKER = "vault_secrets(secrets, **settings): what the fixture of that name holds, and settings of SecretConfig"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def vault_secrets(request: pytest.FixtureRequest) -> Iterator[StubManager]:
    """For the time of the test every manager of the process is this stub; see `vault_middleware.testing.override`.

    What it holds is said by ``@pytest.mark.vault_secrets({path: {name: value}})``; the marker nearest to the test wins a
    path that more than one has (of class and module, say).
    """
    from vault_middleware.testing import override  # noqa: PLC0415 (whoever uses no fixture, pays for no import)

    secrets, settings = {}, {}
    for marker in reversed(list(request.node.iter_markers("vault_secrets"))):
        for given in marker.args:
            secrets.update(given)
        settings.update(marker.kwargs)
    with override(secrets=secrets, **settings) as stub:
        yield stub


@pytest.fixture(scope="session")
def vault_devstack() -> Iterator[DevStack]:
    """A real OpenBao, PostgreSQL and TokenReview for the whole session; wants ``vault-middleware[demo]``."""
    from vault_middleware.devstack import DevStack  # noqa: PLC0415

    with DevStack() as stack:
        yield stack
