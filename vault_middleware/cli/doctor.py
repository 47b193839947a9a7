"""The doctor: from the pod outwards, what there is and what is wrong, with what mends it. It changes nothing for good.

It logs in as the app does, makes one lease of each leased path, and revokes both again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

from ..config import SecretConfig
from ..errors import ConfigurationError, VaultMiddlewareError, VaultUnavailable
from ..vault.client import Token, VaultClient
from ..vault.inspection import Inspector
from . import checks_kubernetes
from .checks_access import Access, check_access
from .checks_leases import check_lease
from .checks_login import check_login, check_token
from .checks_pod import check_claims, check_credential, read_claims
from .checks_server import check_clock, check_server, check_way
from .findings import Findings
from .rules import Place
from .wanted import Wanted, wanted

__all__ = ["Doctor"]


class Doctor:
    """One examination; :meth:`examine` gives the findings, :meth:`run` prints them.

    Parameters
    ----------
    environ
        The app's environment.
    paths, audit_log
        The secret paths to check; see :func:`~vault_middleware.cli.wanted.wanted`.
    leases
        Also make a lease of each leased path, renew it and revoke it again.
    processes
        How many processes of the app there will be at the server, in all.
    kubernetes
        The address of the cluster's API; found out inside a pod.
    wall
        The clock of this machine, in seconds.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        *,
        paths: Sequence[str] = (),
        audit_log: str | None = None,
        leases: bool = True,
        processes: int = 1,
        kubernetes: str | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._environ = environ
        self._paths = paths
        self._audit_log = audit_log
        self._leases = leases
        self._processes = processes
        self._kubernetes = kubernetes or checks_kubernetes.api_address(environ)
        self._wall = wall
        self._findings = Findings()

    def run(self, *, as_json: bool = False) -> int:
        """Examine and print; 0 where nothing failed, else 1."""
        before = time.monotonic()
        findings = self.examine()
        seconds = round(time.monotonic() - before, 3)
        print(findings.as_json(seconds=seconds) if as_json else findings.as_text())
        return 1 if findings.failed else 0

    def examine(self) -> Findings:
        """All steps that can be taken; the first one that failed is the cause."""
        findings = self._findings
        config, paths, failure = None, [], ""
        try:
            config = SecretConfig.from_env(self._environ)
            paths = wanted(self._paths, self._audit_log, config)
        except ConfigurationError as error:
            failure = str(error)
        if config is None or failure:
            findings.fail(
                "configuration",
                "configuration-wrong",
                failure,
                why="the middleware refuses to be built like this",
                mend="correct the variables that are named; all of them are in the page on configuration",
            )
            return findings
        warnings = config.warnings()
        for warning in warnings:
            found, _, mend = warning.partition("; ")
            findings.warn(
                "configuration", "configuration-unwise", found, why="whoever is in between can read along", mend=mend
            )
        if not warnings:
            findings.ok(
                "configuration",
                f"{config.vault_addr}, role {config.vault_role!r}, namespace {config.namespace!r}, method "
                f"{config.auth_method} at {config.auth_mount!r}",
            )
        client, inspector = VaultClient(config), Inspector(config, timeout=config.client_timeout)
        try:
            self._outwards(config, paths, client, inspector)
        finally:
            client.close()
            inspector.close()
        return findings

    def _outwards(
        self, config: SecretConfig, paths: Sequence[Wanted], client: VaultClient, inspector: Inspector
    ) -> None:
        findings = self._findings
        credential = check_credential(config, findings)
        claims = read_claims(credential) if credential else None
        health = check_server(inspector, config, findings) if check_way(config, findings) else None
        now = self._wall() if health is None else check_clock(health, claims, findings, self._wall)
        if claims is not None:
            check_claims(claims, config, findings, now=now)
        if health is None or credential is None:
            because = "the server cannot answer" if health is None else "there is no credential"
            findings.skip("log-in, access and leases", f"not tried, as {because}")
            return
        token = check_login(client, inspector, config, claims, credential, findings, kubernetes=self._kubernetes)
        if token is None:
            findings.skip("access and leases", "not tried, as there is no token")
            return
        failure: VaultUnavailable
        try:
            self._inwards(config, paths, client, inspector, token)
            return
        except VaultUnavailable as error:
            failure = error
        finally:
            self._leave(client, config, token)
        found, _, mend = str(failure).partition("; ")
        findings.fail("server", "server-failed-meanwhile", found, why="what comes after was not tried", mend=mend)

    def _inwards(
        self,
        config: SecretConfig,
        paths: Sequence[Wanted],
        client: VaultClient,
        inspector: Inspector,
        token: Token,
    ) -> None:
        findings = self._findings
        looked_up = check_token(inspector, token, findings)
        place = Place(config.namespace, token.namespace, inspector.namespace_exists())
        access = Access(client, inspector, config, place, token, findings)
        if not paths:
            findings.warn(
                "paths",
                "no-paths",
                "no secret path was given, so none was checked",
                why="most mistakes are in the policy",
                mend="vault-middleware doctor PATH …, or --audit-log FILE, or set VAULT_PREFETCH",
            )
        exact = [each for each in paths if not each.path.endswith("*")]
        for each, mount in check_access(access, exact, looked_up):
            if self._leases:
                check_lease(access, each, mount, processes=self._processes)
            else:
                findings.skip(f"read {each.path}", "may be read; not tried, as it may make a lease (--no-leases)")

    def _leave(self, client: VaultClient, config: SecretConfig, token: Token) -> None:
        """Revoke the token, if it is ours."""
        if not token.owned:
            return
        try:
            client.revoke_token(token, config.client_timeout)
        except VaultMiddlewareError:
            self._findings.warn(
                "end",
                "token-left",
                "our token could not be revoked",
                why="it lives to its end",
                mend="nothing: it ends by itself",
            )
