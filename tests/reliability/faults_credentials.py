"""Faults around credentials: TTLs at their ends, what is taken away from outside, the log-in, and the database."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise

from tests.integration.support import DYNAMIC, STATIC, eventually
from vault_middleware import SecretsManager
from vault_middleware.devstack import DevStack, Proxy
from vault_middleware.errors import SecretAccessDenied, SecretUnavailable

from .load import Load, Report, misses, watched
from .table import fault, settle, wait, works


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


# -- what is not ours


@fault
def a_given_token(short: bool) -> Report:
    """``VAULT_AUTH_METHOD=token``: a second client with the same token notices nothing of our stop."""
    seconds = 15 if short else 180
    report = Report("a given token", f"static TTL 2 s, lease 4 s (max 12 s), a token of somebody else's, {seconds} s")
    with DevStack(lease_ttl=4, lease_max_ttl=12, token_ttl=60, token_max_ttl=600) as stack:
        token = stack.log_in()
        given = {"VAULT_AUTH_METHOD": "token", "VAULT_TOKEN": token}
        theirs = stack.request("GET", DYNAMIC, token=token)
        with watched(report, stack, VAULT_CACHE_TTL="2s", **given) as manager, Load(manager, stack, report):
            warm = misses(report)
            wait(seconds)
            report.misses = misses(report) - warm
        report.require(stack.request("GET", STATIC.replace("/", "/data/"), token=token), "the token was revoked")
        left = stack.leases()
        ours = [lease for lease in left if not lease.startswith(theirs["lease_id"])]
        report.require(not ours, f"{len(ours)} leases of ours are left")
        report.leases_left = len(ours)
    report.require(report.misses == 0, f"{report.misses} reads needed the server after warm-up")
    report.require(report.events["token_revoked"] == 0, "a token was revoked that is not ours")
    settle(report)
    return report


@fault
def behind_a_proxy(short: bool) -> Report:
    """``VAULT_AUTH_METHOD=proxy``: the lease is the proxy's, and a second client keeps it through our stop."""
    seconds = 15 if short else 180
    report = Report("behind OpenBao Proxy", f"static TTL 2 s, lease 4 s (max 12 s), {seconds} s, two clients")
    with DevStack(lease_ttl=4, lease_max_ttl=12, token_ttl=60, token_max_ttl=600) as stack, Proxy(stack) as proxy:
        second = Report("the second client")
        with watched(second, stack, VAULT_CACHE_TTL="2s", **proxy.environ) as other:
            with watched(report, stack, VAULT_CACHE_TTL="2s", **proxy.environ) as manager, Load(manager, stack, report):
                warm = misses(report)
                wait(seconds)
                report.misses = misses(report) - warm
                shared = (
                    manager.get_dynamic_secret(DYNAMIC)["username"] == other.get_dynamic_secret(DYNAMIC)["username"]
                )
            report.require(shared, "the two clients do not share the proxy's lease")
            credential = other.get_dynamic_secret(DYNAMIC)
            works_still = stack.postgres.can_log_in(credential["username"], credential["password"])
            report.require(works_still, "our stop took the second client's credential away")
            report.require(other.get_secret(STATIC, fresh=True), "our stop took the proxy's token away")
    report.leases_left = None  # the lease is the proxy's, and stays
    report.require(report.misses == 0, f"{report.misses} reads needed the proxy after warm-up")
    report.require(report.events["lease_revoked"] == report.events["token_revoked"] == 0, "something was revoked")
    settle(report)
    return report


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
                eventually(partial(_has_new_user, manager, before), "a new lease")
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
            eventually(lambda: works(manager), "recovery", 10)
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
            # The tries are 1, 2, 4, 8 and 16 s apart at most, and the outage may end right after one.
            eventually(lambda: report.events["login"] >= 2, "the log-in", 20)
            wait(1.0)
    gaps = [later - earlier for earlier, later in pairwise(tries)]
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
