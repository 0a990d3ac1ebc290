"""Class names on the wire. Both ends compare them, so that a label means the same class at both."""

import hashlib
from collections.abc import Sequence

from edgekd.wire.limits import MAX_NAMES, MAX_NAMES_BYTES


def digest_of_names(names: Sequence[str]) -> str:
    """Return the SHA-256 over the names in order, in lower-case hex; empty without names."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest() if names else ""


def sendable(names: Sequence[str]) -> Sequence[str]:
    """Return the names that the answer to Describe contains: all of them, or none if they are too many."""
    return names if len(names) <= MAX_NAMES and sum(len(name.encode()) for name in names) <= MAX_NAMES_BYTES else ()
