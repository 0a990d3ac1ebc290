"""The result file of a benchmark: provenance and settings, followed by the results."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_student.host.provenance import describe_measurement
from edge_student.settings.student import jsonable
from edgekd.files import write_json


def write_results(path: Path | None, *, cores: tuple[int, ...], settings: Any, results: Mapping[str, Any]) -> None:
    """Write {"command", "host", "software", "settings", **results} as JSON. Without a path, do nothing.

    The command is this program's own, `cores` are those of the measurement, and `settings` is a dataclass. Raises ValueError
    for NaN and infinity, and OSError if the file cannot be written.
    """
    if path is not None:
        write_json(path, {**describe_measurement(sys.argv, cores), "settings": jsonable(asdict(settings)), **results})
