"""When things are done: the formulas, and the loop that follows them, under any script of failures."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from vault_middleware.errors import VaultUnavailable
from vault_middleware.renewal import schedule
from vault_middleware.retry import FLOOR, for_lease, for_login, lease_wait, login_wait

durations = st.floats(min_value=0.5, max_value=1e7)
seeds = st.integers(0, 2**32)


@given(durations, seeds)
def test_every_delay_is_a_fraction_of_the_duration_within_its_bounds(duration: float, seed: int) -> None:
    uniform = random.Random(seed).uniform
    assert 0.05 * duration <= schedule.first_renewal(duration, uniform) <= 0.77 * duration
    assert 0.67 * duration <= schedule.renewal(duration, uniform) <= 0.77 * duration
    assert 0.70 * duration <= schedule.rotation(duration, uniform) <= 0.80 * duration
    assert 0.50 * duration <= schedule.refresh(duration, uniform) <= 0.80 * duration


@given(durations)
def test_a_new_log_in_comes_after_the_last_renewal_would_and_before_the_end(duration: float) -> None:
    assert 0 < schedule.relogin_margin(duration) <= 0.2 * duration + 1e-6 or duration > 100
    assert schedule.relogin_margin(duration) < 0.23 * duration


@given(durations, st.floats(0.0, 1.0))
def test_a_grant_is_short_only_if_it_misses_a_tenth_or_a_second(asked: float, share: float) -> None:
    granted = asked * share
    assert schedule.granted_short(asked, granted) == (asked - granted > min(1.0, 0.1 * asked))


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_a_renewal_ends_when_it_says_unless_it_only_lost_a_fraction_of_a_second(known: float, granted: float) -> None:
    until = schedule.renewed_until(known, granted)
    assert until == (known if granted < known < granted + 1.0 else granted)


@given(st.integers(1, 10_000), st.floats(-10.0, 1e7), seeds)
def test_a_wait_after_a_failure_is_in_proportion_to_what_is_left_and_never_under_the_floor(
    failures: int, left: float, seed: int
) -> None:
    wait = lease_wait(failures, left, random.Random(seed).uniform)
    assert wait >= FLOOR
    assert wait <= max(FLOOR, left / 4, 0)
    assert wait <= 300.0
    if left >= 4.0:
        assert wait >= min(1.0, left / 4)


@given(st.integers(1, 10_000), seeds)
def test_a_log_in_is_never_tried_again_within_a_second_and_always_within_five_minutes(failures: int, seed: int) -> None:
    assert 1.0 <= login_wait(failures, random.Random(seed).uniform) <= 300.0


@given(st.floats(0.0, 1e6), seeds)
def test_the_tries_of_a_failing_lease_are_bounded_by_the_time_that_is_left(left: float, seed: int) -> None:
    """Whatever fails, for however long: at most time left / floor + 1 calls, none after the end, and no hot loop."""
    now, calls = 0.0, 0
    backoff = for_lease(lambda: left - now, random.Random(seed).uniform)
    while True:
        calls += 1
        pause = backoff.failed(VaultUnavailable("down"))
        if pause is None:
            break
        assert pause >= FLOOR
        now += pause
        assert now < left
    assert calls <= left / FLOOR + 1
    assert calls == backoff.failures


@given(seeds)
def test_the_pauses_between_log_ins_grow_to_the_cap_and_stay_there(seed: int) -> None:
    backoff = for_login(random.Random(seed).uniform)
    pauses = [backoff.failed(VaultUnavailable("down")) or math.nan for _ in range(12)]
    assert 1.0 <= pauses[0] <= 1.0
    assert all(225.0 <= pause <= 300.0 for pause in pauses[-3:])
