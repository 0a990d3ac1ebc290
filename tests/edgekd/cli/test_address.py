"""HOST:PORT addresses: parsing, and rejection of invalid ones."""

import pytest

from edgekd.cli.address import parse_address


@pytest.mark.parametrize(
    ("text", "expected"), [("vm:1", ("vm", 1)), ("127.0.0.1:50051", ("127.0.0.1", 50051)), ("[::1]:65535", ("::1", 65535))]
)
def test_host_and_port_are_separated(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text, flag="--teacher", lowest_port=1) == expected


@pytest.mark.parametrize("text", ["vm", "vm:", ":1", "vm:0", "vm:65536", "vm:x", "::1:50051", "vm:-1", ""])
def test_anything_else_is_refused_with_its_flag(text: str) -> None:
    with pytest.raises(ValueError, match=r"--teacher is .*HOST:PORT"):
        parse_address(text, flag="--teacher", lowest_port=1)
