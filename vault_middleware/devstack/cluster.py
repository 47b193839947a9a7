"""Three OpenBao servers on one replicated storage (Raft), which survive the loss of one of them."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from .openbao import OpenBao
from .process import DevStackError, free_port, wait_until

__all__ = ["Cluster", "Node"]

# The short intervals let a new member vote within seconds; by default it would take ten and more.
_STORAGE = """\
storage "raft" {{
  path = "{folder}/data"
  node_id = "{name}"
  performance_multiplier = 1
  autopilot_reconcile_interval = "500ms"
  autopilot_update_interval = "250ms"
  {join}
}}
cluster_addr = "http://127.0.0.1:{cluster_port}\""""

_STABLE = {"server_stabilization_time": "1s"}

#: How long an election may take on a busy machine, in seconds.
_ELECTION = 30.0


class Node(OpenBao):
    """One member of a cluster; an `OpenBao` that founds it, or joins it.

    Attributes
    ----------
    name : str
        Its id in the cluster.
    paused : bool
        Whether it was paused and not resumed.
    """

    def __init__(self, name: str, founder: Node | None = None) -> None:
        super().__init__()
        self.name = name
        self.paused = False
        self._founder = founder
        self._cluster_port = 0
        if founder is not None:
            self._seal_key = founder._seal_key

    @property
    def active(self) -> bool:
        """Whether it answers as the leader."""
        return self.running and not self.paused and self.health() == http.client.OK

    def pause(self) -> None:
        """As `OpenBao.pause`."""
        super().pause()
        self.paused = True

    def resume(self) -> None:
        """As `OpenBao.resume`."""
        super().resume()
        self.paused = False

    def kill(self) -> None:
        """As `OpenBao.kill`."""
        super().kill()
        self.paused = False

    def stop(self) -> None:
        """As `OpenBao.stop`."""
        super().stop()
        self.paused = False

    def _run(self, port: int) -> None:
        if not self._cluster_port or self.port != port:
            self._cluster_port = free_port()
        super()._run(port)

    def _storage(self) -> str:
        join = "" if self._founder is None else f'retry_join {{ leader_api_addr = "{self._founder.address}" }}'
        return _STORAGE.format(folder=self.folder, name=self.name, join=join, cluster_port=self._cluster_port)

    def _listener(self) -> list[str]:
        return [*super()._listener(), f'cluster_address = "127.0.0.1:{self._cluster_port}"']

    def _serves(self) -> bool:
        return self.health() in (http.client.OK, http.client.TOO_MANY_REQUESTS)  # the latter on a standby

    def _initialise(self) -> None:
        if self._founder is None:
            super()._initialise()
            self._live().wait_ready(lambda: self.active, _ELECTION)
            self.request("POST", "sys/storage/raft/autopilot/configuration", _STABLE)
            return
        self.root_token, self._recovery_key = self._founder.root_token, self._founder._recovery_key
        self._live().wait_ready(self._has_joined, 15.0)
        # It would try only after five seconds to unseal what has been replicated; started anew it does so at once.
        self.restart()

    def _has_joined(self) -> bool:
        with contextlib.suppress(DevStackError):
            # The number of its keys is part of what is replicated, and comes after all that unsealing needs.
            return bool(self.request("GET", "sys/seal-status", token="")["t"])
        return False


