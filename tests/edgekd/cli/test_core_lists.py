"""Core lists of the command line."""

import pytest

from edgekd.cli.cores import parse_cores


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0", {0}), ("0-3", {0, 1, 2, 3}), ("0,2", {0, 2}), ("0-1,6", {0, 1, 6}), ("2-2", {2}), ("1,1-2", {1, 2})],
)
def test_cores_and_ranges_are_read(text: str, cores: set[int]) -> None:
    assert parse_cores(text) == cores


@pytest.mark.parametrize("text", ["", ",", "a", "0,", "-1", "1-", "0-1-2", "0 1", "1.5", "99999999", "\u00b2"])
def test_an_invalid_core_is_rejected_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither a core nor a range; write cores like 0-3 or 0,2$"):
        parse_cores(text)


def test_a_range_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match=r"range '3-1' is descending; write the lower core first$"):
        parse_cores("0,3-1")
