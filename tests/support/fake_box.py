"""Machines as files below a folder, from the texts in boxes/.

`vm` is made of excerpts from a real one, but for its route. The others were put together from what such machines are known to
say, with the values that a test needs: they stand for the form of these files, not for a measurement.
"""

import re
from pathlib import Path

from edge_student.host.counters import Machine

BOXES = Path(__file__).parent / "boxes"
_FILE = re.compile(r"^== (\S+?)(?: -> (\S+))?\n", re.MULTILINE)


def build(name: str, root: Path) -> Machine:
    """The machine of boxes/`name`.txt, with its files below `root`; a line `== A -> B` is a link from A to the folder B."""
    parts = _FILE.split((BOXES / f"{name}.txt").read_text(encoding="utf-8"))
    for path, target, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if target:
            (root / target).mkdir(parents=True, exist_ok=True)
            (root / path).symlink_to(root / target)
        else:
            (root / path).write_text(text, encoding="utf-8")
    return machine_at(root)


def machine_at(root: Path) -> Machine:
    """A machine that has these files and no firmware to ask."""
    return Machine(root=root, ask_firmware=lambda: None)
