"""Identifiers of edges and runs: short, of ASCII letters, digits, dots, underscores and hyphens, not starting with a hyphen.

Such an identifier is safe in metadata, logs and terminals without escaping. Untrusted text is a valid identifier or is ignored.
"""

import secrets
import socket

from edgekd.wire.limits import ID_CHARACTERS, MAX_ID_LENGTH

_DEFAULT_ID = "edge"


def read_id(value: object) -> str | None:
    """Return `value` if it is a valid identifier, else None."""
    if isinstance(value, str) and 1 <= len(value) <= MAX_ID_LENGTH and set(value) <= set(ID_CHARACTERS) and value[0] != "-":
        return value
    return None


def fit_id(text: str) -> str:
    """Convert `text` to a valid identifier: truncate it, replace every other character by a hyphen, and strip leading hyphens.

    A leading hyphen would be parsed as a flag on a command line. Empty text becomes "edge".
    """
    fitted = "".join(character if character in ID_CHARACTERS else "-" for character in text[:MAX_ID_LENGTH])
    return fitted.lstrip("-") or _DEFAULT_ID


def name_of_host() -> str:
    """Return the default identifier of an edge: its host name."""
    return fit_id(socket.gethostname())


def new_run_id() -> str:
    """Return 12 random hex digits, independent of any seed: two runs with the same seed have different ids."""
    return secrets.token_hex(6)
