"""Inputs for fuzz tests: unexpected JSON, nearly valid documents, and a limit on memory."""

import copy
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.integers() | st.sampled_from([0, -1, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**64, 10**400])
LEAVES = st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=12)
ANY_JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=12
)
CONTROL = "a\x1b[2J\r\n\x00\u202e\ud800"
"""Text that a terminal should not get."""


@st.composite
def nearly(draw: st.DrawFn, document: Any) -> Any:
    """Return a copy of a JSON document with one to three places replaced, deleted, repeated or added."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        changed = _change(draw, changed)
    return changed


def _change(draw: st.DrawFn, document: Any) -> Any:
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 5)) == 0:
        return draw(LEAVES | ANY_JSON)
    place = draw(st.sampled_from(list(document) if isinstance(document, dict) else range(len(document))))
    match draw(st.sampled_from(["descend", "descend", "descend", "delete", "add"])):
        case "descend":
            document[place] = _change(draw, document[place])
        case "delete":
            del document[place]
        case "add" if isinstance(document, dict):
            document[draw(st.text(max_size=6))] = draw(ANY_JSON)
        case _:
            document.append(draw(st.sampled_from([*document, None, 0, "x"])))
    return document


@contextmanager
def allocating_at_most(num_bytes: int) -> Iterator[None]:
    """Fail if the peak memory of Python and numpy grows by more than this within the block."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= num_bytes, f"{peak - before} bytes were allocated, at most {num_bytes} may be"
