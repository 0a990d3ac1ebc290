"""Outputs equal the recorded ones: weights, files of a run, the wire, files of older runs, and the output of the programs.

Only the programs and the wire are used. Fields, flags and kinds of records may be added; recorded ones must not be missing.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_runs as runs
import grpc
import numpy as np
import pytest
from golden_runs import DATA, FLOATS, LEARNERS, OLD_CYCLES, OPTIONS, POLICIES, SMALL_RING, differences, read_json
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from edgekd.v1 import teacher_pb2

SLOW = pytest.mark.slow
TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to split them")
IS_SAME_MACHINE = runs.machine() == read_json(DATA / "machine.json")
"""Then floats must have the same bits. Elsewhere kernels may add in another order, and floats must be near."""

WEIGHTS_TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
"""Kernels without AVX2, and oneDNN's for SSE4.1, changed these weights by 1.2e-7. A learning rate 1 % off changes them by 1e-3."""
INT8_WEIGHTS_TOLERANCE = {"rtol": 1e-5, "atol": 5e-4}
"""An int8 logit near the middle of two steps may be rounded the other way. With no logit rounded at all (float32), weights change
by 5e-3. A few of the 3200 logits that are rounded otherwise change them far less. A learning rate 1 % off changes them by 6e-3."""
LOGITS_TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
"""The same kernels changed logits by 1.2e-7; they lie within 1."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Yield HOST:PORT of a teacher with the recorded weights and a fresh store, and the port of its metrics."""
    port = runs.free_port()
    with runs.golden_teacher(tmp_path_factory.mktemp("store"), "--metrics-listen", f"127.0.0.1:{port}") as address:
        yield address, port


@pytest.fixture(scope="module")
def address(served: tuple[str, int]) -> str:
    return served[0]


def assert_same_weights(out: Path, name: str, tolerance: dict[str, float]) -> None:
    found, golden = out / "student.safetensors", DATA / name
    if IS_SAME_MACHINE:
        assert found.read_bytes() == golden.read_bytes()
    assert_near_weights(found, golden, tolerance)


def assert_near_weights(found: Path, golden: Path, tolerance: dict[str, float]) -> None:
    ours, theirs = runs.tensors(found), runs.tensors(golden)
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        assert ours[tensor].dtype == value.dtype
        np.testing.assert_allclose(ours[tensor], value, err_msg=tensor, **tolerance)


def assert_same_values(golden: dict[str, Any], result: dict[str, Any], tolerance: dict[str, float]) -> None:
    found = runs.result_values(result)
    if not IS_SAME_MACHINE:
        np.testing.assert_allclose(found["loss"], golden["loss"], **tolerance)
        assert found["accuracy"] == pytest.approx(golden["accuracy"], abs=0.01)  # three of the test split's samples
        golden = {name: value for name, value in golden.items() if name not in FLOATS}
    assert differences(golden, found) == []


def shape(policies: dict[str, Any], policy: str, *path: str) -> runs.Shape:
    """Return a shape, which may be stored under another policy with the same shape."""
    found = policies[policy]
    for name in path:
        found = found[name]
    return shape(policies, found, *path) if isinstance(found, str) else found


@SLOW
@TWO_CORES
@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_writes_the_recorded_outputs(policy: str, address: str, tmp_path: Path) -> None:
    with runs.recorded(address) as (recorder, calls):
        out = runs.train(tmp_path, "run", "--teacher", recorder, "--policy", policy, *SMALL_RING)
    assert_same_weights(out, "weights.safetensors", WEIGHTS_TOLERANCE)
    recorded = read_json(DATA / "runs.json")
    policies, golden = recorded["policies"], recorded["policies"][policy]
    log, trace, result = runs.events(out), read_json(out / "trace.json"), read_json(out / "result.json")

    kinds, tracks = runs.by_kind(log), runs.trace_kinds(trace)
    assert set(golden["kinds_in_every_run"]) - set(kinds) == set()
    assert set(golden["trace"]) - set(tracks) == set()
    for place, found in (("events", kinds), ("trace", tracks)):
        for kind in golden[place].keys() & found.keys():
            assert runs.breaches(shape(policies, policy, place, kind), found[kind]) == [], kind
    assert runs.task_order(log) == recorded["tasks"]
    assert runs.trace_slices(trace) == recorded["slices"]

    assert runs.breaches(shape(policies, policy, "result"), [result]) == []
    assert_same_values(golden["values"], result, WEIGHTS_TOLERANCE)
    asked = read_json(DATA / "asked.json")["plain"]
    assert differences(asked, runs.sorted_calls(calls, result["run_id"])) == [], "every policy asks the teacher alike"


