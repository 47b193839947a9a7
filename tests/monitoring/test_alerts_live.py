"""Each alert fires in its scenario and not otherwise: a real Prometheus scrapes real gateways, all scenarios at once.

Minutes of the rules are seconds here; nothing else of them is changed.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.integration.support import DYNAMIC, JWT, STATIC
from tests.waiting import eventually
from vault_middleware import RequestSecrets
from vault_middleware.devstack import DevStack
from vault_middleware.errors import SecretUnavailable

from .dashboard import queries
from .scraped import RULES, Gateway, Prometheus, quickened, together

#: Every name of the rules, without what they have in common.
PREFIX = "VaultMiddleware"

#: What must fire in each scenario, and what may.
EXPECTED: dict[str, tuple[set[str], set[str]]] = {
    "healthy": (set(), set()),
    "server-down": ({"ServerDown"}, set()),
    "server-down-uncached": ({"ServerDown", "SecretsUnavailable"}, set()),
    "database-down": ({"LeaseRenewalsFailing", "LeaseExpiring"}, set()),
    "login-refused": ({"LoginsFailing"}, set()),
    # Its log-ins fail too; whether for long enough before the token ends is left to the schedule.
    "token-ending": ({"TokenExpiring"}, {"LoginsFailing"}),
    "disk-full": ({"AuditFailing"}, set()),
    "leaking": ({"LeakFound"}, set()),
    "renewer-dead": ({"RenewerStalled"}, set()),
    "denied": ({"ReadsDenied"}, set()),
    "always-fresh": ({"CacheMissesHigh"}, set()),
}


@dataclass
class Observed:
    """What has been seen: of the alerts before anything was broken, and after."""

    prometheus: Prometheus
    before: set[str] = field(default_factory=set)
    fired: dict[str, set[str]] = field(default_factory=dict)


def usual(secrets: RequestSecrets) -> None:
    secrets.get_secret(STATIC)
    secrets.get_secret(JWT)
    secrets.get_dynamic_secret(DYNAMIC)


def static(secrets: RequestSecrets) -> None:
    secrets.get_secret(STATIC)


def reading(path: str, **how: bool) -> Callable[[RequestSecrets], None]:
    def work(secrets: RequestSecrets) -> None:
        secrets.get_secret(path, **how)

    return work


def leaking_once() -> Callable[[RequestSecrets], str | None]:
    """Requests of which the first one answers with a secret's value."""
    first = iter([True])

    def work(secrets: RequestSecrets) -> str | None:
        value: str = secrets.get_secret(STATIC)["value"]
        return value if next(first, False) else None

    return work


