"""Shared parts of record.py and test_golden.py: the fixed runs, their start, and the reduction of their outputs.

Only the three programs and the wire are used. No internal module is imported, so that modules may move.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import teacher
from warm_start import run_warm

from edgekd.v1 import teacher_pb2, teacher_pb2_grpc

DATA = Path(__file__).parent / "data"
EDGE_ID = "golden-edge"
POLICIES = (
    "os-default", "os-tuned", "static:1", "random", "comm-priority", "comp-priority", "compute-first", "dynamic", "adaptive",
)  # fmt: skip
LEARNERS = ("dynamic", "adaptive")
"""Policies whose checkpoint holds what they learnt."""
OLD_CYCLES, CYCLES = 12, 20

RECIPE = ("--private", "digits:private", "--private-samples", "64", "--model", "cnn:width=4", "--batch-size", "8",
          "--public-batch", "16", "--seed", "5", "--torch-threads", "1")  # fmt: skip
SMALL_RING = ("--prefetch", "2", "--window", "3", "--streams", "1")
OPTIONS = ("--momentum", "0.5", "--alpha", "0.3", "--temperature", "2", "--lr", "0.1", "--encoding", "int8", "--streams", "2",
           "--public-inputs", "stream", "--policy", "os-default", "--prefetch", "4", "--window", "3")  # fmt: skip


def machine() -> dict[str, Any]:
    """Return all properties of the machine that the last bits of float arithmetic depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    model = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    wanted = re.compile("avx|amx|fma|sse|sve|asimd|bf16|fp16|f16c")
    return {
        "architecture": platform.machine(),
        "cpu": model[1].strip() if model else None,
        "cpu_flags": sorted({flag for flag in (flags[1].split() if flags else []) if wanted.search(flag)}),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def two_cores() -> tuple[str, str]:
    """Return the flag that names the first two cores of this process, so that runs are alike on machines with more cores."""
    return "--cores", ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))


@contextlib.contextmanager
def golden_teacher(folder: Path, *flags: str) -> Iterator[str]:
    """Yield HOST:PORT of a teacher with the recorded weights, which are bit-identical on every machine."""
    weights = ("--weights", str(DATA / "teacher.safetensors"), "--torch-threads", "1")
    with teacher(folder, *weights, *flags) as serving:
        yield serving.address