@SLOW
@TWO_CORES
def test_a_run_with_more_options_writes_the_recorded_outputs(address: str, tmp_path: Path) -> None:
    recorded = read_json(DATA / "asked.json")
    with runs.recorded(address) as (recorder, calls):
        out = runs.train(tmp_path, "run", "--teacher", recorder, *OPTIONS)
    result = read_json(out / "result.json")
    assert differences(recorded["options"], runs.sorted_calls(calls, result["run_id"])) == []
    assert_same_weights(out, "options.safetensors", INT8_WEIGHTS_TOLERANCE)
    assert_same_values(recorded["values"], result, INT8_WEIGHTS_TOLERANCE)


@SLOW
@TWO_CORES
@pytest.mark.parametrize("policy", LEARNERS)
def test_an_old_checkpoint_goes_on(policy: str, address: str, tmp_path: Path) -> None:
    """The newest checkpoint of `dynamic` is damaged, so the previous one is read under its own name."""
    old, out = DATA / f"old-{policy}", tmp_path / "run"
    shutil.copytree(old, out)
    if policy == "dynamic":
        (out / "checkpoint.edgekd").rename(out / "checkpoint.before.edgekd")
        (out / "checkpoint.edgekd").write_bytes((old / "checkpoint.edgekd").read_bytes()[:-1])
    runs.train(tmp_path, "run", "--teacher", address, "--policy", policy, *SMALL_RING, "--resume")
    assert_same_weights(out, "weights.safetensors", WEIGHTS_TOLERANCE)
    log, before = (out / "events.jsonl").read_bytes(), (old / "events.jsonl").read_bytes()
    assert log.startswith(before), "what was logged is kept"
    assert runs.task_order(runs.events(out)) == read_json(DATA / "runs.json")["tasks"]
    result, was = read_json(out / "result.json"), read_json(old / "result.json")
    assert (result["run_id"], result["cycles"], result["resumed_at"]) == (was["run_id"], runs.CYCLES, [OLD_CYCLES])
    known = read_json(DATA / "resumed.json").get(policy)  # adaptive no longer learns, and ignores what it had learnt
    assert (known is None) == (policy == "adaptive")
    if known is not None:
        assert differences(known, runs.first_rates_after(out, old), rel=1e-9) == [], "what was learnt is known again"


@SLOW
@TWO_CORES
@pytest.mark.parametrize("logits", ["hybrid", "offline"])
def test_an_old_logit_cache_is_read(logits: str, address: str, tmp_path: Path) -> None:
    """The logits equal the recorded ones on every machine."""
    shutil.copytree(DATA / "old-cache", tmp_path / "cache")
    asked = ("--teacher", address) if logits == "hybrid" else ()
    flags = ("--logits", logits, "--cache", "cache", "--policy", "os-default", *SMALL_RING)
    out = runs.train(tmp_path, "run", *asked, *flags)
    assert_same_weights(out, "weights.safetensors", WEIGHTS_TOLERANCE)
    result = read_json(out / "result.json")
    assert (result["comm_num_bytes"], result["num_cached_batches"]) == (0, runs.CYCLES)
    for file in (DATA / "old-cache").rglob("*.json"):
        before, after = (read_json(path) for path in (file, tmp_path / "cache" / file.relative_to(DATA / "old-cache")))
        assert before.items() <= after.items(), "the cache is not rebuilt; only the teacher's class names may be added"


