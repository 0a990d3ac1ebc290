"""Imports the user's own models and data sets by package.module:callable."""

import importlib
import os
import sys
from typing import Any

from edgekd.data.splits import OWN


def names_callable(text: str) -> bool:
    """Return whether `text` has the form package.module:callable."""
    match = OWN.fullmatch(text)
    return match is not None and match["split"] is None


def import_attribute(module: str, name: str, *, what: str, forms: str) -> Any:
    """Return attribute `name` of a module that is installed, on PYTHONPATH, or in the current folder. It must be callable.

    The current folder is searched last, so a file there cannot replace a library. Raises ValueError, which names `what` and the
    allowed `forms`.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        attribute = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's module may raise anything, and the user must fix it
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{what} cannot be imported: {kind}{error}; must be {forms}, with its module in the current folder, "
            "installed or on PYTHONPATH"
        ) from error
    if not callable(attribute):
        raise ValueError(f"{what} names a {type(attribute).__name__}, must be a callable")
    return attribute
