"""What a diagnosis finds, step by step, and how it is shown: to people, and to machines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

__all__ = ["Finding", "Findings"]

Sign = Literal["ok", "failed", "warning", "skipped"]

_SIGNS: Final[dict[str, str]] = {"ok": "✓", "failed": "✗", "warning": "!", "skipped": "-"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One step's result.

    Attributes
    ----------
    code
        A stable name of the cause; the troubleshooting page has a heading for each. Empty where all is well.
    found, why, mend
        What was found, why it matters, and the command, setting or policy line that mends it. No value and no token.
    """

    step: str
    sign: Sign
    found: str
    code: str = ""
    why: str = ""
    mend: str = ""


@dataclass
class Findings:
    """The results so far, in the order of the steps: the first that failed is the cause."""

    found: list[Finding] = field(default_factory=list)

    def ok(self, step: str, found: str) -> None:
        """The step is as it should be."""
        self.found.append(Finding(step, "ok", found))

    def fail(self, step: str, code: str, found: str, *, why: str, mend: str) -> None:
        """The service cannot work like this."""
        self.found.append(Finding(step, "failed", found, code, why, mend))

    def warn(self, step: str, code: str, found: str, *, why: str, mend: str) -> None:
        """It works, and will hurt some day."""
        self.found.append(Finding(step, "warning", found, code, why, mend))

    def skip(self, step: str, because: str) -> None:
        """The step was not tried."""
        self.found.append(Finding(step, "skipped", because))

    @property
    def cause(self) -> Finding | None:
        """The first that failed; where none did, the first warning."""
        for sign in ("failed", "warning"):
            for each in self.found:
                if each.sign == sign:
                    return each
        return None

    @property
    def failed(self) -> bool:
        """Whether any step failed."""
        return any(each.sign == "failed" for each in self.found)

    def as_text(self) -> str:
        """For people."""
        lines = []
        for each in self.found:
            lines.append(f"{_SIGNS[each.sign]} {each.step}: {each.found}" + (f"  [{each.code}]" if each.code else ""))
            lines += [
                f"    {name}:{' ' * (5 - len(name))}{text}"
                for name, text in (("why", each.why), ("mend", each.mend))
                if text
            ]
        counts = {sign: sum(each.sign == sign for each in self.found) for sign in _SIGNS}
        verdict = f"{counts['ok']} ✓, {counts['failed']} ✗, {counts['warning']} !"
        if counts["skipped"]:
            verdict += f", {counts['skipped']} not tried"
        cause = self.cause
        if cause is not None and cause.sign == "failed":
            verdict += f"; begin with: {cause.step} ({cause.code})"
        return "\n".join([*lines, "", verdict])

    def as_json(self, **more: Any) -> str:
        """For machines: the verdict, the cause's code, and every step."""
        cause = self.cause
        body = {
            "healthy": not self.failed,
            "cause": None if cause is None else cause.code,
            **more,
            "steps": [asdict(each) for each in self.found],
        }
        return json.dumps(body, ensure_ascii=False, indent=2)