class Cluster(OpenBao):
    """Three nodes, administered as one server: what goes to an `OpenBao` goes to the leader; a context manager.

    ``DevStack(bao=Cluster())`` is the service's whole environment on it. There is no address that fails over: that is a
    balancer's business, in front of `addresses`.

    Attributes
    ----------
    nodes : tuple of Node
        The members, by name ``node-1`` … ``node-3``.
    """

    def __init__(self) -> None:
        super().__init__()
        founder = Node("node-1")
        self.nodes = (founder, Node("node-2", founder), Node("node-3", founder))

    def start(self) -> Self:
        """Start all nodes and wait until every one has a vote, some seven seconds; later, bring up those that are down."""
        with contextlib.ExitStack() as undo:
            if not self.root_token:
                undo.callback(self.close)
            for node in self.nodes:
                node.start()
                if node.paused:
                    node.resume()
            self.root_token = self.nodes[0].root_token
            self._wait_for(self._all_vote, "every node had a vote")
            undo.pop_all()
        return self

    def stop(self) -> None:
        """End all nodes in good order; their storage stays for `start`."""
        for node in self.nodes:
            node.stop()

    def close(self) -> None:
        """End all nodes and remove their storage."""
        for node in self.nodes:
            node.close()
        self.root_token = ""

    def leader(self, *, other_than: Node | None = None) -> Node:
        """The active node, and not *other_than*; waits for an election that is under way."""
        found: list[Node] = []

        def look() -> bool:
            found[:] = [node for node in self.nodes if node is not other_than and node.active]
            return bool(found)

        self._wait_for(look, "there was a leader")
        return found[0]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The nodes' addresses, in the order of `nodes`."""
        return tuple(node.address for node in self.nodes)

    @property
    def address(self) -> str:
        """The leader's address, for now."""
        return self.leader().address

    @property
    def pid(self) -> int:
        """The leader's process id."""
        return self.leader().pid

    @property
    def running(self) -> bool:
        """Whether no node's process has ended."""
        return all(node.running for node in self.nodes)

    @property
    def folder(self) -> Path:
        """The first node's folder, which stays also while that node is down."""
        return self.nodes[0].folder

    def audit_log(self) -> list[dict[str, Any]]:
        """The audit entries of all nodes, by time."""
        return sorted((entry for node in self.nodes for entry in node.audit_log()), key=itemgetter("time"))

    def log_tail(self) -> str:
        """The last lines of each node's own log."""
        return "\n".join(f"{node.name}:\n{node.log_tail()}" for node in self.nodes)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        token: str | None = None,
        namespace: str = "",
        timeout: float = 15.0,
    ) -> dict[str, Any]:
        """One call to the leader; see `OpenBao.request`."""
        return self.leader().request(method, path, body, token=token, namespace=namespace, timeout=timeout)

    def voters(self) -> int:
        """How many members have a vote."""
        servers = self.request("GET", "sys/storage/raft/configuration")["data"]["config"]["servers"]
        return sum(bool(server["voter"]) for server in servers)

    def health(self) -> int:
        """200 where some node is the leader; else the first node's status."""
        return http.client.OK if any(node.active for node in self.nodes) else self.nodes[0].health()

    def pause(self, node: Node | None = None) -> None:
        """Freeze *node*, or the leader."""
        (node or self.leader()).pause()

    def resume(self, node: Node | None = None) -> None:
        """Let *node* go on, or all that were paused; wait until there is a leader."""
        for each in self.nodes if node is None else (node,):
            if each.paused:
                each.resume()
        self.leader()

    def kill(self, node: Node | None = None) -> None:
        """End *node*, or the leader, at once (SIGKILL)."""
        (node or self.leader()).kill()

    def restart(self, node: Node | None = None) -> None:
        """Start *node* again on its storage, or all one by one; one that still runs is stopped first."""
        for each in self.nodes if node is None else (node,):
            each.restart()
            self.leader()

    def step_down(self) -> Node:
        """Make the leader give up its office, which it does not take again for ten seconds; the new leader."""
        old = self.leader()
        old.request("PUT", "sys/step-down")
        return self.leader(other_than=old)

    def seal(self) -> None:
        """Seal the leader; another takes over."""
        self.leader().seal()

    def unseal(self) -> None:
        """Start the nodes anew that are sealed: they unseal themselves."""
        for node in self.nodes:
            if node.health() == http.client.SERVICE_UNAVAILABLE:
                node.restart()
        self.leader()

    def _all_vote(self) -> bool:
        with contextlib.suppress(DevStackError):  # the leader has just gone
            return self.voters() == len(self.nodes)
        return False

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        if not wait_until(condition, _ELECTION, every=0.02):
            raise DevStackError(
                f"it took longer than {_ELECTION:g} s until {what}; their last words:\n{self.log_tail()}"
            )
