"""Untrusted weight files: a file that does not fit is rejected in one line, runs no code and changes no weight."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hostile import ANY_JSON, CONTROL, allocating_at_most, nearly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from edgekd.models.weights import load_weights, weights_digest

pytestmark = pytest.mark.promise(number=16)
in_one_folder = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
RAN = "the-payload-ran"
"""File that malicious code would create."""


def model() -> nn.Module:
    made = nn.Linear(3, 2)
    nn.init.constant_(made.weight, 0.5)
    nn.init.constant_(made.bias, 0.25)
    return made


def check(path: Path) -> str | None:
    """Return the error message, None if the file was loaded. Fails if a rejected file changed the model or ran code."""
    target = model()
    before = weights_digest("", target)
    try:
        load_weights(target, path)
    except ValueError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 1000
        assert weights_digest("", target) == before
        return message
    finally:
        assert not Path(RAN).exists(), "code from the file has run"
    return None


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tensors(header: Any, data: bytes, length: int | None = None) -> bytes:
    """Build a safetensors file: length of the header, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HEADER = {
    "bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
}
DATA = struct.pack("<8f", *range(8))


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**HEADER, name: {**HEADER[name], **fields}}


def test_the_file_that_is_changed_here_is_right(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(tensors(HEADER, DATA))
    assert check(tmp_path / "w.safetensors") is None


@pytest.mark.parametrize(
    "content",
    [
        tensors(changed("bias", data_offsets=[-8, 0]), DATA),
        tensors(changed("bias", data_offsets=[8, 0]), DATA),
        tensors(changed("bias", data_offsets=[4, 12]), DATA),
        tensors(changed("bias", data_offsets=[24, 32]), DATA),
        tensors(changed("bias", data_offsets=[2**63, 2**63 + 8]), DATA),
        tensors(changed("bias", data_offsets=[0, 2**64 - 1]), DATA),
        tensors(changed("bias", shape=[2**32, 2**32]), DATA),
        tensors(changed("bias", shape=[-2]), DATA),
        tensors(changed("bias", shape=[2.0]), DATA),
        tensors(changed("bias", dtype="F31"), DATA),
        tensors(changed("bias", dtype="I64", shape=[1]), DATA),
        tensors(changed("bias", dtype="I32"), DATA),
        tensors(changed("bias", dtype="BOOL", shape=[8]), DATA),
        tensors(changed("bias", dtype="C64", shape=[1]), DATA),
        tensors({**HEADER, CONTROL.replace("\ud800", ""): HEADER["bias"]}, DATA),
        tensors({**HEADER, "x" * 5000: {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]}}, DATA),
        tensors({**HEADER, "\x1b[2J\n": {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]}}, DATA),
        tensors(HEADER, DATA[:-1]),
        tensors(HEADER, DATA + b"more"),
        tensors(HEADER, DATA, length=2**63),
        tensors(HEADER, DATA, length=2**64 - 1),
        tensors(HEADER, DATA, length=0),
        tensors(b"[" * 100_000, DATA),
        tensors(b'{"a":' * 10_000, DATA),
        tensors(b"\xff\xfe", DATA),
    ],
)
def test_a_hostile_header_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with allocating_at_most(1 << 20):
        assert check(tmp_path / "w.safetensors") is not None


@given(header=nearly(HEADER) | ANY_JSON)
@in_one_folder
def test_any_header_is_one_or_refused(header: Any, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(tensors(header, DATA))
    check(tmp_path / "w.safetensors")


def torch_file(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


STATE = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
ORIGINALS = {"w.safetensors": tensors(HEADER, DATA), "w.pt": torch_file(STATE)}


@pytest.mark.parametrize("name", ORIGINALS)
@given(data=st.data())
@in_one_folder
def test_a_damaged_file_is_loaded_whole_or_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(ORIGINALS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    (tmp_path / name).write_bytes(content)
    check(tmp_path / name)


class Malicious:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.reduced


def payloads() -> dict[str, Any]:
    import os

    return {
        "open": Malicious(open, RAN, "w"),
        "system": Malicious(os.system, f"touch {RAN}"),
        "exec": Malicious(exec, f"open({RAN!r}, 'w').close()"),
        "getattr": Malicious(getattr, Malicious(__import__, "os"), "mkdir"),
        "path": Malicious(Path.touch, Path(RAN)),
        "load": Malicious(torch.load, RAN, None, None),
        "hub": Malicious(torch.hub.load, "x/y", "z"),
    }


@pytest.mark.parametrize("name", payloads())
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("as_written_by", ["torch", "torch of old", "pickle"])
def test_a_pickle_with_a_payload_never_runs(name: str, suffix: str, as_written_by: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    content = {**STATE, "extra": payloads()[name]}
    match as_written_by:
        case "torch":
            torch.save(content, path)
        case "torch of old":
            torch.save(content, path, _use_new_zipfile_serialization=False)
        case _:
            path.write_bytes(pickle.dumps(payloads()[name]))
    message = check(path)
    assert message is not None
    assert "is damaged or holds more than tensors by name" in message


def test_a_payload_would_run_if_it_were_let(tmp_path: Path) -> None:
    """Proves that the pickle of the test above is malicious."""
    torch.save(payloads()["exec"], tmp_path / "w.pt")
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert Path(RAN).exists()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model()), file)
    return file.getvalue()


ODD_STATES: dict[str, Callable[[], dict[str, Any]]] = {
    "complex": lambda: {**STATE, "bias": torch.ones(2, dtype=torch.complex64)},
    "whole numbers": lambda: {**STATE, "bias": torch.ones(2, dtype=torch.int64)},
    "truths": lambda: {**STATE, "bias": torch.ones(2, dtype=torch.bool)},
    "sparse": lambda: {**STATE, "bias": torch.ones(2).to_sparse()},
    "without data": lambda: {**STATE, "bias": torch.ones(2, device="meta")},
    "quantized": lambda: {**STATE, "bias": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
    "a list": lambda: {**STATE, "bias": [1.0, 1.0]},
    "a strange name": lambda: {**STATE, CONTROL.replace("\ud800", ""): torch.ones(2)},
    "a long name": lambda: {**STATE, "x" * 5000: torch.ones(2)},
    "numbers for names": lambda: {1: torch.ones(2)},
    "nested": lambda: {"state_dict": {"model": {"state_dict": STATE}}},
}


@pytest.mark.parametrize("kind", ODD_STATES)
@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning")
def test_tensors_of_another_kind_are_refused_and_nothing_is_loaded(kind: str, tmp_path: Path) -> None:
    torch.save(ODD_STATES[kind](), tmp_path / "w.pt")
    assert check(tmp_path / "w.pt") is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_width_are_weights_too(dtype: torch.dtype, tmp_path: Path) -> None:
    safetensors.torch.save_file({name: tensor.to(dtype) for name, tensor in STATE.items()}, tmp_path / "w.safetensors")
    assert check(tmp_path / "w.safetensors") is None


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_program_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(scripted())
    assert check(tmp_path / "w.pt") is not None


def test_a_file_that_was_compressed_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    """torch never compresses, and a few kB could expand to gigabytes."""
    original = zipfile.ZipFile(io.BytesIO(torch_file({**STATE, "x": torch.zeros(1 << 22)})))
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in original.namelist():
            bomb.writestr(name, original.read(name))
    assert (tmp_path / "w.pt").stat().st_size < 1 << 17
    message = check(tmp_path / "w.pt")
    assert message is not None
    assert "is damaged or holds more than tensors by name" in message
