"""Parse core lists of the command line, for example 0-3 or 0,2."""

_MAX_CORE, _MAX_DIGITS = 4095, 4


def parse_cores(text: str) -> frozenset[int]:
    """Return the core ids of "0-3", "0,2" or "0-1,6". Raises ValueError for other text. Does not check that the cores exist."""
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first]
        if not all(end.isascii() and end.isdigit() and len(end) <= _MAX_DIGITS and int(end) <= _MAX_CORE for end in ends):
            raise ValueError(f"--cores is {text!r}: {part!r} is neither a core nor a range; write cores like 0-3 or 0,2")
        if int(ends[0]) > int(ends[-1]):
            raise ValueError(f"--cores is {text!r}: range {part!r} is descending; write the lower core first")
        cores.update(range(int(ends[0]), int(ends[-1]) + 1))
    return frozenset(cores)
