"""The text form of a data rate."""

import math
import re

_RATE = re.compile(r"(\d+(?:\.\d+)?)(bit|kbit|mbit|gbit)", re.ASCII)
_UNITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def parse_rate(text: str) -> float:
    """Parse "100mbit", "1.5gbit", "64kbit" or "800bit" to bits per second, with decimal prefixes as in networking.

    Raises ValueError for any other form, including spaces and capitals, for a rate below 1 bit/s, and for an infinite one.
    """
    matched = _RATE.fullmatch(text)
    rate = float(matched[1]) * _UNITS[matched[2]] if matched else 0.0
    if not 1 <= rate < math.inf:
        raise ValueError(f"--rate-limit is {text!r}, must be a number and a unit, at least 1bit; write it like 100mbit or 1.5gbit")
    return rate
