"""What is declared to prometheus_client: names, texts, labels and buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

from ..errors import ConfigurationError

__all__ = ["REASONS", "Counts", "Gauges"]

#: Seconds: a local server answers within one or two milliseconds, a call that hangs ends with the client's time-out.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: The values of the label ``reason``; whatever else a read fails of is counted as ``error``.
REASONS = ("audit", "denied", "error", "invalid_path", "lease_limit", "not_dynamic", "not_found", "unavailable")


class _Gathered(Counter):
    """A counter whose counts are brought to it before it is collected."""

    bring: Callable[[], None]

    def collect(self) -> Iterable[Metric]:
        self.bring()
        return super().collect()


class Counts:
    """The counters and histograms; registered all, or none."""

    def __init__(self, registry: CollectorRegistry, bring: Callable[[], None]) -> None:
        def count(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=None)

        def gather(name: str, text: str) -> Counter:
            counter = _Gathered(name, text, registry=None)
            counter.bring = bring
            return counter

        def duration(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=BUCKETS, registry=None)

        self.requests = gather("vault_secret_requests", "Reads of secrets, repeats within a request included.")
        self.hits = gather("vault_secret_cache_hits", "Reads that were answered without a server call of their own.")
        self.stale = gather(
            "vault_secret_stale_served", "Reads answered with a stale value, as Vault could not answer."
        )
        self.errors = count("vault_secret_errors", "Reads that gave no secret.", "reason")
        self.fetches = duration("vault_secret_fetch_seconds", "Fetches of a secret, with every call and try they took.")
        self.calls = duration(
            "vault_server_request_duration_seconds", "Calls to the server, answered or not.", "operation"
        )
        self.renewals = count("vault_lease_renewals", "Leases renewed.")
        self.renewal_errors = count("vault_lease_renewal_errors", "Failed tries to renew or replace a lease.")
        self.rotations = count("vault_lease_rotations", "Leases replaced by a new one.")
        self.logins = count("vault_logins", "Log-ins.", "outcome")
        for reason in REASONS:
            self.errors.labels(reason)
        for outcome in ("success", "failure"):
            self.logins.labels(outcome)
        # The hits before the requests: a read between the two must not show as a hit of no request.
        _register(
            registry,
            (
                *(self.hits, self.stale, self.requests, self.errors, self.fetches, self.calls),
                *(self.renewals, self.renewal_errors, self.rotations, self.logins),
            ),
        )


class Gauges:
    """The gauges, declared only where a manager runs.

    In multiprocess mode every gauge that a process has declared counts as 0 in its children from their first metric on:
    after a preload, a worker that has not started yet would show the server as down and the token as expired.
    """

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self.active = _sum("vault_leases_active", "Leases that are served.")
        self.draining = _sum(
            "vault_leases_draining", "Leases that were replaced, and wait for the requests that hold them."
        )
        self.entries = _sum("vault_cache_entries", "Cached secrets.")
        self.token = _least(
            "vault_token_expiry_timestamp_seconds",
            "When the token ends if it is not renewed; +Inf if there is none, or it has no end.",
        )
        self.lease = _least(
            "vault_lease_soonest_expiry_timestamp_seconds",
            "When the first of the leases ends if it is not renewed; +Inf if there is none.",
        )
        self.heartbeat = _least(
            "vault_renewer_heartbeat_timestamp_seconds",
            "When the renewer last ran, each second if all is well; +Inf if none is meant to run.",
        )
        self.token_left = _least(
            "vault_token_remaining_ratio",
            "The share of its duration that the token has left, 0 to 1; below 0.2 renewing fails. +Inf if there is none.",
        )
        self.lease_left = _least(
            "vault_lease_remaining_ratio",
            "The share of its duration that the served lease nearest to its end has left; as for the token.",
        )
        self.server_up = _least("vault_server_up", "Whether every manager's server answers: 1 or 0.")
        if registry is not None:  # in multiprocess mode it need not live for its metrics to be read
            _register(
                registry,
                (
                    *(self.active, self.draining, self.entries, self.token, self.lease, self.heartbeat),
                    *(self.token_left, self.lease_left, self.server_up),
                ),
            )


def _sum(name: str, text: str) -> Gauge:
    return Gauge(name, text, multiprocess_mode="livesum", registry=None)


def _least(name: str, text: str) -> Gauge:
    return Gauge(name, text, multiprocess_mode="livemin", registry=None)


def _register(registry: CollectorRegistry, metrics: Iterable[Counter | Gauge | Histogram]) -> None:
    """Register every one of *metrics*, or none and raise."""
    done: list[Counter | Gauge | Histogram] = []
    name = ""
    for metric in metrics:
        try:
            registry.register(metric)
        except ValueError:
            name = next(iter(metric.describe())).name
            break
        done.append(metric)
    if name:
        for metric in done:
            registry.unregister(metric)
        raise ConfigurationError(
            f"the metrics registry holds a metric named {name} that is not ours; remove it, or give the manager "
            "a registry of its own: SecretsManager(registry=CollectorRegistry())"
        )