@SLOW
@TWO_CORES
def test_an_old_profile_is_used(address: str, tmp_path: Path) -> None:
    profile = read_json(DATA / "old-profile.json")
    cores = [int(core) for core in runs.two_cores()[1].split(",")]
    if not IS_SAME_MACHINE or profile["fingerprint"]["cores"] != cores:
        del profile["fingerprint"]  # it would be refused, as it must be
    (tmp_path / "profile.json").write_text(json.dumps(profile), encoding="utf-8")
    out = runs.train(tmp_path, "run", "--teacher", address, "--policy", "dynamic", "--profile", "profile.json", *SMALL_RING)
    assert_same_weights(out, "weights.safetensors", WEIGHTS_TOLERANCE)
    first = next(record for record in runs.events(out) if record["event"] == "rates")
    work = {task: profile[task] for task in ("forward", "backward", "comm")}
    assert differences(work, first["workload"], rel=1e-9) == []
    rates = {mode["name"]: mode for mode in profile["modes"]}
    assert first["comm"], "a run without a profile knows no rates yet"
    assert first["comp"]["2"] == pytest.approx(rates["comp-only"]["comp_rate"], rel=1e-9)


@SLOW
def test_a_teacher_answers_as_recorded(served: tuple[str, int]) -> None:
    address, metrics_port = served
    golden = read_json(DATA / "wire.json")
    assert differences(golden["describe"], runs.describe(address)) == []
    assert runs.refusals(address) == golden["refusals"]
    assert runs.health(address) == golden["health"]
    assert differences(golden["metrics"], runs.metric_kinds(metrics_port)) == []


@SLOW
def test_chunks_equal_the_recorded_chunks(address: str) -> None:
    golden, logits = read_json(DATA / "wire.json")["chunks"], golden_logits()
    for name, chunks in runs.chunks_of(address).items():
        facts = [runs.chunk_facts(chunk) for chunk in chunks]
        if IS_SAME_MACHINE:
            assert differences(golden[name], facts, name) == []
        exact = [{key: value for key, value in chunk.items() if key not in ("payload_sha256", "crc32")} for chunk in golden[name]]
        assert differences(exact, facts, name) == []
        if name in runs.ENCODINGS:
            for chunk, rows in zip(chunks, logits, strict=True):
                assert_near_logits(name, chunk, rows)


def golden_logits() -> np.ndarray:
    """Return float32 [batches, rows, classes] of the request `float32` and of requests that differ only in the encoding."""
    return np.frombuffer((DATA / "logits.f32").read_bytes(), "<f4").reshape(2, 16, 10)


def assert_near_logits(name: str, chunk: Any, rows: np.ndarray) -> None:
    """Assert equality within the tolerance and the encoding's error: 11 bits of float16, half a step of int8, the rest of topk."""
    found = runs.decoded(chunk)
    if name == "topk":
        top = np.argsort(rows, axis=1)[:, -chunk.top_k :]
        np.testing.assert_allclose(
            np.take_along_axis(found, top, axis=1), np.take_along_axis(rows, top, axis=1), **LOGITS_TOLERANCE
        )
        mass = np.exp(rows).sum(axis=1)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), mass, rtol=1e-3)
        return
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    error = {"float32": np.zeros_like(rows), "float16": np.abs(rows) * 2.0**-11, "int8": np.broadcast_to(step / 2, rows.shape)}
    near = LOGITS_TOLERANCE["atol"] + LOGITS_TOLERANCE["rtol"] * np.abs(rows)
    assert (np.abs(found - rows) <= error[name] + near).all()


