"""Any values of the right types are accepted as settings, or rejected with one ValueError that names a flag."""

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_teacher import settings as cloud
from edge_student.settings import student as edge
from edge_student.settings.doctor import DoctorConfig
from edge_student.settings.fetch import FetchConfig

CLASSES = [
    edge.TrainConfig,
    edge.CompareConfig,
    edge.CalibrateConfig,
    FetchConfig,
    DoctorConfig,
    cloud.TrainConfig,
    cloud.ServeConfig,
    cloud.PrecomputeConfig,
]
WHOLE = st.integers(-3, 5) | st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, 2**64, -(2**63), 10**400])
FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 1.0, 1e-320, 1e308, math.nan, math.inf, -math.inf])
TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        "127.0.0.1:1",
        "vm:0",
        "digits:private",
        "digits",
        "cnn",
        "0-1",
        "0,9999",
        "static:1",
        "os-default",
        "a,b",
        "topk",
        "100mbit",
        "x" * 5000,
    ]
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return st.one_of(*map(values, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return st.lists(values(typing.get_args(hint)[0]), max_size=3).map(tuple)
    known = {int: WHOLE, float: FLOATS, str: TEXTS, bool: st.booleans(), Path: TEXTS.map(lambda text: Path(text.replace("\0", "")))}
    if hint in known:
        return known[hint]
    return st.none() if hint is types.NoneType else st.sampled_from(list(hint))


@pytest.mark.parametrize("config_class", CLASSES, ids=lambda each: f"{each.__module__}.{each.__name__}")
@given(data=st.data())
@settings(max_examples=120)
def test_any_settings_are_accepted_or_refused_by_a_flag(config_class: type[Any], data: st.DataObject) -> None:
    hints = typing.get_type_hints(config_class)
    fields = [field.name for field in dataclasses.fields(config_class) if field.init]
    sound = {"teacher": "127.0.0.1:1", "private": "digits:private", "dataset": "digits:public", "model": "cnn", "cycles": 2}
    sound |= {"listen": "127.0.0.1:0", "out": Path("out"), "weights": None}
    given_values = {name: value for name, value in sound.items() if name in fields}
    for name in data.draw(st.lists(st.sampled_from(fields), max_size=4)):
        given_values[name] = data.draw(values(hints[name]), label=name)
    try:
        config = config_class(**given_values)
    except ValueError as error:
        assert "--" in str(error) or "rate limit" in str(error) or "model" in str(error) or "policy" in str(error), error
        return
    for name in fields:
        value = getattr(config, name)
        assert not isinstance(value, float) or math.isfinite(value), f"{name} = {value} was accepted"