def start(program: str, *words: str, cwd: Path, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the programs to its end in the folder `cwd`, so that the paths that it writes can be relative."""
    command, environ = [sys.executable, "-m", program, *words], {**os.environ, **environment}
    if stdin is None:
        return run_warm(command, timeout=300, cwd=cwd, env=environ)
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=cwd, env=environ, timeout=300)


def train(cwd: Path, out: str, *flags: str, cycles: int = CYCLES, **environment: str) -> Path:
    """Run the recipe and return the folder."""
    words = ["train", "--out", out, *RECIPE, *two_cores(), "--edge-id", EDGE_ID, "--cycles", str(cycles)]
    finished = start("edge_student", *words, *flags, cwd=cwd, **environment)
    assert finished.returncode == 0, finished.stderr
    return cwd / out


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]


# Shapes: which fields a record has, and of which types.

OPEN = re.compile(
    r"effective\.(comm|comp)|comm|comp|openmp_wait|host\.(frequency|interrupts)"
    r"|disturbance\.(interrupts|nic_interrupts|softirqs|temperature_c|frequency|throttled)"
)
"""Fields that are maps of names that depend on the machine or on the time: their keys are no part of the shape."""

NULLABLE = re.compile(r"disturbance\.|host\.|(link|busy_s)$")
"""Fields that are null where the machine or the run does not tell."""

Shape = dict[str, str]
"""By path, types joined by |. A trailing ? marks a field that not every record has."""


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted path. Lists, open maps, and maps by thread or core number count as values."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        path = f"{prefix}{name}"
        is_open = isinstance(value, dict) and (OPEN.fullmatch(path) or all(key.isdigit() for key in value))
        if isinstance(value, dict) and not is_open:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def shape_of(records: Iterable[Mapping[str, Any]]) -> Shape:
    flat = [flatten(record) for record in records]
    shape = {}
    for path in sorted({path for record in flat for path in record}):
        types = sorted({type_of(record[path]) for record in flat if path in record})
        shape[path] = "|".join(types) + ("" if all(path in record for record in flat) else "?")
    return shape


def type_of(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def breaches(golden: Shape, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return missing fields and fields of another type. Added fields are allowed, and an unknown type fits any value."""
    found = []
    for record in map(flatten, records):
        for path, wanted in golden.items():
            types = wanted.removesuffix("?").split("|")
            if path not in record:
                found += [] if wanted.endswith("?") else [f"{path} is missing"]
            elif types != ["null"] and type_of(record[path]) not in (*types, *(["null"] if NULLABLE.match(path) else [])):
                found.append(f"{path} is {type_of(record[path])}, and was {wanted}")
    return sorted(set(found))


def kind_of(record: Mapping[str, Any]) -> str:
    return " ".join(str(record[name]) for name in ("event", "task", "why") if name in record)


def by_kind(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        kinds.setdefault(kind_of(record), []).append(record)
    return kinds


def task_order(records: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the indices of each task's records in the order of the file."""
    order: dict[str, list[int]] = {}
    for record in records:
        if record["event"] == "task":
            order.setdefault(record["task"], []).append(record["index"])
    return order


def trace_kinds(trace: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the trace's events by phase, process and track. All cores are one track. Metadata has its name instead of a track."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        track = event["name"] if event["ph"] == "M" else "core" if event["pid"] == 2 else event["tid"]
        kinds.setdefault(f"{event['ph']} pid {event['pid']} track {track}", []).append(event)
    return kinds


def trace_slices(trace: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the slices of the two workers by track, without waits, which depend on time."""
    slices: dict[str, list[str]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X" and event["pid"] == 1 and not event["name"].startswith("wait"):
            slices.setdefault(str(event["tid"]), []).append(event["name"])
    return slices


_VALUES = (
    "edge_id", "policy", "seed", "cycles", "resumed_at", "accuracy", "alpha", "loss", "comm_num_bytes", "num_cached_batches",
    "num_decisions", "num_checkpoints", "num_reconnects", "num_refused_chunks", "prefetch", "torch_threads", "comm_niceness",
    "comm_is_idle", "openmp_wait", "valid", "teacher",
)  # fmt: skip
_PLACES = ("teacher", "cores", "out", "profile", "cache")
FLOATS = ("accuracy", "loss")
"""Values of a result that depend on float arithmetic."""


def result_values(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that do not depend on time or machine, except for floats."""
    config = {name: value for name, value in result["config"].items() if name not in _PLACES}
    return {**{name: result[name] for name in _VALUES}, "config": config}


def first_rates_after(out: Path, old: Path) -> dict[str, Any]:
    """Return the state of a resumed run at its start: its first record of rates after the old run's records."""
    for record in events(out)[len(events(old)) :]:
        if record["event"] == "rates":
            return {name: record[name] for name in ("allocation", "stance", "comm", "comp", "link", "workload")}
    raise AssertionError("a run that went on has logged no rates")


# The wire.

ENCODINGS = {"float32": 1, "float16": 2, "int8": 3, "topk": 4}
REQUESTS: dict[str, dict[str, int]] = {
    **{name: {"start": 0, "count": 2, "batch_size": 16, "seed": 5, "encoding": code} for name, code in ENCODINGS.items()},
    "stride": {"start": 7, "count": 3, "batch_size": 8, "seed": 9, "encoding": 1, "stride": 4},
    "inputs": {"start": 3, "count": 1, "batch_size": 16, "seed": 5, "encoding": 1, "input_encoding": 1},
    "two epochs": {"start": 0, "count": 1, "batch_size": 1000, "seed": 2**64 - 1, "encoding": 2},
}
REQUESTS["topk"]["top_k"] = 3
WRONG_REQUESTS: dict[str, dict[str, Any]] = {
    "no digest": {"teacher_digest": ""},
    "another teacher": {"teacher_digest": "0" * 64},
    "another data set": {"dataset_digest": "0" * 64},
    "no batches": {"count": 0},
    "too many batches": {"count": 100_000},
    "no samples": {"batch_size": 0},
    "too many samples": {"batch_size": 100_000},
    "past the last batch": {"start": 2**31 - 1, "count": 2},
    "start out of range": {"start": 2**31},
    "no encoding": {"encoding": 0},
    "unknown encoding": {"encoding": 99},
    "top-k without topk": {"top_k": 3},
    "topk without top-k": {"encoding": 4},
    "topk of all classes": {"encoding": 4, "top_k": 10},
    "too large a stride": {"stride": 65},
    "stored inputs of arrays": {"input_encoding": 2},
}


def request_of(description: Any, fields: Mapping[str, Any]) -> Any:
    digests = {"teacher_digest": description.teacher_digest, "dataset_digest": description.dataset_digest}
    return teacher_pb2.StreamLogitsRequest(**{**digests, **fields})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chunk_facts(chunk: Any) -> dict[str, Any]:
    """Return all fields of a chunk; payload and inputs as hashes. `payload_sha256` and `crc32` depend on float arithmetic."""
    return {
        **{name: getattr(chunk, name) for name in ("batch_index", "row_start", "num_rows", "num_classes", "encoding", "top_k")},
        "sample_ids_sha256": sha256(np.array(chunk.sample_ids, "<u8").tobytes()),
        "first_sample_ids": list(chunk.sample_ids)[:4],
        "payload_bytes": len(chunk.payload),
        "payload_sha256": sha256(chunk.payload),
        "crc32": chunk.crc32,
        "input_encoding": chunk.input_encoding,
        "inputs_sha256": sha256(chunk.inputs),
        "input_lengths": list(chunk.input_lengths),
        "pixels_crc32": chunk.pixels_crc32,
    }


def chunks_of(address: str) -> dict[str, list[Any]]:
    """Return the chunks that answer each of REQUESTS."""
    with grpc.insecure_channel(address) as channel:
        stub = teacher_pb2_grpc.TeacherStub(channel)
        description = stub.Describe(teacher_pb2.DescribeRequest())
        return {name: list(stub.StreamLogits(request_of(description, fields))) for name, fields in REQUESTS.items()}


def describe(address: str) -> dict[str, Any]:
    with grpc.insecure_channel(address) as channel:
        answer = teacher_pb2_grpc.TeacherStub(channel).Describe(teacher_pb2.DescribeRequest())
    return MessageToDict(answer, preserving_proto_field_name=True)


def refusals(address: str) -> dict[str, str]:
    """Return the status that answers each of WRONG_REQUESTS."""
    found = {}
    with grpc.insecure_channel(address) as channel:
        stub = teacher_pb2_grpc.TeacherStub(channel)
        description = stub.Describe(teacher_pb2.DescribeRequest())
        for name, fields in WRONG_REQUESTS.items():
            try:
                list(stub.StreamLogits(request_of(description, {**REQUESTS["float32"], **fields})))
                found[name] = "OK"
            except grpc.RpcError as error:
                found[name] = error.code().name
    return found


def health(address: str) -> dict[str, str]:
    """Return the standard health service's answers."""
    found = {}
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "edgekd.v1.Teacher", "nonsense"):
            try:
                status = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
                found[service] = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
            except grpc.RpcError as error:
                found[service] = error.code().name
    return found


def metric_kinds(port: int) -> dict[str, str]:
    """Return the kind of every metric of this project."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return dict(sorted(line.split()[2:4] for line in lines if line.startswith("# TYPE edgekd_") and "_created " not in line))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def decoded(chunk: Any) -> np.ndarray:
    """Return float32 [rows, classes] as defined in teacher.proto. For topk, only the payload: logit of the rest, ids, logits."""
    rows, classes = chunk.num_rows, chunk.num_classes
    if chunk.encoding == ENCODINGS["float32"]:
        return np.frombuffer(chunk.payload, "<f4").reshape(rows, classes)
    if chunk.encoding == ENCODINGS["float16"]:
        return np.frombuffer(chunk.payload, "<f2").reshape(rows, classes).astype(np.float32)
    if chunk.encoding == ENCODINGS["int8"]:
        table = np.frombuffer(chunk.payload, np.dtype([("scale", "<f4"), ("steps", "i1", (classes,))]))
        return table["scale"][:, None] * table["steps"].astype(np.float32)
    row = np.dtype([("rest", "<f4"), ("ids", "<u4", (chunk.top_k,)), ("logits", "<f4", (chunk.top_k,))])
    table = np.frombuffer(chunk.payload, row)
    out = np.repeat(table["rest"][:, None], classes, axis=1)
    np.put_along_axis(out, table["ids"].astype(np.int64), table["logits"], axis=1)
    return out


class Recorder(grpc.GenericRpcHandler):
    """A server that forwards every call of the service to a real teacher as bytes, and records the requests."""

    def __init__(self, address: str) -> None:
        self.calls: list[dict[str, Any]] = []
        self._channel = grpc.insecure_channel(address)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method
        metadata = {key: value for key, value in handler_call_details.invocation_metadata if key != "user-agent"}
        if method.endswith("Describe"):

            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                self._note(method, metadata, teacher_pb2.DescribeRequest, request)
                return self._channel.unary_unary(method)(request, metadata=tuple(metadata.items()))

            return grpc.unary_unary_rpc_method_handler(answer)

        def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self._note(method, metadata, teacher_pb2.StreamLogitsRequest, request)
            yield from self._channel.unary_stream(method)(request, metadata=tuple(metadata.items()))

        return grpc.unary_stream_rpc_method_handler(stream)

    def _note(self, method: str, metadata: dict[str, str], kind: Any, request: bytes) -> None:
        message = kind.FromString(request)
        assert message.SerializeToString(deterministic=True) == request, "a request with fields that the schema does not have"
        self.calls.append(
            {"method": method, "metadata": metadata, "request": MessageToDict(message, preserving_proto_field_name=True)}
        )


@contextlib.contextmanager
def recorded(address: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield HOST:PORT of a recorder for the teacher at `address`, and the list of its calls."""
    recorder = Recorder(address)
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=(recorder,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", recorder.calls
    finally:
        server.stop(grace=None).wait()


def sorted_calls(calls: Iterable[dict[str, Any]], run_id: str) -> list[dict[str, Any]]:
    """Return the calls in an order independent of stream timing. The run's random name becomes RUN."""
    named = [
        {**call, "metadata": {key: "RUN" if value == run_id else value for key, value in call["metadata"].items()}}
        for call in calls
    ]
    return sorted(named, key=lambda call: (call["method"], int(call["request"].get("start", 0))))


# The model of the scheduler.

_COST = {"a1": 0.5, "a2": 0.2, "b1": 1.0, "b2": 2.0, "b3": 3.0}


def _modes(**rates: tuple[float, float]) -> list[dict[str, Any]]:
    """Return rates of comm and comp by mode. An underscore replaces a hyphen, and `split_1` replaces split:1."""
    names = {name: name.replace("split_", "split:").replace("_", "-") for name in rates}
    return [{"name": names[name], "comm_rate": comm, "comp_rate": comp} for name, (comm, comp) in rates.items()]


SCENARIOS: dict[str, dict[str, Any]] = {
    "cost": {"cores": 4, "cycles": 6, "forward": 1, "backward": [2, 2, 2, 3, 2, 2], "comm": 8, "prefetch": 2, "cost": _COST},
    "modes": {
        "cores": 3,
        "cycles": 25,
        "forward": 0.7,
        "backward": 1.3,
        "comm": [1 + index % 4 for index in range(25)],
        "modes": _modes(
            comp_only=(0.0, 4.0), split_1=(1.1, 3.3), split_2=(1.9, 2.1), comm_only=(2.5, 0.0), compute_first=(1.4, 3.1)
        ),
    },
    "two cores": {
        "cores": 2,
        "cycles": 40,
        "forward": 0.4,
        "backward": 0.6,
        "comm": 1.0,
        "prefetch": 3,
        "modes": _modes(comp_only=(0.0, 180.0), split_1=(300.0, 50.0), comm_only=(600.0, 0.0)),
    },
}
SAMPLES = {
    "cores": 4,
    "comp": [{"work": 1, "comm_cores": 0, "seconds": 0.50}, {"work": 1, "comm_cores": 1, "seconds": 0.62},
             {"work": 2, "comm_cores": 2, "seconds": 1.67}, {"work": 2, "comm_cores": 3, "seconds": 2.51}],
    "comm": [{"work": 8, "comm_cores": 1, "seconds": 2.50}, {"work": 8, "comm_cores": 2, "seconds": 1.43},
             {"work": 9, "comm_cores": 3, "seconds": 1.22}, {"work": 9, "comm_cores": 4, "seconds": 1.00}],
}  # fmt: skip


def simulated(name: str, cwd: Path) -> Any:
    words = ("simulate", "--scenario", "-", "--json", "--random-runs", "50", "--seed", "3")
    return printed_json(start("scheduler", *words, cwd=cwd, stdin=json.dumps(SCENARIOS[name])))


def fitted(cwd: Path) -> Any:
    return printed_json(start("scheduler", "fit", "-", "--json", cwd=cwd, stdin=json.dumps(SAMPLES)))


def printed_json(finished: subprocess.CompletedProcess[str]) -> Any:
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def differences(golden: Any, found: Any, where: str = "", rel: float = 0.0) -> list[str]:
    """Return the places where `found` lacks or changes a value of `golden`. Numbers may differ by `rel`; keys may be added."""
    if isinstance(golden, dict) and isinstance(found, dict):
        return [
            line
            for key, value in golden.items()
            for line in (
                [f"{where}.{key} is missing"] if key not in found else differences(value, found[key], f"{where}.{key}", rel)
            )
        ]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        return [
            line
            for index, pair in enumerate(zip(golden, found, strict=True))
            for line in differences(*pair, f"{where}[{index}]", rel)
        ]
    are_numbers = all(type(value) in (int, float) for value in (golden, found))
    if golden == found and type(golden) is type(found):
        return []
    if rel and are_numbers and math.isclose(golden, found, rel_tol=rel, abs_tol=rel):
        return []
    return [f"{where} is {found!r}, and was {golden!r}"]


# The command line.

COMMANDS = (
    ("cloud_teacher", "train"), ("cloud_teacher", "precompute"), ("cloud_teacher", "serve"),
    ("edge_student", "train"), ("edge_student", "calibrate"), ("edge_student", "fetch"), ("edge_student", "compare"),
    ("edge_student", "doctor"), ("scheduler", "simulate"), ("scheduler", "figures"), ("scheduler", "fit"),
)  # fmt: skip
_FLAG = re.compile(r"^\W*?(--[a-z][a-z0-9-]*)(?:, (--no-[a-z0-9-]+))?", re.MULTILINE)


def flags_of(program: str, command: str, cwd: Path) -> list[str]:
    """Return the flags in a command's help, each at the beginning of a line."""
    finished = start(program, command, "--help", cwd=cwd, COLUMNS="300", NO_COLOR="1")
    assert finished.returncode == 0, finished.stderr
    return sorted({flag for match in _FLAG.findall(finished.stdout) for flag in match if flag})


_ABSENT = (
    "train",
    "--out",
    "out",
    *RECIPE,
    "--cycles",
    "5",
    "--log-level",
    "error",
    "--teacher",
    "127.0.0.1:1",
    "--max-wait",
    "0.5",
)
_SERVE = ("serve", "--dataset", "digits:public", "--model", "cnn:width=4", "--store", "store", "--listen", "127.0.0.1:0")
STATUSES: dict[str, tuple[str, ...]] = {
    "an edge whose teacher is absent": ("edge_student", *_ABSENT),
    "an edge with an unknown flag": ("edge_student", *_ABSENT, "--nonsense", "1"),
    "an edge with a value out of range": ("edge_student", *_ABSENT, "--alpha", "1.5"),
    "an edge with an unknown command": ("edge_student", "nonsense"),
    "offline without a cache": ("edge_student", "train", "--out", "out", *RECIPE, "--logits", "offline", "--cache", "absent"),
    "fetching from an absent teacher": (
        "edge_student",
        "fetch",
        "--teacher",
        "127.0.0.1:1",
        "--cache",
        "cache",
        "--max-wait",
        "0.5",
    ),
    "a teacher with an unknown data set": ("cloud_teacher", *_SERVE, "--dataset", "nonsense:public"),
    "a teacher that would be reached in plaintext": ("cloud_teacher", *_SERVE, "--listen", "0.0.0.0:0"),
    "a scheduler with an unknown command": ("scheduler", "nonsense"),
    "a scheduler with an absent scenario": ("scheduler", "simulate", "--scenario", "absent.json"),
    "a scheduler with a file that is no JSON": ("scheduler", "fit", "/dev/null"),
    "a scheduler's help": ("scheduler", "--help"),
    "an edge's version": ("edge_student", "--version"),
}


def status_of(name: str, cwd: Path) -> int:
    program, *words = STATUSES[name]
    return start(program, *words, cwd=cwd).returncode


# Weights.


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file of float32 and int64 by its published format."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    kinds = {"F32": "<f4", "I64": "<i8"}
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return found
