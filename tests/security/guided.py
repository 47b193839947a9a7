"""``python -m tests.security.guided [SECONDS]``: coverage-guided fuzzing, by atheris, of paths, settings, durations, audit
lines and answers. A failure is kept in the folder ``fuzz-findings`` and can be given as an argument to run it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vault_middleware"]):
    from tests.security import oracles
    from vault_middleware.config import VARIABLES

_NAMES = [name for variable in VARIABLES for name in (variable.name, variable.also) if name]


def one(data: bytes) -> None:
    """One input; its first byte says what for."""
    source = atheris.FuzzedDataProvider(data)
    match source.ConsumeIntInRange(0, 4):
        case 0:
            oracles.path(source.ConsumeUnicode(sys.maxsize))
        case 1:
            names = [source.PickValueInList(_NAMES) for _ in range(source.ConsumeIntInRange(1, 4))]
            texts = (source.ConsumeUnicodeNoSurrogates(40).replace("\0", "") for _ in names)
            oracles.environment(dict(zip(names, texts, strict=True)))
        case 2:
            oracles.seconds(source.ConsumeUnicode(40))
        case 3:
            oracles.audit_line(*(source.ConsumeUnicode(600) for _ in range(5)))
        case _:
            status = source.PickValueInList([200, 200, 204, 400, 403, 404, 412, 429, 500, 501, 503])
            headers = {
                "Age": source.ConsumeUnicodeNoSurrogates(12),
                "Retry-After": source.ConsumeUnicodeNoSurrogates(12),
            }
            oracles.answer(status, source.ConsumeBytes(sys.maxsize), headers)


def main(arguments: list[str]) -> None:
    """Fuzz for as many seconds, 60 by default, or run the files that are named."""
    findings = Path("fuzz-findings")
    findings.mkdir(exist_ok=True)
    corpus = findings / "corpus"
    if not corpus.exists():
        corpus.mkdir()
        _seed(corpus)
    seconds = next((each for each in arguments if each.isdigit()), "60")
    files = [each for each in arguments if not each.isdigit()]
    limits = ["-max_len=4096", "-rss_limit_mb=2048", "-timeout=10", f"-artifact_prefix={findings}/"]
    atheris.Setup([sys.argv[0], *limits, *(files or [f"-max_total_time={seconds}", str(corpus)])], one)
    atheris.Fuzz()


def _seed(corpus: Path) -> None:
    """Something to begin with: a good answer, and what a hostile path looks like."""
    good = b'{"request_id": "r", "lease_id": "a/b/c", "lease_duration": 60, "renewable": true, "data": {"data": {"a": "b"}, '
    good += b'"metadata": {"version": 1}}, "auth": {"client_token": "hvs.x", "lease_duration": 60, "renewable": true}}'
    for number, text in enumerate((good, b"shared/%2e%2e/x", b"1h30m", b"https://vault:8200", b"\x00" * 40)):
        for last in range(5):  # integers are taken from the end
            (corpus / f"seed-{number}-{last}").write_bytes(text + bytes([last]))


if __name__ == "__main__":
    main(sys.argv[1:])
