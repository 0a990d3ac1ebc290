"""One thing that `doctor` found: what was looked at, what it means, and what to do about it.

Nothing here looks at anything. A check that could not look is `unknown` and says why; it is never `ok`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How bad it is, from good to bad."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but a reader of results should know it."""
    UNKNOWN = "unknown"
    """It could not be looked at, so it may be anything."""
    WARNING = "warning"
    """Runs work, and what they measure is not what one might think, or something is about to break."""
    PROBLEM = "problem"
    """A run fails, or its result is worth nothing."""

    @property
    def severity(self) -> int:
        """Larger is worse."""
        return list(Status).index(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`check` is AREA.NAME, the same in every version. `summary` is one sentence with the values that were found.

    `remedy` is a command or an action, and empty only for `ok`. `details` are the values themselves, as plain JSON.
    """

    check: str
    status: Status
    summary: str
    remedy: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        assert bool(self.remedy) is (self.status is not Status.OK), f"{self.check}: a remedy for all but ok, and only for it"

    @property
    def area(self) -> str:
        """The first word of `check`."""
        return self.check.partition(".")[0]

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {**dataclasses.asdict(self), "status": self.status.value, "details": dict(self.details)}


def ok(check: str, summary: str, **details: Any) -> Finding:
    """All is well."""
    return Finding(check=check, status=Status.OK, summary=summary, details=details)


def note(check: str, summary: str, remedy: str, **details: Any) -> Finding:
    """Nothing is wrong, but it should be known."""
    return Finding(check=check, status=Status.NOTE, summary=summary, remedy=remedy, details=details)


def unknown(check: str, summary: str, remedy: str, **details: Any) -> Finding:
    """It could not be looked at; `summary` says why."""
    return Finding(check=check, status=Status.UNKNOWN, summary=summary, remedy=remedy, details=details)


def warning(check: str, summary: str, remedy: str, **details: Any) -> Finding:
    """It works, and should not stay so."""
    return Finding(check=check, status=Status.WARNING, summary=summary, remedy=remedy, details=details)


def problem(check: str, summary: str, remedy: str, **details: Any) -> Finding:
    """It does not work."""
    return Finding(check=check, status=Status.PROBLEM, summary=summary, remedy=remedy, details=details)


def worst(findings: Iterable[Finding]) -> Status:
    """The worst status among them, `ok` if there are none."""
    return max((finding.status for finding in findings), key=lambda status: status.severity, default=Status.OK)
