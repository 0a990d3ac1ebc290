"""Words of strangers as a terminal and a log can take them. Standard library only."""


def plain(text: str, most: int | None = None) -> str:
    """`text` with all spelled out that would move a cursor, break a line or turn the writing round; cut to `most` letters."""
    cut = text if most is None or len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)