@SLOW
def test_an_old_logit_store_is_served_as_it_is(tmp_path: Path) -> None:
    """Every row is increased by one, so that a recomputed row is detected. Nothing depends on float arithmetic."""
    shutil.copytree(DATA / "old-store", tmp_path / "store")
    (folder,) = (tmp_path / "store").iterdir()
    rows = np.fromfile(folder / "logits.f32", "<f4").reshape(-1, 10) + np.float32(1)
    rows.tofile(folder / "logits.f32")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with runs.golden_teacher(tmp_path / "store") as address:
        chunks = runs.chunks_of(address)
    for name in ("float32", "float16", "stride", "inputs", "two epochs"):
        for chunk in chunks[name]:
            expected = rows[np.array(chunk.sample_ids, int)]
            kept = expected if chunk.encoding == runs.ENCODINGS["float32"] else expected.astype("<f2").astype("<f4")
            np.testing.assert_array_equal(runs.decoded(chunk), kept, err_msg=name)
    assert {name: (folder / name).read_bytes() for name in before} == before


def former_schema() -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto.FromString((DATA / "teacher.binpb").read_bytes())


def test_the_schema_has_only_additions() -> None:
    former, current = former_schema(), descriptor_pb2.FileDescriptorProto()
    teacher_pb2.DESCRIPTOR.CopyToProto(current)
    for before, after in ((former.message_type, current.message_type), (former.enum_type, current.enum_type)):
        parts_of = {part.name: list(getattr(part, "field", None) or getattr(part, "value", ())) for part in after}
        for message in before:
            kept = list(getattr(message, "field", None) or getattr(message, "value", ()))
            assert [part for part in kept if part not in parts_of[message.name]] == [], message.name
    assert current.service == former.service


@SLOW
def test_a_client_of_the_former_schema_gets_its_logits(address: str) -> None:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(former_schema())
    messages = message_factory.GetMessageClassesForFiles([former_schema().name], pool)
    package = "edgekd.v1"
    with grpc.insecure_channel(address) as channel:
        describe = channel.unary_unary(
            f"/{package}.Teacher/Describe",
            request_serializer=messages[f"{package}.DescribeRequest"].SerializeToString,
            response_deserializer=messages[f"{package}.DescribeResponse"].FromString,
        )
        described = describe(messages[f"{package}.DescribeRequest"](), timeout=20)
        stream = channel.unary_stream(
            f"/{package}.Teacher/StreamLogits",
            request_serializer=messages[f"{package}.StreamLogitsRequest"].SerializeToString,
            response_deserializer=messages[f"{package}.LogitsChunk"].FromString,
        )
        request = messages[f"{package}.StreamLogitsRequest"](
            count=2,
            batch_size=8,
            encoding=1,
            input_encoding=1,
            teacher_digest=described.teacher_digest,
            dataset_digest=described.dataset_digest,
        )
        chunks = list(stream(request, timeout=20))
    assert sum(chunk.num_rows for chunk in chunks) == 16
    assert all(len(chunk.payload) == 4 * chunk.num_rows * described.num_classes for chunk in chunks)
    assert all(len(chunk.inputs) == chunk.num_rows * int(np.prod(described.input_shape)) for chunk in chunks)


@SLOW
@pytest.mark.parametrize("name", runs.SCENARIOS)
def test_a_scenario_is_simulated_to_the_same_times(name: str, tmp_path: Path) -> None:
    golden = read_json(DATA / "scheduler.json")["simulate"][name]
    assert differences(golden, runs.simulated(name, tmp_path), rel=1e-12) == []


@SLOW
def test_samples_are_fitted_alike(tmp_path: Path) -> None:
    """The digits depend on scipy's optimiser and linear algebra, which differ between machines."""
    golden = read_json(DATA / "scheduler.json")["fit"]
    assert differences(golden, runs.fitted(tmp_path), rel=1e-12 if IS_SAME_MACHINE else 1e-5) == []


@SLOW
@pytest.mark.parametrize("command", runs.COMMANDS, ids=" ".join)
def test_no_flag_is_gone(command: tuple[str, str], tmp_path: Path) -> None:
    golden = read_json(DATA / "programs.json")["flags"][" ".join(command)]
    assert set(golden) - set(runs.flags_of(*command, tmp_path)) == set()


@SLOW
@pytest.mark.parametrize("name", runs.STATUSES)
def test_a_program_ends_with_the_same_status(name: str, tmp_path: Path) -> None:
    assert runs.status_of(name, tmp_path) == read_json(DATA / "programs.json")["statuses"][name]
