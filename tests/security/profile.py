"""A pytest plugin with the hypothesis profile of the full fuzzing, for property tests that know nothing of it."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz", max_examples=10_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
