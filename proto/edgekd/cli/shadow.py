"""Detects a module of another origin that has the name of a package of EdgeKD, before its import fails with a traceback."""

import importlib
import importlib.util
import sys
from pathlib import Path

# A file of each package that no other module of this name has.
_MARKERS = {"scheduler": "live/loop.py", "cloud_teacher": "serve.py", "edge_student": "fetch.py"}


def check_packages(*names: str) -> None:
    """End the program with a one-line error if another file is imported in place of one of these packages."""
    for name in names:
        spec = importlib.util.find_spec(name)
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        if not any((Path(folder) / _MARKERS[name]).exists() for folder in folders):
            found = None if spec is None else spec.origin or next(iter(folders), None)
            cause = f"{found} has the name of EdgeKD's package {name}" if found else f"EdgeKD's package {name} is not installed"
            remedy = "rename it, uninstall it, or remove its folder from PYTHONPATH" if found else "install edgekd again"
            print(f"error: {cause}: {remedy}", file=sys.stderr)
            sys.exit(2)


def core_scheduler() -> None:
    """Run the program core-scheduler. Its own package may be the one that is shadowed, so it is imported after the check."""
    check_packages("scheduler")
    importlib.import_module("scheduler.__main__").main()
