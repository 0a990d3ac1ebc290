"""The edge side: trains a student on private data while it receives a teacher's logits.

`Distiller` trains from Python, `load_student` loads a trained student. Both load torch when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_student.distiller import Distiller
    from edge_student.inference.student import load_student

__all__ = ["Distiller", "load_student"]

_HOMES = {"Distiller": "edge_student.distiller", "load_student": "edge_student.inference.student"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edge_student' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
