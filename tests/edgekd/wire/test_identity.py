"""Identifiers of edges and runs: validation, and conversion of any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.wire.identity import fit_id, name_of_host, new_run_id, read_id
from edgekd.wire.limits import EDGE_ID_KEY, RUN_ID_KEY


@pytest.mark.parametrize("name", ["a", "pi-1", "Rack_3.left", "a-", "x" * 64])
def test_a_valid_id_is_unchanged(name: str) -> None:
    assert read_id(name) == name


@pytest.mark.parametrize("value", ["", "-", "-a", "x" * 65, "a b", "a\n", "\x1b[31m", "\u00e4", "a/b", "a:1", b"pi-1", None, 3])
def test_any_other_value_is_not_an_id(value: object) -> None:
    assert read_id(value) is None


@given(st.text(st.characters(max_codepoint=0x17F)))
def test_any_text_becomes_an_id_and_an_id_is_unchanged(text: str) -> None:
    fitted = fit_id(text)
    assert read_id(fitted) == fitted
    assert fit_id(fitted) == fitted
    assert not fitted.startswith("-")


def test_host_and_run_have_ids() -> None:
    assert read_id(name_of_host())
    assert read_id(new_run_id())
    assert len({new_run_id() for _ in range(50)}) == 50
    assert len(new_run_id()) == 12


def test_metadata_keys_are_valid_for_http2_and_grpc() -> None:
    assert all(key.isascii() and key == key.lower() and not key.endswith("-bin") for key in (EDGE_ID_KEY, RUN_ID_KEY))
