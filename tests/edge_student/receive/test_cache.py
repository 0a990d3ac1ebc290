"""The edge's logit cache: rows are read as received, and damaged, foreign or incomplete rows count as missing."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_student.receive.cache import CacheError, CacheKey, LogitCache, open_cache, open_filled
from edgekd.wire.codec import checksum, decode_into, encode

KEY = CacheKey(
    teacher_digest="a" * 64,
    dataset_digest="b" * 64,
    dataset_name="tiny:public",
    num_samples=40,
    num_classes=5,
    encoding="float16",
    top_k=0,
)
ALL = np.arange(40)
NO_INPUTS = np.zeros((0, 0, 0, 0), np.uint8)


def logits_of(ids: np.ndarray) -> np.ndarray:
    return np.sin(ids[:, None] * 3.0 + np.arange(5)).astype(np.float32)


def pixels_of(ids: np.ndarray) -> np.ndarray:
    return (ids[:, None, None, None] * 5 + np.arange(6).reshape(1, 2, 3)).astype(np.uint8)


def put(cache: LogitCache, ids: np.ndarray) -> None:
    cache.put(ids, encode(logits_of(ids), cache.key.form), pixels_of(ids) if cache.key.input_shape else NO_INPUTS)


def read(cache: LogitCache, ids: np.ndarray) -> np.ndarray:
    out = np.empty((len(ids), 5), np.float32)
    cache.read(ids, out, NO_INPUTS)
    return out


def over_the_wire(ids: np.ndarray, key: CacheKey = KEY) -> np.ndarray:
    payload, out = encode(logits_of(ids), key.form), np.empty((len(ids), 5), np.float32)
    decode_into(payload, form=key.form, rows=len(ids), num_classes=5, crc32=checksum(payload), out=out)
    return out


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[LogitCache]:
    opened = open_cache(tmp_path, KEY)
    yield opened
    opened.close()


@pytest.mark.parametrize(("encoding", "top_k"), [("float32", 0), ("float16", 0), ("int8", 0), ("topk", 2)])
def test_a_read_row_equals_the_received_row(encoding: str, top_k: int, tmp_path: Path) -> None:
    key = replace(KEY, encoding=encoding, top_k=top_k)
    cache = open_cache(tmp_path, key)
    put(cache, np.array([7, 3, 39, 0]))
    ids = np.array([0, 39, 7, 7, 3])
    assert cache.has_all(ids)
    assert np.array_equal(read(cache, ids), over_the_wire(ids, key))
    cache.close()


def test_a_row_that_was_never_put_is_missing(cache: LogitCache) -> None:
    put(cache, np.array([1, 2]))
    assert cache.has_all(np.array([2, 1, 1]))
    assert not cache.has_all(np.array([1, 3]))
    assert cache.num_missing(ALL) == 38
    assert cache.num_rows == 2


def test_the_next_run_finds_the_rows_of_this_run(tmp_path: Path) -> None:
    first = open_cache(tmp_path, KEY)
    put(first, ALL[:10])
    first.close()
    second = open_cache(tmp_path, KEY)
    assert second.num_rows == 10
    assert np.array_equal(read(second, ALL[:10]), over_the_wire(ALL[:10]))
    second.close()


def test_a_cache_that_was_never_closed_keeps_its_rows(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        put(open_cache(tmp_path, KEY), ALL[:10])
        os._exit(0)
    os.waitpid(child, 0)
    cache = open_cache(tmp_path, KEY)
    assert cache.num_missing(ALL) == 30
    cache.close()


@given(data=st.data())
@settings(max_examples=60)
def test_a_flipped_bit_loses_its_row_and_no_other(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    base = tmp_path_factory.mktemp("cache")
    cache = open_cache(base, KEY)
    put(cache, ALL)
    cache.close()
    name = data.draw(st.sampled_from(["rows", "checksums"]))
    path = cache.folder / name
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    damaged = bit // 8 // (len(content) // 40)
    cache = open_cache(base, KEY)
    others = np.delete(ALL, damaged)
    assert cache.has_all(others)
    assert np.array_equal(read(cache, others), over_the_wire(others))
    assert not cache.has_all(ALL)
    put(cache, np.array([damaged]))
    assert cache.has_all(ALL)
    cache.close()


def test_swapped_rows_are_detected(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, KEY)
    put(cache, ALL)
    cache.close()
    for name in ("rows", "checksums"):
        path = cache.folder / name
        content = path.read_bytes()
        size = len(content) // 40
        path.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    cache = open_cache(tmp_path, KEY)
    assert cache.num_missing(ALL) == 2
    cache.close()


@pytest.mark.parametrize(
    "change",
    [
        {"teacher_digest": "c" * 64},
        {"dataset_digest": "c" * 64},
        {"encoding": "float32"},
        {"encoding": "topk", "top_k": 2},
        {"num_samples": 41},
        {"num_classes": 6},
        {"teacher_digest": "a" * 16 + "c" * 48},
        {"dataset_digest": "b" * 16 + "c" * 48},
    ],
    ids=str,
)
def test_logits_with_another_key_are_never_read(change: dict[str, object], cache: LogitCache, tmp_path: Path) -> None:
    put(cache, ALL)
    cache.close()
    other = open_cache(tmp_path, replace(KEY, **change))  # type: ignore[arg-type]
    assert other.num_rows == 0
    other.close()


def test_a_cache_with_another_augmentation_is_never_read(cache: LogitCache, tmp_path: Path) -> None:
    """Every meta.json has the field `augmentation`, which has one valid value."""
    put(cache, ALL)
    cache.close()
    path = cache.folder / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    assert list(meta.items())[-3:] == [("augmentation", "none"), ("input_shape", []), ("class_names", [])]
    path.write_text(json.dumps(meta | {"augmentation": "flip"}), encoding="utf-8")
    with pytest.raises(CacheError, match=r"^there is no logit cache"):
        open_filled(tmp_path, dataset_digest=KEY.dataset_digest, form=KEY.form)
    again = open_cache(tmp_path, KEY)
    assert again.num_rows == 0
    again.close()


def test_another_name_of_the_same_data_set_is_the_same_cache(cache: LogitCache, tmp_path: Path) -> None:
    put(cache, ALL)
    cache.close()
    again = open_cache(tmp_path, replace(KEY, dataset_name="the same by another name"))
    assert again.num_rows == 40
    again.close()


@pytest.mark.parametrize("name", ["rows", "checksums", "meta.json"])
@pytest.mark.parametrize("content", [None, b"", b"{"], ids=["gone", "empty", "cut"])
def test_a_damaged_file_rebuilds_the_cache(name: str, content: bytes | None, cache: LogitCache, tmp_path: Path) -> None:
    put(cache, ALL)
    cache.close()
    path = cache.folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    again = open_cache(tmp_path, KEY)
    assert again.num_rows == 0
    put(again, ALL)
    assert again.has_all(ALL)
    again.close()


def test_two_processes_never_write_to_one_cache(cache: LogitCache, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"^another process uses the logit cache .*--cache$"):
        open_cache(tmp_path, KEY)
    with pytest.raises(CacheError, match=r"^another process"):
        open_filled(tmp_path, dataset_digest=KEY.dataset_digest, form=KEY.form)


def test_many_readers_open_a_full_cache_by_its_folder_or_the_parent(cache: LogitCache, tmp_path: Path) -> None:
    put(cache, ALL)
    cache.close()
    readers = [open_filled(base, dataset_digest=KEY.dataset_digest, form=KEY.form) for base in (tmp_path, cache.folder)]
    for reader in readers:
        assert reader.num_missing(ALL) == 0
        assert np.array_equal(read(reader, ALL), over_the_wire(ALL))
        reader.close()


def test_no_cache_and_two_caches_are_errors_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"^there is no logit cache .* encoding float16 .*: fill one with `edge-student fetch`$"):
        open_filled(tmp_path, dataset_digest=KEY.dataset_digest, form=KEY.form)
    for digest in ("a", "c"):
        open_cache(tmp_path, replace(KEY, teacher_digest=digest * 64)).close()
    with pytest.raises(CacheError, match=r"several teachers or data sets: select one folder with --cache$"):
        open_filled(tmp_path, dataset_digest=KEY.dataset_digest, form=KEY.form)


@pytest.mark.parametrize("meta", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "encoding": "int4"}'])
def test_a_folder_that_is_not_a_cache_is_skipped(meta: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "meta.json").write_text(meta)
    with pytest.raises(CacheError, match="there is no logit cache"):
        open_filled(tmp_path, dataset_digest=KEY.dataset_digest, form=KEY.form)


def test_the_disk_space_is_allocated_at_creation(tmp_path: Path) -> None:
    huge = replace(KEY, num_samples=2**40, num_classes=100_000)
    with pytest.raises(OSError, match="this file of the cache needs"):
        open_cache(tmp_path, huge)
    assert not list(tmp_path.glob("*/meta.json"))


def test_the_folder_and_meta_name_the_key_of_a_cache(cache: LogitCache) -> None:
    assert json.loads((cache.folder / "meta.json").read_text())["dataset_name"] == "tiny:public"


def test_inputs_are_stored_with_their_logits_and_found_without_a_digest(tmp_path: Path) -> None:
    key = replace(KEY, input_shape=(1, 2, 3))
    cache = open_cache(tmp_path, key)
    put(cache, ALL)
    cache.close()
    again = open_filled(tmp_path, dataset_digest="", form=key.form, with_inputs=True)
    ids, logits, inputs = np.array([3, 39, 3]), np.empty((3, 5), np.float32), np.empty((3, 1, 2, 3), np.uint8)
    assert again.has_all(ids)
    again.read(ids, logits, inputs)
    assert np.array_equal(logits, over_the_wire(ids, key))
    assert np.array_equal(inputs, pixels_of(ids))
    again.close()


def test_caches_with_and_without_inputs_are_separate(tmp_path: Path) -> None:
    for key in (KEY, replace(KEY, input_shape=(1, 2, 3))):
        cache = open_cache(tmp_path, key)
        assert cache.num_rows == 0
        put(cache, ALL)
        cache.close()
    for with_inputs in (False, True):
        found = open_filled(tmp_path, dataset_digest=KEY.dataset_digest, form=KEY.form, with_inputs=with_inputs)
        assert bool(found.key.input_shape) is with_inputs
        found.close()


def test_a_damaged_pixel_is_detected(tmp_path: Path) -> None:
    key = replace(KEY, input_shape=(1, 2, 3))
    cache = open_cache(tmp_path, key)
    put(cache, ALL)
    cache.close()
    rows = bytearray((cache.folder / "rows").read_bytes())
    rows[8 * key.row_bytes - 1] ^= 1  # the last pixel of sample 7
    (cache.folder / "rows").write_bytes(rows)
    again = open_cache(tmp_path, key)
    assert not again.has_all(np.array([7]))
    assert again.has_all(np.array([6, 8]))
    again.close()
