"""Names of edges and runs: what counts as one, and how any text becomes one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.wire.identity import fit_id, name_of_host, new_run_id, read_id
from edgekd.wire.limits import EDGE_ID_KEY, RUN_ID_KEY


@pytest.mark.parametrize("name", ["a", "pi-1", "Rack_3.left", "a-", "x" * 64])
def test_a_name_is_read_as_it_is(name: str) -> None:
    assert read_id(name) == name


@pytest.mark.parametrize("value", ["", "-", "-a", "x" * 65, "a b", "a\n", "\x1b[31m", "\u00e4", "a/b", "a:1", b"pi-1", None, 3])
def test_anything_else_is_no_name(value: object) -> None:
    assert read_id(value) is None


@given(st.text(st.characters(max_codepoint=0x17F)))
def test_any_text_can_be_made_a_name_and_a_name_stays(text: str) -> None:
    fitted = fit_id(text)
    assert read_id(fitted) == fitted
    assert fit_id(fitted) == fitted
    assert not fitted.startswith("-")


def test_host_and_run_have_names() -> None:
    assert read_id(name_of_host())
    assert read_id(new_run_id())
    assert len({new_run_id() for _ in range(50)}) == 50
    assert len(new_run_id()) == 12


def test_keys_are_what_http2_and_grpc_allow() -> None:
    assert all(key.isascii() and key == key.lower() and not key.endswith("-bin") for key in (EDGE_ID_KEY, RUN_ID_KEY))
