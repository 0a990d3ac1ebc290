"""Names that edges and their runs go by: short, of letters, digits, dots, underscores and hyphens only, and no hyphen first.

So they can stand in metadata, in a log and in a terminal as they are. What a stranger sends is a name or it is nothing.
"""

import secrets
import socket

from edgekd.wire.limits import ID_CHARACTERS, MAX_ID_LENGTH

_NAMELESS = "edge"


def read_id(value: object) -> str | None:
    """`value` if it is such a name, else None."""
    if isinstance(value, str) and 1 <= len(value) <= MAX_ID_LENGTH and set(value) <= set(ID_CHARACTERS) and value[0] != "-":
        return value
    return None


def fit_id(text: str) -> str:
    """`text` as such a name: cut to the length, with a hyphen for every character that has no place in it, but for the first ones.

    One that began with a hyphen would be taken for a flag where it is handed on.
    """
    fitting = "".join(character if character in ID_CHARACTERS else "-" for character in text[:MAX_ID_LENGTH])
    return fitting.lstrip("-") or _NAMELESS


def name_of_host() -> str:
    """The name of an edge that was given none."""
    return fit_id(socket.gethostname())


def new_run_id() -> str:
    """12 hex digits, drawn anew each time and not from any seed: two runs with the same seed are two runs."""
    return secrets.token_hex(6)
