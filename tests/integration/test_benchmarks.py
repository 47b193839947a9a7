"""The benchmarks of scale in a small form, and the instructions of the hit path: they run, and their promises hold.

``make scale`` and ``make bench`` run them in full; docs/scale.md and docs/performance.md have the figures.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def output_of(name: str, *options: str) -> str:
    """What the benchmark printed; it must have found its promises kept."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figure(pattern: str, text: str) -> float:
    """The number that *pattern* finds in *text*."""
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern!r} in:\n{text}"
    return float(found[1])


def test_leases_are_renewed_before_their_deadline_and_the_figures_are_printed() -> None:
    text = output_of("leases", "--leases", "200", "--ttl", "20", "--mounts", "2", "--seconds", "8")
    assert "0 leases lost, 0 failed tries, 0 renewed past the deadline, 0 twice in a period" in text
    assert figure(r"renewals, ([\d.]+)/s", text) > 0
    assert figure(r"p50 ([\d.]+) ms", text) <= figure(r"p99 ([\d.]+) ms", text)
    assert figure(r"CPU of the process: ([\d.]+) s", text) > 0
    assert figure(r"memory a lease: (-?[\d.]+) KiB", text) < 100
    assert figure(r"server calls: (\d+)", text) >= figure(r"of which (\d+) renewals", text) > 0
    assert figure(r"one mount sustains (\d+) renewals/s", text) > 0
    assert figure(r"2 mounts sustain (\d+) renewals/s", text) > 0
    assert figure(r"(\d+) leases left at the server", text) == 0


def test_a_fleet_that_started_at_one_instant_stays_spread_out() -> None:
    small = ("--managers", "4", "--seconds", "14", "--bin", "2", "--lease", "6", "--token", "12", "--static", "2")
    text = output_of("fleet", *small)
    assert len(re.findall(r"^ *\d+ s +\d+ [▒█]+$", text, re.MULTILINE)) == 7
    assert figure(r"peak/mean ([\d.]+)", text) <= 2
    assert figure(r"(\d+) static reads", text) > figure(r"(\d+) lease renewals", text) > 0
    assert "0 failed; 0 leases left" in text


def test_the_simulated_fleet_shows_its_steady_state_and_what_follows_an_outage() -> None:
    text = output_of("fleet_simulation", "--pods", "60", "--seconds", "200", "--outage", "20")
    assert figure(r"peak/mean ([\d.]+)", text) <= 2
    assert figure(r"ten seconds after it: peak (\d+)/s", text) > 0
    assert "60 pods, 200 s, the server down from 100 s to 120 s" in text


@pytest.mark.parametrize("name", ["leases", "fleet"])
def test_a_broken_promise_is_an_exit_status(name: str) -> None:
    # A fleet of one that is looked at tenth by tenth of a second is nothing but peaks; of no seconds, nothing is renewed.
    options = {
        "leases": ("--leases", "2", "--seconds", "0"),
        "fleet": ("--managers", "1", "--seconds", "8", "--bin", "0.1", "--static", "4", "--lease", "8"),
    }
    command = [sys.executable, "-m", f"benchmarks.{name}", *options[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "✗ " in done.stdout


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed, which counts instructions")
def test_a_hit_takes_no_more_instructions_than_its_bound() -> None:
    text = output_of("instructions", "--check")
    held = re.findall(r"(\d+\.\d) of the floor  bound (\d+\.\d)$", text, re.MULTILINE)
    assert len(held) == 7
    assert all(1 < float(found) <= float(bound) for found, bound in held)
