"""A finding: the product is bad. The report owns the verdict; gates only return findings."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["fail", "warn"]


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing wrong with an image, a plan or a run.

    `where` names the image or the cell id, `evidence` quotes what was seen. `line` is the 1-based
    line in the matrix or log the finding points at, when there is one.
    """

    gate: str
    rule: str
    message: str
    where: str = ""
    severity: Severity = "fail"
    evidence: tuple[str, ...] = ()
    line: int | None = None


def failures(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings that fail a build; the rest are warnings."""
    return tuple(finding for finding in findings if finding.severity == "fail")
