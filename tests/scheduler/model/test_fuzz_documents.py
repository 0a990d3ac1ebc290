"""Fuzzed scenarios, samples, profiles and policy names give a value, or one ValueError that names the place and the value."""

import json
from typing import Any

import pytest
from hostile import ANY_JSON, CONTROL, allocating_at_most, nearly
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.model.checked_json import read_json
from scheduler.model.samples import Samples
from scheduler.model.scenario import Profile, Scenario
from scheduler.policies.registry import POLICIES, make_policy

COST = {"a1": 2.0, "a2": 0.2, "b1": 0.5, "b2": 1.0, "b3": 3}
MODES = [
    {"name": "comp-only", "comm_rate": 0.0, "comp_rate": 2.0},
    {"name": "split:1", "comm_rate": 1.0, "comp_rate": 1.0, "comm_interval": [0.5, 1.5], "num_comm": 3, "interval_level": 0.95},
    {"name": "comm-only", "comm_rate": 2.0, "comp_rate": 0.0, "comm_cpu_share": None},
    {"name": "compute-first", "comm_rate": 0.5, "comp_rate": 1.5},
]
SAMPLES = {
    "cores": 3,
    "comp": [{"work": 1.0, "comm_cores": c, "seconds": 2.0 + c} for c in range(3)],
    "comm": [{"work": 1.0, "comm_cores": c, "seconds": 4.0 - c} for c in range(1, 4)],
}
PROFILES = [
    {"cores": 4, "forward": 1, "backward": 2.0, "comm": 1.5, "cost": COST},
    {"cores": 2, "forward": 1, "backward": 2.0, "comm": 1.5, "modes": MODES, "samples": SAMPLES, "fingerprint": {}},
]
SCENARIOS = [
    {"cores": 4, "cycles": 3, "forward": 1, "backward": [1, 2.0, 3], "comm": 0, "prefetch": 2, "cost": COST},
    {"cores": 2, "cycles": 2, "forward": 1, "backward": 2.0, "comm": [1.5, 0], "modes": MODES},
]
READERS: dict[str, tuple[Any, list[Any]]] = {
    "scenario": (Scenario.from_json, SCENARIOS),
    "profile": (Profile.from_json, PROFILES),
    "samples": (Samples.from_json, [SAMPLES, {"modes": MODES, "samples": SAMPLES}]),
}
# A valid document may have many cycles. An invalid document may cost no more than about its own size.
ENOUGH = 1 << 20


def read_or_refuse(read: Any, data: Any) -> None:
    try:
        with allocating_at_most(ENOUGH):
            read(data)
    except ValueError as error:
        assert str(error).isprintable(), "one line that a terminal can take"
        assert len(str(error)) < 2000


@pytest.mark.parametrize("kind", READERS)
def test_the_documents_are_valid_before_fuzzing(kind: str) -> None:
    read, documents = READERS[kind]
    for document in documents:
        read(document)


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
@settings(max_examples=300)
def test_a_document_that_is_nearly_right_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    read, documents = READERS[kind]
    read_or_refuse(read, data.draw(nearly(data.draw(st.sampled_from(documents)))))


@pytest.mark.parametrize("kind", READERS)
@given(document=ANY_JSON)
@settings(max_examples=60)
def test_any_json_is_read_or_refused(kind: str, document: Any) -> None:
    read_or_refuse(READERS[kind][0], document)


@given(text=st.text(max_size=40) | ANY_JSON.map(json.dumps) | st.text('[]{}",:0123456789.eE-+ntf', max_size=30))
@settings(max_examples=200)
def test_any_text_is_json_or_refused(text: str) -> None:
    read_or_refuse(lambda text: read_json(text, "it"), text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        '{"a": 1, "a": 2}',
        "NaN",
        '"\ud800"',
        f'{{"{"k" * 5000}": 1}}',
        "1" + "0" * 4000,
    ],
    ids=["lists", "objects", "digits", "twice", "no number", "half a character", "a long key", "a large number"],
)
@pytest.mark.parametrize("read", [Scenario.from_text, Samples.from_text], ids=["scenario", "samples"])
def test_text_that_would_break_a_parser_is_refused(read: Any, text: str) -> None:
    with pytest.raises(ValueError) as refusal:
        read(text)
    assert len(str(refusal.value)) < 2000


@pytest.mark.parametrize("place", ["cores", "forward", "cost"])
def test_deeply_nested_json_is_rejected_at_any_place(place: str) -> None:
    """Just below the parser's depth limit, building the error message must not fail either."""
    for depth in range(900, 1000):
        nested = "[" * depth + "]" * depth
        text = json.dumps({**SCENARIOS[0], place: "HERE"}).replace('"HERE"', nested)
        with pytest.raises(ValueError, match=r"^scenario"):
            Scenario.from_text(text)


words = st.sampled_from([*POLICIES, "static:1", "static:3", "statik", CONTROL])
arguments = st.text(max_size=8) | st.integers().map(str) | st.sampled_from(["9" * 5000, "\u0663", "\u00b2", "+1", " 1", "1:1", ""])


names = words | st.text(max_size=12) | st.builds("{}:{}".format, words, arguments)


@given(name=names, num_cores=st.integers(-1, 5), seed=st.integers())
@settings(max_examples=300)
def test_any_name_is_a_policy_or_refused(name: str, num_cores: int, seed: int) -> None:
    try:
        policy = make_policy(name, num_cores=num_cores, seed=seed)
    except ValueError as error:
        assert str(error).startswith(("policy '", 'policy "', "num_cores is "))
    else:
        assert policy.name.partition(":")[0] in POLICIES
