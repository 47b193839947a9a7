"""The metrics: names, what each counts, many managers on one registry, forks, and the multiprocess mode."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from vault_middleware.errors import ConfigurationError
from vault_middleware.events import (
    LeaseRenewalFailed,
    LeaseRenewed,
    LeaseRotated,
    LoggedIn,
    LoginFailed,
    TokenRenewalFailed,
    TokenRenewed,
)
from vault_middleware.telemetry.metrics import Metrics

INF = float("inf")


class Owner:
    """Stands for a manager's engine."""


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics.for_registry(registry)


def state(
    metrics: Metrics,
    owner: object,
    *,
    active: int = 0,
    draining: int = 0,
    entries: int = 0,
    token: float | None = None,
    lease: float | None = None,
    token_left: float | None = None,
    lease_left: float | None = None,
    server_up: bool = True,
) -> None:
    metrics.set_state(
        owner,
        leases_active=active,
        leases_draining=draining,
        cache_entries=entries,
        token_ttl=token,
        soonest_lease_ttl=lease,
        token_left=token_left,
        lease_left=lease_left,
        server_up=server_up,
    )


# -- counts


def test_the_three_of_the_service_have_their_names_and_no_labels(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics(LeaseRenewalFailed("database/creds/app", "id", "500", 1.0, 1.0))
    metrics.hit()
    lines = generate_latest(registry).decode().splitlines()
    assert "vault_secret_requests_total 1.0" in lines
    assert "vault_secret_cache_hits_total 1.0" in lines
    assert "vault_lease_renewal_errors_total 1.0" in lines


def test_a_hit_is_a_request_and_a_cache_hit(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.hit()
    metrics.hit()
    assert registry.get_sample_value("vault_secret_requests_total") == 2
    assert registry.get_sample_value("vault_secret_cache_hits_total") == 2


def test_a_miss_is_a_request_only(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.miss()
    assert registry.get_sample_value("vault_secret_requests_total") == 1
    assert registry.get_sample_value("vault_secret_cache_hits_total") == 0


def test_a_stale_value_is_counted_beside_its_hit(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.hit()
    metrics.stale()
    assert registry.get_sample_value("vault_secret_stale_served_total") == 1
    assert registry.get_sample_value("vault_secret_requests_total") == 1


def test_no_count_is_lost_or_doubled_by_flushes_and_scrapes(registry: CollectorRegistry, metrics: Metrics) -> None:
    for number in range(1, 50):
        metrics.hit()
        metrics.flush()
        metrics.hit()
        assert registry.get_sample_value("vault_secret_requests_total") == 2 * number
        metrics.flush()
    assert registry.get_sample_value("vault_secret_cache_hits_total") == 98


def test_a_scrape_of_chosen_names_is_exact_too(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.hit()
    chosen = registry.restricted_registry(["vault_secret_cache_hits_total"])
    assert b"vault_secret_cache_hits_total 1.0" in generate_latest(chosen)


def test_a_read_between_two_samples_of_a_scrape_never_shows_more_hits_than_requests(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    seen = {}
    for family in registry.collect():
        metrics.hit()
        seen[family.name] = family.samples[0].value if family.samples else 0.0
    assert seen["vault_secret_cache_hits"] <= seen["vault_secret_requests"]


def test_an_error_is_counted_under_its_reason(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.error("denied")
    assert registry.get_sample_value("vault_secret_errors_total", {"reason": "denied"}) == 1
    assert registry.get_sample_value("vault_secret_errors_total", {"reason": "not_found"}) == 0


def test_a_reason_that_is_not_foreseen_makes_no_label_of_its_own(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.error("shared/tenant-7")
    assert registry.get_sample_value("vault_secret_errors_total", {"reason": "error"}) == 1
    assert b"tenant-7" not in generate_latest(registry)


def test_calls_and_fetches_are_timed(registry: CollectorRegistry, metrics: Metrics) -> None:
    metrics.observe_call("read", 0.002)
    metrics.observe_fetch(0.3)
    labels = {"operation": "read"}
    assert registry.get_sample_value("vault_server_request_duration_seconds_count", labels) == 1
    assert registry.get_sample_value("vault_server_request_duration_seconds_sum", labels) == 0.002
    assert registry.get_sample_value("vault_secret_fetch_seconds_bucket", {"le": "0.25"}) == 0
    assert registry.get_sample_value("vault_secret_fetch_seconds_bucket", {"le": "0.5"}) == 1


def test_events_are_counted_and_only_leases_in_the_metrics_of_leases(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    for event in (
        LeaseRenewed("p", "id", 1.0),
        LeaseRenewed("p", "id", 1.0),
        LeaseRenewalFailed("p", "id", "500", 1.0, None),
        LeaseRotated("p", "new", "old", "why", 1.0),
        LoggedIn("kubernetes", "r", "", 1.0),
        LoginFailed("kubernetes", "r", "403", 1.0),
        TokenRenewed(1.0),
        TokenRenewalFailed("403", 1.0),
    ):
        metrics(event)
    assert registry.get_sample_value("vault_lease_renewals_total") == 2
    assert registry.get_sample_value("vault_lease_renewal_errors_total") == 1
    assert registry.get_sample_value("vault_lease_rotations_total") == 1
    assert registry.get_sample_value("vault_logins_total", {"outcome": "success"}) == 1
    assert registry.get_sample_value("vault_logins_total", {"outcome": "failure"}) == 1


# -- state


def test_the_state_of_a_manager_shows_at_once_and_expiries_as_timestamps(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry, wall=lambda: 1000.0)
    state(metrics, Owner(), active=3, draining=1, entries=7, token=60.0, lease=5.0)
    assert registry.get_sample_value("vault_leases_active") == 3
    assert registry.get_sample_value("vault_leases_draining") == 1
    assert registry.get_sample_value("vault_cache_entries") == 7
    assert registry.get_sample_value("vault_token_expiry_timestamp_seconds") == 1060
    assert registry.get_sample_value("vault_lease_soonest_expiry_timestamp_seconds") == 1005
    assert registry.get_sample_value("vault_renewer_heartbeat_timestamp_seconds") == 1000
    assert registry.get_sample_value("vault_server_up") == 1


def test_what_does_not_exist_never_expires(registry: CollectorRegistry, metrics: Metrics) -> None:
    for token in (INF, None):
        owner = Owner()
        state(metrics, owner, token=token, lease=None)
        assert registry.get_sample_value("vault_token_expiry_timestamp_seconds") == INF
        assert registry.get_sample_value("vault_lease_soonest_expiry_timestamp_seconds") == INF


def test_managers_of_one_registry_are_added_up_and_their_earliest_time_shows(registry: CollectorRegistry) -> None:
    now = [1000.0]
    metrics = Metrics(registry, wall=lambda: now[0])
    one, two = Owner(), Owner()
    state(metrics, one, active=3, draining=1, entries=7, token=60.0, lease=5.0)
    now[0] = 1001.0
    state(metrics, two, active=4, draining=2, entries=1, token=None, lease=50.0)
    state(metrics, two, active=4, draining=2, entries=1, token=None, lease=50.0)
    assert registry.get_sample_value("vault_leases_active") == 7
    assert registry.get_sample_value("vault_leases_draining") == 3
    assert registry.get_sample_value("vault_cache_entries") == 8
    assert registry.get_sample_value("vault_token_expiry_timestamp_seconds") == 1060
    assert registry.get_sample_value("vault_lease_soonest_expiry_timestamp_seconds") == 1005
    assert registry.get_sample_value("vault_renewer_heartbeat_timestamp_seconds") == 1000  # the one that lags


def test_a_manager_that_has_stopped_counts_no_more(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry, wall=lambda: 1000.0)
    one, two = Owner(), Owner()
    state(metrics, one, active=3, token=60.0)
    state(metrics, two, active=4, token=90.0)
    metrics.forget(one)
    metrics.forget(one)
    assert registry.get_sample_value("vault_leases_active") == 4
    assert registry.get_sample_value("vault_token_expiry_timestamp_seconds") == 1090
    metrics.forget(two)
    assert registry.get_sample_value("vault_leases_active") == 0
    assert registry.get_sample_value("vault_token_expiry_timestamp_seconds") == INF
    assert registry.get_sample_value("vault_renewer_heartbeat_timestamp_seconds") == INF


def test_a_manager_that_was_dropped_without_a_stop_counts_no_more(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    lost, kept = Owner(), Owner()
    state(metrics, lost, active=3)
    del lost
    gc.collect()
    state(metrics, kept, active=4)
    assert registry.get_sample_value("vault_leases_active") == 4


def test_the_server_shows_as_down_while_that_of_any_manager_is(registry: CollectorRegistry, metrics: Metrics) -> None:
    one, two = Owner(), Owner()
    state(metrics, one, server_up=False)
    state(metrics, two, server_up=True)
    assert registry.get_sample_value("vault_server_up") == 0
    state(metrics, one, server_up=True)
    assert registry.get_sample_value("vault_server_up") == 1
    state(metrics, two, server_up=False)
    metrics.forget(two)
    assert registry.get_sample_value("vault_server_up") == 1


def test_the_least_share_that_is_left_of_a_token_and_of_a_lease_shows(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    one, two = Owner(), Owner()
    state(metrics, one, token_left=0.5, lease_left=None)
    assert registry.get_sample_value("vault_token_remaining_ratio") == 0.5
    assert registry.get_sample_value("vault_lease_remaining_ratio") == INF
    state(metrics, two, token_left=0.1, lease_left=0.7)
    assert registry.get_sample_value("vault_token_remaining_ratio") == 0.1
    assert registry.get_sample_value("vault_lease_remaining_ratio") == 0.7
    metrics.forget(two)
    assert registry.get_sample_value("vault_token_remaining_ratio") == 0.5


# -- registries


def test_a_registry_has_one_metrics_object_whoever_asks(registry: CollectorRegistry) -> None:
    assert Metrics.for_registry(registry) is Metrics.for_registry(registry)
    assert Metrics.for_registry(CollectorRegistry()) is not Metrics.for_registry(registry)


def test_a_registry_is_not_kept_alive() -> None:
    registry = CollectorRegistry()
    state(Metrics.for_registry(registry), Owner())
    gone = weakref.ref(registry)
    del registry
    gc.collect()
    assert gone() is None


def test_a_name_that_is_taken_is_a_wrong_configuration_and_leaves_the_registry_as_it_was(
    registry: CollectorRegistry,
) -> None:
    theirs = Counter("vault_lease_renewal_errors", "Theirs.", registry=registry)
    before = generate_latest(registry)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="named vault_lease_renewal_errors that is not ours; remove it"):
            Metrics.for_registry(registry)
    assert generate_latest(registry) == before
    registry.unregister(theirs)
    Metrics.for_registry(registry)


def test_a_gauge_whose_name_is_taken_is_a_wrong_configuration(registry: CollectorRegistry, metrics: Metrics) -> None:
    Gauge("vault_server_up", "Theirs.", registry=registry)
    with pytest.raises(ConfigurationError, match="vault_server_up"):
        state(metrics, Owner())


# -- fork


def test_a_forked_child_counts_nothing_that_its_parent_will_and_has_nothing_of_its_parents(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    owner = Owner()
    metrics.hit()
    metrics.flush()
    metrics.hit()
    metrics.miss()
    metrics.stale()
    state(metrics, owner, active=3, server_up=False)
    metrics._lock.acquire()  # another thread of the parent was at it
    metrics.after_fork()
    metrics.after_fork()  # each manager of the registry says so
    metrics.hit()
    assert registry.get_sample_value("vault_secret_requests_total") == 2  # the first, and the child's own
    assert registry.get_sample_value("vault_secret_stale_served_total") == 0
    child = Owner()
    state(metrics, child, active=1)
    assert registry.get_sample_value("vault_leases_active") == 1
    assert registry.get_sample_value("vault_server_up") == 1


# -- multiprocess mode


def run_multiprocess(folder: Path, program: str) -> dict[str, float]:
    """Samples of a scrape at the end of *program*, which runs in the multiprocess mode."""
    head = """
        import os
        from prometheus_client import CollectorRegistry, Counter
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
        from vault_middleware.telemetry.metrics import Metrics
        from vault_middleware.events import LeaseRenewalFailed

        class Owner: ...

        def state(metrics, owner, **changed):
            values = dict(leases_active=0, leases_draining=0, cache_entries=0, token_ttl=None, soonest_lease_ttl=None)
            metrics.set_state(owner, **{**values, **changed})

        def in_child(work):
            pid = os.fork()
            if not pid:
                try:
                    metrics.after_fork()
                    work()
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            return pid

        metrics = Metrics.for_registry(CollectorRegistry())
        """
    tail = """
        scraped = CollectorRegistry()
        MultiProcessCollector(scraped)
        for family in scraped.collect():
            for sample in family.samples:
                if not sample.labels:
                    print(sample.name, sample.value)
        """
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    code = textwrap.dedent(head) + textwrap.dedent(program) + textwrap.dedent(tail)
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}


def test_in_multiprocess_mode_the_counts_of_all_processes_add_up_each_once(tmp_path: Path) -> None:
    seen = run_multiprocess(
        tmp_path,
        """
        metrics.hit()
        metrics.hit()
        def work():
            metrics.hit()
            metrics.miss()
            metrics(LeaseRenewalFailed("p", "id", "500", 1.0, None))
            metrics.flush()
        in_child(work)
        in_child(work)
        metrics.flush()
        """,
    )
    assert seen["vault_secret_requests_total"] == 6
    assert seen["vault_secret_cache_hits_total"] == 4
    assert seen["vault_lease_renewal_errors_total"] == 2


def test_in_multiprocess_mode_gauges_add_up_and_the_earliest_time_of_live_processes_shows(tmp_path: Path) -> None:
    seen = run_multiprocess(
        tmp_path,
        """
        def work(ended):
            child = Owner()
            state(metrics, child, leases_active=2, token_ttl=-ended)
        dead, live = in_child(lambda: work(1e8)), in_child(lambda: work(1e6))
        mark_process_dead(dead)
        own = Owner()
        state(metrics, own, leases_active=3, token_ttl=60.0)
        """,
    )
    assert seen["vault_leases_active"] == 5
    ended = seen["vault_renewer_heartbeat_timestamp_seconds"] - seen["vault_token_expiry_timestamp_seconds"]
    assert 0.9e6 < ended < 1.1e6
    assert seen["vault_lease_soonest_expiry_timestamp_seconds"] == INF
    assert seen["vault_server_up"] == 1


def test_in_multiprocess_mode_one_worker_that_finds_the_server_down_shows(tmp_path: Path) -> None:
    seen = run_multiprocess(
        tmp_path,
        """
        own = Owner()
        def work():
            state(metrics, own, server_up=False)
        in_child(work)
        state(metrics, own)
        """,
    )
    assert seen["vault_server_up"] == 0


def test_in_multiprocess_mode_a_worker_that_has_not_started_shows_no_server_as_down(tmp_path: Path) -> None:
    seen = run_multiprocess(
        tmp_path,
        """
        theirs = Counter("theirs", "A metric of the application.")
        in_child(theirs.inc)
        """,
    )
    assert seen["theirs_total"] == 1
    assert not [name for name in seen if "server_up" in name or "timestamp" in name]