@pytest.fixture(scope="module")
def observed(_at_length: None, stack: DevStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("prometheus")
    with contextlib.ExitStack() as all_of_it:
        down, database, login = together(
            all_of_it,
            {"lease_ttl": 600, "lease_max_ttl": 3600},
            {"lease_ttl": 20, "lease_max_ttl": 60},
            {"token_ttl": 20, "token_max_ttl": 20},
        )
        gateways = {
            gateway.name: all_of_it.enter_context(gateway)
            for gateway in (
                Gateway("healthy", stack, usual, tripwire="alarm"),
                Gateway("server-down", down, usual, VAULT_CACHE_TTL="2s"),  # or nothing is asked of it for minutes
                Gateway("server-down-uncached", down, usual),
                Gateway("database-down", database, usual),
                Gateway("login-refused", login, None, VAULT_STARTUP="lazy"),
                Gateway("token-ending", login, None),
                Gateway("disk-full", stack, None, VAULT_AUDIT_LOG="/dev/full"),
                Gateway("leaking", stack, static, tripwire="alarm"),
                Gateway("renewer-dead", stack, static),
                Gateway("denied", stack, static),
                Gateway("always-fresh", stack, static),
            )
        }
        targets = {name: gateway.address for name, gateway in gateways.items()}
        with Prometheus(folder, targets) as prometheus:
            found = Observed(prometheus)
            healthy = "sum(count_over_time(up[1h]) >= bool 6) == {} and sum(up) == {}"
            eventually(lambda: prometheus.query(healthy.format(len(targets), len(targets))), "all to be scraped")
            found.before = prometheus.fired()
            _break(gateways, down, database, login)
            found.fired = _watch(prometheus)
            yield found


def _break(gateways: dict[str, Gateway], down: DevStack, database: DevStack, login: DevStack) -> None:
    login.kubernetes.available = False
    with contextlib.suppress(SecretUnavailable):
        gateways["login-refused"].manager.get_secret(STATIC)
    gateways["disk-full"].work = static
    gateways["leaking"].work = leaking_once()
    gateways["denied"].work = reading("not-permitted/at-all")
    gateways["always-fresh"].work = reading(STATIC, fresh=True)
    gateways["renewer-dead"].manager._engine.renewer.stop(2.0)
    down.bao.kill()
    gateways["server-down-uncached"].work = reading("api-gateway/never-read")
    waiting = gateways["database-down"]
    waiting.work = None  # or its readers would ask for the rejected one themselves
    credential = waiting.manager.get_dynamic_secret(DYNAMIC)
    database.postgres.stop()
    waiting.manager.reject(credential)


def _watch(prometheus: Prometheus) -> dict[str, set[str]]:
    """What has fired in each scenario, once all that must fire has."""
    expected = {f"{scenario}/{PREFIX}{name}" for scenario, (must, _) in EXPECTED.items() for name in must}

    def seen() -> set[str]:
        found = prometheus.query('last_over_time(ALERTS{alertstate="firing"}[1h])')
        return {f"{each['metric']['scenario']}/{each['metric']['alertname']}" for each in found}

    deadline = time.monotonic() + 45
    while not expected <= seen() and time.monotonic() < deadline:  # each test says what is missing
        threading.Event().wait(0.5)
    fired: dict[str, set[str]] = {scenario: set() for scenario in EXPECTED}
    for each in seen():
        scenario, _, name = each.partition("/")
        fired[scenario].add(name.removeprefix(PREFIX))
    return fired


def test_no_alert_fires_while_all_is_well(observed: Observed) -> None:
    assert observed.before == set()


@pytest.mark.parametrize("scenario", EXPECTED)
def test_what_belongs_to_a_scenario_fires_in_it_and_nothing_else(observed: Observed, scenario: str) -> None:
    must, may = EXPECTED[scenario]
    assert must <= observed.fired[scenario] <= must | may


def test_every_alert_has_a_scenario() -> None:
    names = {line.split()[-1] for line in RULES.read_text().splitlines() if "- alert:" in line}
    assert names == {PREFIX + name for must, _ in EXPECTED.values() for name in must}


def test_only_times_are_changed_in_the_rules_that_run_here() -> None:
    slow, quick = RULES.read_text(), quickened(RULES.read_text())
    assert slow != quick
    changed = [(a, b) for a, b in zip(slow.splitlines(), quick.splitlines(), strict=True) if a != b]
    assert len(changed) >= 10
    assert all(b.replace("s]", "m]").replace("s)", "m)") == a or a.startswith("        for:") for a, b in changed), (
        changed
    )
    assert "m]" not in quick
    assert "5m" not in quick.replace("5mi", "")


@pytest.mark.parametrize(
    ("title", "query"), [pytest.param(panel["title"], query, id=panel["title"]) for panel, query, _ in queries("1m")]
)
def test_each_query_of_the_dashboard_returns_data(observed: Observed, title: str, query: str) -> None:
    values = [float(value) for each in observed.prometheus.series(query, 20, 1) for _, value in each["values"]]
    assert [value for value in values if math.isfinite(value)], title


def test_the_dashboard_and_the_rules_use_every_metric_and_no_other(observed: Observed) -> None:
    used = set(re.findall(r"\bvault_\w+", RULES.read_text() + " ".join(query for _, query, _ in queries())))
    exported = {
        each["metric"]["__name__"] for each in observed.prometheus.query('{__name__=~"vault_.+", job="gateways"}')
    }
    # Of a histogram the quantiles need the buckets only, and nobody needs the time of a counter's making.
    exported = {name for name in exported if not name.endswith(("_created", "_sum", "_count"))}
    used = {name for name in used if not name.endswith("_count")}
    assert used == exported
