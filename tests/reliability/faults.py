"""The fault table: each fault is a function that does it to real servers under a steady load, and reports.

``short`` cuts the durations for the normal test run; what must hold is the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tests.integration.support import DYNAMIC, STATIC, eventually
from vault_middleware import SecretsManager
from vault_middleware.devstack import DevStack
from vault_middleware.errors import SecretAccessDenied, SecretUnavailable, VaultMiddlewareError

from .load import Load, Report, misses, watched

FAULTS: dict[str, Callable[[bool], Report]] = {}

#: The longest a read may take that needs no server: a thread's turn on two busy cores, seconds.
AT_ONCE = 0.5

#: How soon everything has to work again after the server does, in seconds.
RECOVERY = 5.0


def fault(function: Callable[[bool], Report]) -> Callable[[bool], Report]:
    """Enter *function* in the table."""
    FAULTS[function.__name__] = function
    return function


def wait(seconds: float) -> None:
    """Let the load run on for so long: the duration is what the fault is about, nothing is synchronised by it."""
    threading.Event().wait(seconds)


def settle(report: Report) -> None:
    """What holds for every fault at the end."""
    report.require(not report.failures, f"{len(report.failures)} requests failed")
    report.require(report.leases_left <= 0, f"{report.leases_left} leases are left after the stop")
    report.require(report.requests > 0, "there was no load")


# -- TTLs


@fault
def ttls_at_their_ends(short: bool) -> Report:
    seconds = 25 if short else 180
    report = Report("TTLs at their ends", f"static TTL 2 s, lease 4 s (max 12 s), token 6 s (max 20 s), {seconds} s")
    with DevStack(lease_ttl=4, lease_max_ttl=12, token_ttl=6, token_max_ttl=20) as stack:
        with watched(report, stack, VAULT_CACHE_TTL="2s") as manager, Load(manager, stack, report):
            warm = misses(report)
            wait(seconds)
            report.misses = misses(report) - warm
        users = stack.postgres.users()
    report.require(report.misses == 0, f"{report.misses} reads needed the server after warm-up")
    report.require(report.events["lease_rotated"] >= seconds // 12, "too few rotations")
    report.require(report.events["login"] >= 2, "no second log-in")
    report.require(not users, f"PostgreSQL still has {users}")
    settle(report)
    return report


# -- the server


def _outage(report: Report, manager: SecretsManager, stack: DevStack, load: Load, down: Callable[[], None], up: Callable[[], None], seconds: float) -> None:  # fmt: skip
    """Take the server away for *seconds*; cached reads go on, uncached ones fail at once, and all works again soon."""
    down()
    _works(manager)  # the load has reads that miss, too
    load.timed_from = time.monotonic()
    end = time.monotonic() + seconds
    asked = 0
    while time.monotonic() < end:
        before = time.monotonic()
        try:
            manager.get_secret(f"api-gateway/never-read-{asked}")
            report.problems.append("an uncached secret came from a server that is down")
        except SecretUnavailable:
            asked += 1
        took = time.monotonic() - before
        report.require(took < AT_ONCE, f"an uncached read waited {took:.2f} s for the dead server")
        wait(0.25)
    load.timed_from = float("inf")
    up()
    since = time.monotonic()
    eventually(lambda: _works(manager), "recovery", 30)
    took = time.monotonic() - since
    report.notes.append(f"works again {took:.1f} s after the server; {asked} uncached reads refused at once meanwhile")
    report.require(took <= RECOVERY, f"it took {took:.1f} s to work again")
    report.require(report.slowest < AT_ONCE, f"a cached read took {report.slowest:.2f} s while the server was down")


def _works(manager: SecretsManager) -> bool:
    try:
        return bool(manager.get_secret(STATIC, fresh=True))
    except VaultMiddlewareError:
        return False


def _with_outage(name: str, done: str, seconds: float, down: Callable[[DevStack], None], up: Callable[[DevStack], None]) -> Report:  # fmt: skip
    report = Report(name, f"{done} for {seconds:.0f} s; static TTL 2 s, lease 60 s")
    with DevStack(lease_ttl=60, lease_max_ttl=300, token_ttl=300, token_max_ttl=600) as stack:
        with watched(report, stack, VAULT_CACHE_TTL="2s") as manager, Load(manager, stack, report) as load:
            wait(1.0)
            _outage(report, manager, stack, load, lambda: down(stack), lambda: up(stack), seconds)
            wait(2.0)
    report.require(report.events["server_down"] == 1, f"{report.events['server_down']} outages were noticed, not one")
    settle(report)
    return report


@fault
def server_stopped(short: bool) -> Report:
    return _with_outage(
        "OpenBao silent",
        "SIGSTOP",
        5 if short else 20,
        lambda stack: stack.bao.pause(),
        lambda stack: stack.bao.resume(),
    )


@fault
def server_killed(short: bool) -> Report:
    return _with_outage(
        "OpenBao killed and restarted",
        "SIGKILL, the same storage again",
        4 if short else 20,
        lambda stack: stack.bao.kill(),
        lambda stack: stack.bao.restart(),
    )


@fault
def server_sealed(short: bool) -> Report:
    return _with_outage(
        "OpenBao sealed", "sealed", 4 if short else 20, lambda stack: stack.bao.seal(), lambda stack: stack.bao.unseal()
    )


# -- taken away from outside


@fault
def lease_revoked_outside(short: bool) -> Report:
    report = Report("our lease revoked from outside", "revoked three times under requests that reject what fails")
    with DevStack(lease_ttl=60, lease_max_ttl=300) as stack:
        with watched(report, stack) as manager, Load(manager, stack, report) as load:
            load.reject = True
            for _ in range(3):
                wait(0.5 if short else 3.0)
                before = manager.get_dynamic_secret(DYNAMIC)["username"]
                for lease in stack.leases():
                    stack.revoke_lease(lease)
                eventually(lambda: manager.get_dynamic_secret(DYNAMIC)["username"] != before, "a new lease")
            wait(1.0)
    report.notes.append(f"{load.rejected} uses failed, each once, of credentials that were in use at that moment")
    report.require(0 < load.rejected <= 3 * 16, "a request saw a dead credential more than once")
    settle(report)
    return report


@fault
def token_revoked_outside(short: bool) -> Report:
    report = Report("our token revoked from outside", "the leases die with it; requests reject what fails")
    with DevStack(lease_ttl=60, lease_max_ttl=300) as stack:
        with watched(report, stack, VAULT_CACHE_TTL="2s") as manager, Load(manager, stack, report) as load:
            load.reject = True
            wait(0.5 if short else 3.0)
            generation = manager._engine.session.current
            assert generation is not None
            stack.bao.request("POST", "auth/token/revoke", {"token": generation.token.value})
            eventually(lambda: manager._engine.session.current not in (None, generation), "a new log-in")
            wait(2.0 if short else 10.0)
    report.notes.append(f"{load.rejected} uses failed, each once, of credentials that were in use at that moment")
    report.require(load.rejected <= 16, "a request saw a dead credential more than once")
    report.require(report.events["login"] == 2, f"{report.events['login']} log-ins, not the first and one more")
    settle(report)
    return report


@fault
def policy_taken_away(short: bool) -> Report:
    seconds = 8 if short else 30
    report = Report("the policy taken away", f"no read on api-gateway/* for {seconds} s; static TTL 2 s")
    with DevStack() as stack, watched(report, stack, VAULT_CACHE_TTL="2s") as manager:
        with Load(manager, stack, report) as load:
            load.accept = lambda error: isinstance(error, SecretAccessDenied) and error.path == STATIC
            rules = stack.policy_text().replace('path "api-gateway/*"', 'path "no-longer/*"')
            stack.write_policy(rules)
            eventually(lambda: load.accepted > 0, "the first refusal", 10)
            calls = len(stack.bao.audit_log())
            wait(seconds)
            calls = len(stack.bao.audit_log()) - calls
            stack.write_policy()
            eventually(lambda: _works(manager), "recovery", 10)
            accepted = load.accepted
            wait(2.0)
            report.require(load.accepted - accepted <= 16, "it was refused still after the policy came back")
    report.notes.append(
        f"{load.accepted} reads of that path refused, {calls} lines in the server's audit log meanwhile"
    )
    report.require(report.events["login"] == 1, f"{report.events['login']} log-ins")
    report.require(calls < 20 * seconds, f"{calls} lines in {seconds} s: it is asked in a loop")
    settle(report)
    return report


# -- log-in


@fault
def service_account_token_replaced(short: bool) -> Report:
    report = Report("the service-account token replaced", "the file changes, and then the old token is invalid")
    with DevStack(token_ttl=4, token_max_ttl=8) as stack:
        old = stack.token_path.read_text()
        with watched(report, stack, VAULT_CACHE_TTL="2s") as manager, Load(manager, stack, report):
            wait(1.0)
            stack.write_service_account_token()
            stack.kubernetes.revoke(old)
            logins = report.events["login"]
            eventually(lambda: report.events["login"] > logins, "the next log-in", 20)
            wait(2.0 if short else 20.0)
    report.require(report.events["login_failed"] == 0, "a log-in failed")
    settle(report)
    return report


@fault
def token_review_down(short: bool) -> Report:
    seconds = 6 if short else 15
    report = Report("TokenReview down", f"the log-in answers 403 for {seconds} s, with 30 s of token left")
    tries: list[float] = []
    with DevStack(token_ttl=40, token_max_ttl=40) as stack:
        with watched(report, stack, VAULT_CACHE_TTL="2s") as manager, Load(manager, stack, report):
            stack.kubernetes.available = False
            session = manager._engine.session
            generation = session.current
            assert generation is not None
            assert generation.task is not None
            manager._engine.renewer.schedule(generation.task, 0.0)  # its renewal, which max TTL cuts, is due now
            seen = 0
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if report.events["login_failed"] > seen:
                    seen = report.events["login_failed"]
                    tries.append(time.monotonic())
                wait(0.02)
            stack.kubernetes.available = True
            eventually(lambda: report.events["login"] >= 2, "the log-in", 12)
            wait(1.0)
    gaps = [later - earlier for earlier, later in zip(tries, tries[1:], strict=False)]
    report.notes.append(f"{len(tries)} tries, {', '.join(f'{gap:.1f}' for gap in gaps)} s apart")
    report.require(len(tries) >= 2, "it was not tried again")
    report.require(all(gap > 0.7 for gap in gaps), "tried again within the floor of 1 s")
    report.require(len(tries) <= 6, "tried more often than the back-off says")
    settle(report)
    return report


# -- the database


@fault
def database_down_at_rotation(short: bool) -> Report:
    report = Report("PostgreSQL down when a rotation is due", "stopped until the lease is over, then started again")
    with DevStack(lease_ttl=4, lease_max_ttl=8) as stack:
        with watched(report, stack) as manager, Load(manager, stack, report) as load:
            first = manager.get_dynamic_secret(DYNAMIC)
            load.log_in = False
            wait(0.2)
            stack.postgres.stop()
            served = 0

            def ended() -> bool:
                nonlocal served
                try:
                    secret = manager.get_dynamic_secret(DYNAMIC)
                except SecretUnavailable:
                    return True
                report.require(secret["username"] == first["username"], "a user that the database cannot have made")
                report.require(time.monotonic() < secret.lease.deadline, "a credential past its deadline")
                served += 1
                return False

            load.accept = lambda error: isinstance(error, SecretUnavailable) and error.path == DYNAMIC
            eventually(ended, "the lease's end", 20)
            stack.postgres.start()
            eventually(lambda: _has_new_user(manager, first["username"]), "a new user", 15)
            load.accept = lambda _error: False
            load.log_in = True
            wait(1.0)
    failed = report.events["lease_renewal_failed"]
    report.notes.append(f"the old user was served {served} times, to its deadline; {failed} failed tries")
    report.require(served > 0, "the old credential was not served to its deadline")
    report.require(0 < failed <= 8 / 0.1 + 1, f"{failed} tries: more than the formula allows")
    settle(report)
    return report


def _has_new_user(manager: SecretsManager, old: str) -> bool:
    try:
        return bool(manager.get_dynamic_secret(DYNAMIC)["username"] != old)
    except SecretUnavailable:
        return False


# -- the stop


@fault
def stop_while_a_call_hangs(short: bool) -> Report:
    del short
    report = Report("stop while a call hangs", "OpenBao stopped (SIGSTOP) in the middle of a fetch, then close()")
    with DevStack() as stack:
        with watched(report, stack, VAULT_SHUTDOWN_TIMEOUT="3s", VAULT_CLIENT_TIMEOUT="30s") as manager:
            with Load(manager, stack, report):
                wait(0.3)
            stack.bao.pause()
            hanging = threading.Thread(target=_swallow, args=(manager,), daemon=True)
            hanging.start()
            wait(0.1)
            before = time.monotonic()
            manager.close()
            took = time.monotonic() - before
            stack.bao.resume()
        hanging.join(40)
    report.notes.append(f"close() took {took:.1f} s of the 3 s it may take")
    report.require(took < 3.5, f"close() took {took:.1f} s")
    report.leases_left = 0  # the server did not answer: they end with their TTL
    settle(report)
    return report


def _swallow(manager: SecretsManager) -> None:
    try:
        manager.get_secret("api-gateway/other")
    except VaultMiddlewareError:
        return
