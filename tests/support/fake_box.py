"""Build fake machines: kernel files below a folder, from the texts in boxes/.

`vm` has excerpts from a real machine, except for its route. The others follow the known format of such machines, with values that
a test needs. They are examples of the file format, not measurements.
"""

import re
from pathlib import Path

from edge_student.host.counters import Machine

BOXES = Path(__file__).parent / "boxes"
_FILE = re.compile(r"^== (\S+?)(?: -> (\S+))?\n", re.MULTILINE)


def build(name: str, root: Path) -> Machine:
    """Write the files of boxes/`name`.txt below `root`. A line `== A -> B` makes a link from A to the folder B."""
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
    """Return a machine with the files below `root` and without firmware."""
    return Machine(root=root, ask_firmware=lambda: None)
