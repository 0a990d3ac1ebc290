"""The codec of public inputs: decoded inputs equal the sent ones, and everything else is rejected with a cause."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cloud_teacher.logits.public_inputs import InputChangedError, PublicInputs
from edgekd.data.datasets import load_dataset
from edgekd.errors import WorldError
from edgekd.wire.codec import ChunkError, checksum
from edgekd.wire.inputs import InputEncoding, decode_inputs_into, input_from_wire, input_to_wire, square_pixels
from edgekd.wire.limits import MAX_INPUTS_BYTES

SHAPE = (4, 3, 8, 8)
PIXELS = np.random.RandomState(1).randint(0, 256, SHAPE, dtype=np.uint8)


def file_of(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, kind)
    return buffer.getvalue()


def decoded(data: bytes, encoding: InputEncoding, lengths: list[int], crc32: int) -> np.ndarray:
    out = np.zeros(SHAPE, np.uint8)
    decode_inputs_into(data, encoding=encoding, lengths=lengths, crc32=crc32, out=out)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs of several shapes and modes, as JPEG and as PNG."""
    random = np.random.RandomState(0)
    for number in range(30):
        place = tmp_path / "images" / f"class{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        height, width = random.randint(5, 40, 2)
        image = Image.fromarray(random.randint(0, 256, (height, width, 3), dtype=np.uint8))
        image.convert("L" if number % 5 == 0 else "RGB").save(place / f"{number}.{'jpg' if number % 2 else 'png'}")
    return tmp_path / "images"


def test_stored_files_are_decoded_to_the_pixels_of_the_teacher(folder: Path) -> None:
    dataset = load_dataset(f"imagefolder:{folder},size=8:public")
    inputs = PublicInputs(dataset)
    assert inputs.encodings == [InputEncoding.PIXELS, InputEncoding.STORED]
    ids = np.array([3, 0, 5, 3])
    for encoding in inputs.encodings:
        sent = inputs.encode(ids, encoding)
        assert np.array_equal(decoded(sent.data, encoding, sent.lengths, sent.pixels_crc32), dataset.inputs[ids])


def test_a_changed_file_is_rejected(folder: Path) -> None:
    dataset = load_dataset(f"imagefolder:{folder},size=8:public")
    ids = np.arange(4)
    Path(dataset.files[2]).write_bytes(file_of(255 - dataset.inputs[2]))
    sent = PublicInputs(dataset).encode(ids, InputEncoding.STORED)
    with pytest.raises(ChunkError, match="the decoders of both ends differ"):
        decoded(sent.data, InputEncoding.STORED, sent.lengths, sent.pixels_crc32)


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes() + b"x")])
def test_a_file_that_is_gone_or_has_grown_is_named(change: Callable[[Path], object], folder: Path) -> None:
    dataset = load_dataset(f"imagefolder:{folder},size=8:public")
    inputs = PublicInputs(dataset)
    change(Path(dataset.files[2]))
    with pytest.raises(InputChangedError, match=f"{Path(dataset.files[2]).name}, of sample 2, was changed or deleted"):
        inputs.encode(np.arange(4), InputEncoding.STORED)
    assert inputs.encode(np.arange(4), InputEncoding.PIXELS).data == dataset.inputs[:4].tobytes()


def test_a_broken_image_is_named_when_it_is_loaded(folder: Path) -> None:
    for broken in (folder / "class0").iterdir():
        broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(WorldError, match=r"class0/\d+\.\w+ cannot be read as an image: .*; repair or remove it$"):
        load_dataset(f"imagefolder:{folder},size=8")


def test_other_file_formats_are_not_offered(folder: Path) -> None:
    Image.new("RGB", (9, 9)).save(folder / "class0" / "other.jpg", "WEBP")
    assert PublicInputs(load_dataset(f"imagefolder:{folder},size=8")).encodings == [InputEncoding.PIXELS]
    assert PublicInputs(load_dataset("digits:public")).encodings == [InputEncoding.PIXELS]


