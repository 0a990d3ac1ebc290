"""Define the result of one check of `doctor`: its name, status, summary and remedy.

A check that cannot read its input is `unknown` and names the reason. It is never `ok`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Status of a finding, from good to bad."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but readers of results should know it."""
    UNKNOWN = "unknown"
    """The check could not read its input, so any state is possible."""
    WARNING = "warning"
    """Runs work, but their measurements are misleading, or a failure is near."""
    PROBLEM = "problem"
    """A run fails, or its result is invalid."""

    @property
    def severity(self) -> int:
        """Return the rank of the status; larger is worse."""
        return list(Status).index(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one check. `check` is AREA.NAME and stays the same in every version.

    `summary` is one sentence with the measured values. `remedy` is a command or an action, empty only for `ok`. `details` are the
    values as plain JSON.
    """

    check: str
    status: Status
    summary: str
    remedy: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        assert bool(self.remedy) is (self.status is not Status.OK), f"{self.check}: every status except ok needs a remedy"

    @property
    def area(self) -> str:
        """Return the part of `check` before the dot."""
        return self.check.partition(".")[0]

    def as_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON values."""
        return {**dataclasses.asdict(self), "status": self.status.value, "details": dict(self.details)}


def ok(check: str, summary: str, **details: Any) -> Finding:
    """Return a finding without a defect."""
    return Finding(check=check, status=Status.OK, summary=summary, details=details)


def note(check: str, summary: str, remedy: str, **details: Any) -> Finding:
    """Return a finding that is no defect, but that readers of results should know."""
    return Finding(check=check, status=Status.NOTE, summary=summary, remedy=remedy, details=details)


def unknown(check: str, summary: str, remedy: str, **details: Any) -> Finding:
    """Return a finding of a check that could not read its input. `summary` names the reason."""
    return Finding(check=check, status=Status.UNKNOWN, summary=summary, remedy=remedy, details=details)


def warning(check: str, summary: str, remedy: str, **details: Any) -> Finding:
    """Return a finding that lets runs work but makes measurements misleading."""
    return Finding(check=check, status=Status.WARNING, summary=summary, remedy=remedy, details=details)


def problem(check: str, summary: str, remedy: str, **details: Any) -> Finding:
    """Return a finding that makes runs fail or invalidates their results."""
    return Finding(check=check, status=Status.PROBLEM, summary=summary, remedy=remedy, details=details)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status of the findings, `ok` if there are none."""
    return max((finding.status for finding in findings), key=lambda status: status.severity, default=Status.OK)
