"""How much is fuzzed: a tenth in the normal run, all of it with ``FUZZ=full``, which ``python -m tests.security`` sets."""

from __future__ import annotations

import os

__all__ = ["ANSWERS", "FULL", "NAMES", "PATHS"]

FULL = os.environ.get("FUZZ") == "full"

#: Fuzzed paths, hostile answers, and made-up names.
PATHS, ANSWERS, NAMES = (100_000, 20_000, 100_000) if FULL else (10_000, 2_000, 5_000)