def test_rows_fit_into_a_chunk_by_the_size_of_their_files(folder: Path) -> None:
    big = folder / "class0" / "big.png"
    Image.fromarray(np.random.RandomState(2).randint(0, 256, (600, 600, 3), dtype=np.uint8)).save(big)  # noise: 1.08 MB
    dataset = load_dataset(f"imagefolder:{folder},size=8")
    inputs = PublicInputs(dataset)
    sample = dataset.files.index(str(big))
    assert inputs.num_fitting(np.array([sample, 0, sample, 0]), InputEncoding.STORED) == 2
    assert inputs.num_fitting(np.array([0, 1, sample, 0]), InputEncoding.STORED) == 4
    assert inputs.num_fitting(np.array([sample] * 3), InputEncoding.PIXELS) == 3


@pytest.mark.parametrize(
    ("data", "encoding", "lengths", "message"),
    [
        (PIXELS.tobytes()[:-1], "pixels", [], "inputs have 767 bytes"),
        (PIXELS.tobytes() + b"x", "pixels", [], "inputs have 769 bytes"),
        (b"", "pixels", [], "inputs have 0 bytes"),
        (PIXELS.tobytes(), "pixels", [768], "1 input lengths were sent with pixels"),
        (bytes(MAX_INPUTS_BYTES + 1), "pixels", [], "must have at most 2097152"),
        (b"abcd", "stored", [1, 1, 1], "inputs are 3 files of 3 bytes, must be 4 non-empty files of 4 bytes"),
        (b"abcd", "stored", [1, 1, 1, 2], "4 files of 5 bytes"),
        (b"abcd", "stored", [4, 0, 0, 0], "4 files of 4 bytes"),
        (b"", "stored", [], "0 files"),
        (b"abcd", "stored", [1, 1, 1, 1], "an input of 1 bytes is not a valid JPEG or PNG"),
    ],
)
def test_inputs_of_another_size_are_rejected_with_the_size(data: bytes, encoding: str, lengths: list[int], message: str) -> None:
    with pytest.raises(ChunkError, match=message):
        decoded(data, InputEncoding(encoding), lengths, checksum(data))


def test_another_format_or_a_decompression_bomb_is_rejected() -> None:
    for file in (file_of(PIXELS[0], "BMP"), file_of(PIXELS[0])[:-30], bomb()):
        with pytest.raises(ChunkError, match="is not a valid JPEG or PNG"):
            decode_inputs_into(
                file, encoding=InputEncoding.STORED, lengths=[len(file)], crc32=0, out=np.zeros((1, 3, 8, 8), np.uint8)
            )


def bomb() -> bytes:
    """A PNG of some kB that decodes to 100 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def test_files_are_decoded_only_to_a_square_with_three_channels() -> None:
    with pytest.raises(ChunkError, match="must be a square with three channels"):
        decode_inputs_into(b"a", encoding=InputEncoding.STORED, lengths=[1], crc32=0, out=np.zeros((1, 1, 8, 8), np.uint8))


@given(data=st.data())
def test_damage_in_transfer_is_detected(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG"]))
    files = [file_of(image, kind) for image in PIXELS]
    whole, lengths = bytearray(b"".join(files)), [len(file) for file in files]
    expected = np.stack([square_pixels(io.BytesIO(file), 8) for file in files])
    assert np.array_equal(decoded(bytes(whole), InputEncoding.STORED, lengths, checksum(expected.tobytes())), expected)
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        out = decoded(bytes(whole), InputEncoding.STORED, lengths, checksum(expected.tobytes()))
    except ChunkError:
        return
    assert np.array_equal(out, expected)  # a bit that does not affect pixels


@pytest.mark.parametrize("encoding", [None, *InputEncoding])
def test_numbers_of_the_schema_and_encodings_are_one_to_one(encoding: InputEncoding | None) -> None:
    assert input_from_wire(input_to_wire(encoding)) is encoding
    with pytest.raises(ValueError, match=r"input encoding 9 is unknown, must be one of 0 \(none\), 1 \(pixels\), 2 \(stored\)"):
        input_from_wire(9)
