"""For the unit tests of who uses this package: the real manager over a Vault in memory, and no server.

::

    with override(secrets={"api-gateway/api-key": {"value": "k"}}) as vault:
        assert client.get("/").text == "k"
        vault.rotate("api-gateway/api-key", {"value": "l"})
        vault.down()

Cache, pins, leases, audit and errors are the real ones; the clock stands still until it is told otherwise.
"""

from .manager import StubManager
from .overriding import override
from .vault import MemoryVault, leased

__all__ = ["MemoryVault", "StubManager", "leased", "override"]
