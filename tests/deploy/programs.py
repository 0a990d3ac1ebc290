"""Command lines and settings files of deploy/, parsed by the programs that use them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloud_teacher.settings
import edge_student.settings.student
from edgekd.cli.command import parse

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CONFIGS: dict[tuple[str, str], type[Any]] = {
    ("cloud-teacher", "train"): cloud_teacher.settings.TrainConfig,
    ("cloud-teacher", "serve"): cloud_teacher.settings.ServeConfig,
    ("edge-student", "train"): edge_student.settings.student.TrainConfig,
}


def accepted(command: Sequence[str], settings: Path | None = None) -> Any:
    """Return the parsed command line of a program, with `settings` as the file for --config. Raises ValueError."""
    path, subcommand, *flags = command
    if "--config" in flags:
        assert settings is not None, f"{command} names a file"
        flags[flags.index("--config") + 1] = str(settings)
    program = Path(path).name
    return parse(CONFIGS[program, subcommand], flags, prog=program, description="")
