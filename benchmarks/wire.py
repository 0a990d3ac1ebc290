"""CPU time that an edge spends on receiving logits, for each encoding, compared with a bare gRPC loop that receives the same bytes.

For each encoding, three programs receive batches from a teacher with all logits computed:

- "float16": the comm worker's receiver, which verifies and decodes into a ring;
- "worker float16": the whole comm worker, which also reports every batch to the trainer;
- "bare float16": a bare gRPC loop that requests the same batches and discards the bytes.

A fourth program, "pickle", reads pickled float32 arrays from a socket. Each is a separate process on the highest core; everything
else runs on the lowest. They are interleaved, and the ratios to the bare loop are paired within a round.

CPU seconds are those of all threads of the receiving process, after the warm-up batches. The loss of an encoding is the KL
divergence of the softmax of the decoded logits from that of the teacher's logits, and, with --accuracy, the accuracy of students
trained on them.

    python benchmarks/wire.py [--classes 10,1000] [--batches 300] [--rounds 7] [--accuracy] [--json FILE]

Run it on a quiet machine.
"""

import contextlib
import json
import os
import pickle
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from links import configure, loopback_teacher, serving

from edge_student.ipc.ring import Ring, RingShape
from edge_student.measure.intervals import median_interval
from edge_student.measure.result_file import write_results
from edge_student.receive.receiver import Receiver
from edge_student.run.worker_process import CommWorkerProcess, worker_environment
from edgekd.cli.command import parse
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import Encoding, Format, checksum, decode_into, encode
from edgekd.wire.limits import SERVICE_NAME, channel_options
from edgekd.wire.order import batch_ids
from scheduler.live.comm_port import BatchArrived, CommEnded, CommFailed
from scheduler.live.threads import allowed_cores

CORES = tuple(sorted(allowed_cores()))
NUM_SAMPLES = 2048
_WARM_UP = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Measure the CPU time of receiving, per encoding, compared with a bare gRPC loop and with pickle over a socket."""

    classes: str = "10,1000"
    """Numbers of classes, comma-separated."""
    encodings: str = "float32,float16,int8,topk"
    """Encodings, comma-separated."""
    top_k: str = "10:4,1000:10"
    """The k of topk for each number of classes, as comma-separated CLASSES:K."""
    batch_size: int = 128
    """Rows of a batch."""
    batches: int = 300
    """Batches that each program receives per round."""
    rounds: int = 7
    """Number of rounds."""
    accuracy: bool = False
    """Also train students on Fashion-MNIST with every encoding; takes minutes, and needs the installed data set."""
    seeds: int = 5
    """Students per encoding, each with its own seed."""
    json: Path | None = None
    """Result file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """CPU time and throughput of one program in one round."""

    cpu_s_per_batch: float
    batches_per_s: float
    bytes_per_batch: float


def form_of(encoding: str, num_classes: int, settings: Settings) -> Format:
    """Return the format of an encoding for a number of classes."""
    ks = dict(pair.split(":") for pair in settings.top_k.split(","))
    return Format(Encoding(encoding), int(ks[str(num_classes)]) if encoding == Encoding.TOPK else 0)


def _ring_shape(form: Format, batch_size: int, num_classes: int) -> RingShape:
    return replace(RingShape.one_slot(form, batch_size=batch_size, num_classes=num_classes), num_slots=16)


def receive_by_worker(address: str, form: Format, settings: Settings) -> Cost:
    """Measure the comm worker with a trainer that frees batches immediately."""
    config = configure(address, batch_size=settings.batch_size, encoding=form.encoding.value, top_k=form.top_k)
    num_batches = _WARM_UP + settings.batches
    with on_core(CORES[-1]):
        worker = CommWorkerProcess(config)
    with worker:
        description = worker.await_description()
        ring = Ring.create(_ring_shape(form, settings.batch_size, description.num_classes))
        try:
            worker.use_ring(ring, start=0, stop=num_batches)
            worker.go()
            arrived: list[BatchArrived] = []
            while not isinstance(event := worker.next_event(30.0), CommEnded):
                if isinstance(event, CommFailed):
                    raise event.error
                assert isinstance(event, BatchArrived), event
                arrived.append(event)
                worker.free_slots(event.index + 1)
        finally:
            ring.close()
    counted = arrived[_WARM_UP:]
    return Cost(
        cpu_s_per_batch=sum(event.cpu_s for event in counted) / len(counted),
        batches_per_s=len(counted) / (counted[-1].ended - arrived[_WARM_UP - 1].ended),
        bytes_per_batch=sum(event.num_bytes for event in counted) / len(counted),
    )


def receive_as(role: str, address: str, form: Format, settings: Settings) -> Cost:
    """Run this file as a separate process in one of its roles."""
    return _run_self(role, {"address": address, "encoding": form.encoding.value, "top_k": form.top_k, **_sizes(settings)})


def receive_pickled(num_classes: int, settings: Settings) -> Cost:
    """Receive pickled arrays in a separate process, from a sender on the lowest core."""
    options = {"classes": num_classes, **_sizes(settings)}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with on_core(CORES[0]):
            sender = subprocess.Popen(
                [sys.executable, __file__, "_send", json.dumps({"fd": listener.fileno(), **options})], pass_fds=[listener.fileno()]
            )
        try:
            return _run_self("pickle", {"port": port, **options})
        finally:
            sender.kill()
            sender.wait()


def _sizes(settings: Settings) -> dict[str, int]:
    return {"batch_size": settings.batch_size, "batches": settings.batches}


def _run_self(role: str, options: dict[str, Any]) -> Cost:
    with on_core(CORES[-1]):
        command, environ = [sys.executable, __file__, f"_{role}", json.dumps(options)], dict(os.environ)
        if role == "receive":
            environ = worker_environment(environ)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    output, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the {role} loop ended with exit status {process.returncode}")
    return Cost(**json.loads(output))


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin this thread to a core during the block, so that processes started in it inherit the mask."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _receive(options: dict[str, Any]) -> Cost:
    """Receive, verify and decode into a ring."""
    config = configure(options["address"], batch_size=options["batch_size"], encoding=options["encoding"], top_k=options["top_k"])
    receiver = Receiver(config, lambda cause, attempt: None)
    num_classes = receiver.describe().num_classes
    form = Format(Encoding(options["encoding"]), options["top_k"])
    ring = Ring.create(_ring_shape(form, options["batch_size"], num_classes))

    def receive(start: int, count: int) -> int:
        return sum(
            receiver.receive(index, _WARM_UP + options["batches"], ring.slot(index), lambda: None)
            for index in range(start, start + count)
        )

    cost = _timed(receive, options["batches"])
    receiver.close()
    ring.close()
    return cost


def _bare(options: dict[str, Any]) -> Cost:
    """Receive serialized chunks, and count their bytes only."""
    channel = grpc.insecure_channel(options["address"], options=channel_options())
    describe = channel.unary_unary(
        f"/{SERVICE_NAME}/Describe",
        request_serializer=teacher_pb2.DescribeRequest.SerializeToString,
        response_deserializer=teacher_pb2.DescribeResponse.FromString,
    )
    description = describe(teacher_pb2.DescribeRequest(), timeout=30)
    stream = channel.unary_stream(
        f"/{SERVICE_NAME}/StreamLogits", request_serializer=teacher_pb2.StreamLogitsRequest.SerializeToString
    )

    def receive(start: int, count: int) -> int:
        num_bytes = 0
        for first in range(start, start + count, 64):
            request = teacher_pb2.StreamLogitsRequest(
                start=first,
                count=min(64, start + count - first),
                batch_size=options["batch_size"],
                teacher_digest=description.teacher_digest,
                dataset_digest=description.dataset_digest,
                encoding=teacher_pb2.Encoding.Value(f"ENCODING_{options['encoding'].upper()}"),
                top_k=options["top_k"],
            )
            for message in stream(request):
                num_bytes += len(message)
        return num_bytes

    cost = _timed(receive, options["batches"])
    channel.close()
    return cost


def _pickle(options: dict[str, Any]) -> Cost:
    """Receive length-prefixed pickles of (index, ids, float32 array), and copy each array into a buffer."""
    out = np.empty((options["batch_size"], options["classes"]), np.float32)
    with socket.create_connection(("127.0.0.1", options["port"])) as connection, connection.makefile("rb") as file:

        def receive(start: int, count: int) -> int:
            num_bytes = 0
            for _ in range(count):
                data = file.read(int.from_bytes(file.read(8), "little"))
                _, _, logits = pickle.loads(data)
                np.copyto(out, logits)
                num_bytes += len(data)
            return num_bytes

        return _timed(receive, options["batches"])


def _send(options: dict[str, Any]) -> None:
    """Send batches to the first client until it disconnects."""
    logits = np.random.default_rng(0).standard_normal((options["batch_size"], options["classes"])).astype(np.float32)
    with socket.socket(fileno=options["fd"]) as server:
        connection, _ = server.accept()
        index = 0
        with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                data = pickle.dumps((index, batch_ids(0, NUM_SAMPLES, options["batch_size"], index), logits), protocol=5)
                connection.sendall(len(data).to_bytes(8, "little") + data)
                index += 1


def _timed(receive: Callable[[int, int], int], batches: int) -> Cost:
    receive(0, _WARM_UP)
    cpu, wall = time.process_time(), time.monotonic()
    num_bytes = receive(_WARM_UP, batches)
    return Cost(
        cpu_s_per_batch=(time.process_time() - cpu) / batches,
        batches_per_s=batches / (time.monotonic() - wall),
        bytes_per_batch=num_bytes / batches,
    )


def measure(num_classes: int, settings: Settings, folder: Path) -> dict[str, Any]:
    """Measure all programs, interleaved, at a number of classes. Returns medians by program, and paired ratios by encoding."""
    forms = {encoding: form_of(encoding, num_classes, settings) for encoding in settings.encodings.split(",")}
    costs: dict[str, list[Cost]] = {}
    dataset = f"synthetic:classes={num_classes},size=8,samples={NUM_SAMPLES}"
    with loopback_teacher(CORES[0], dataset, folder / f"store-{num_classes}") as address:
        for number in range(settings.rounds):
            turns: list[tuple[str, Callable[[], Cost]]] = [("pickle", lambda: receive_pickled(num_classes, settings))]
            for encoding, form in forms.items():
                turns += [
                    (encoding, partial(receive_as, "receive", address, form, settings)),
                    (f"worker {encoding}", partial(receive_by_worker, address, form, settings)),
                    (f"bare {encoding}", partial(receive_as, "bare", address, form, settings)),
                ]
            for name, turn in turns if number % 2 == 0 else reversed(turns):
                costs.setdefault(name, []).append(turn())
            print(f"{num_classes} classes, round {number + 1} of {settings.rounds}", file=sys.stderr, flush=True)
    rows = {name: _row(name, found, costs) for name, found in costs.items()}
    losses = kl_of(forms, num_classes)
    return {name: {**row, "kl": losses.get(name), "accuracy": None} for name, row in rows.items()}


def accuracies(settings: Settings, folder: Path) -> dict[str, list[float]]:
    """Measure test accuracy, a fraction, of students of one teacher on Fashion-MNIST, by encoding and seed."""
    public, weights = "fashion-mnist:public", folder / "teacher.safetensors"
    cloud = [sys.executable, "-m", "cloud_teacher"]
    train = [*cloud, "train", "--dataset", public, "--model", "cnn:width=32", "--epochs", "2", "--out", str(weights)]
    subprocess.run([*train, "--log-level", "warning"], check=True, stdin=subprocess.DEVNULL)
    serve = [*cloud, "serve", "--listen", "127.0.0.1:0", "--dataset", public, "--model", "cnn:width=32", "--weights", str(weights)]
    found: dict[str, list[float]] = {}
    with serving([*serve, "--store", str(folder / "store"), "--precompute", "--log-level", "error"]) as address:
        for seed in range(settings.seeds):
            for encoding in settings.encodings.split(","):
                found.setdefault(encoding, []).append(_accuracy(address, form_of(encoding, 10, settings), seed, folder / "run"))
            print(f"accuracy, seed {seed}: { ({name: values[-1] for name, values in found.items()}) }", file=sys.stderr, flush=True)
    return found


def _accuracy(address: str, form: Format, seed: int, out: Path) -> float:
    flags = ["--private", "fashion-mnist:private", "--private-samples", "1000", "--cycles", "800", "--policy", "os-default"]
    flags += ["--teacher", address, "--seed", str(seed), "--encoding", form.encoding, "--log-level", "error", "--out", str(out)]
    flags += ["--top-k", str(form.top_k)] if form.top_k else []
    command = [sys.executable, "-m", "edge_student", "train", *flags]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return float(json.loads((out / "result.json").read_text())["accuracy"])


def _row(name: str, found: list[Cost], costs: dict[str, list[Cost]]) -> dict[str, Any]:
    row: dict[str, Any] = {key: statistics.median(asdict(cost)[key] for cost in found) for key in asdict(found[0])}
    row["mb_per_s"] = row["batches_per_s"] * row["bytes_per_batch"] / 1e6
    row["cpu_s_per_mb"] = row["cpu_s_per_batch"] / row["bytes_per_batch"] * 1e6
    bare = costs.get(f"bare {name.split()[-1]}")
    if bare is not None and not name.startswith("bare "):
        ratios = [cost.cpu_s_per_batch / reference.cpu_s_per_batch for cost, reference in zip(found, bare, strict=True)]
        interval = median_interval(ratios)
        row |= {"vs_bare": statistics.median(ratios), "vs_bare_interval": interval and asdict(interval)}
    return row


def kl_of(forms: dict[str, Format], num_classes: int) -> dict[str, float]:
    """Return the mean KL(teacher || decoded) in nats at temperature 1.

    The logits are normal with standard deviation 3, like those of a confident teacher.
    """
    logits = (3 * np.random.default_rng(0).standard_normal((512, num_classes))).astype(np.float32)
    exact = _log_softmax(logits)
    found = {}
    for name, form in forms.items():
        parts = [_decoded(logits[begin : begin + 64], form) for begin in range(0, len(logits), 64)]
        decoded = _log_softmax(np.concatenate(parts))
        found[name] = float((np.exp(exact) * (exact - decoded)).sum(axis=1).mean())
    return found


def _decoded(logits: npt.NDArray[np.float32], form: Format) -> npt.NDArray[np.float32]:
    payload, out = encode(logits, form), np.empty_like(logits)
    decode_into(payload, form=form, rows=len(logits), num_classes=logits.shape[1], crc32=checksum(payload), out=out)
    return out


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1].startswith("_"):
        options = json.loads(sys.argv[2])
        if sys.argv[1] == "_send":
            _send(options)
        else:
            print(json.dumps(asdict({"_receive": _receive, "_bare": _bare, "_pickle": _pickle}[sys.argv[1]](options))))
        return
    settings = parse(Settings, sys.argv[1:], prog="wire.py", description="CPU time of receiving logits.")
    results = {}
    # This process has the role of the trainer, which must not run on the receiver's core.
    with tempfile.TemporaryDirectory() as name, on_core(CORES[0]):
        for num_classes in map(int, settings.classes.split(",")):
            results[str(num_classes)] = measure(num_classes, settings, Path(name))
    if settings.accuracy:
        with tempfile.TemporaryDirectory() as name:
            students = accuracies(settings, Path(name))
        for encoding, values in students.items():
            differences = [value - base for value, base in zip(values, students["float32"], strict=True)]
            for rows in results.values():
                rows[encoding] |= {"accuracy": statistics.mean(values), "accuracy_vs_float32": statistics.mean(differences)}
                rows[encoding]["accuracies"] = values
    print_tables(results)
    write_results(settings.json, cores=CORES, settings=settings, results={"classes": results})


def print_tables(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print a Markdown table for each number of classes."""
    for num_classes, rows in results.items():
        print(
            f"\n{num_classes} classes\n\n| program | CPU, us per batch | vs bare | bytes per batch | MB/s | KL, nats | accuracy |"
        )
        print("|---|---|---|---|---|---|---|")
        for name, row in rows.items():
            ratio = f"{row['vs_bare']:.2f}" if "vs_bare" in row else ""
            kl = "" if row["kl"] is None else f"{row['kl']:.2g}"
            cpu, size = 1e6 * row["cpu_s_per_batch"], row["bytes_per_batch"]
            accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.4f} ({row['accuracy_vs_float32']:+.4f})"
            print(f"| {name} | {cpu:.0f} | {ratio} | {size:,.0f} | {row['mb_per_s']:.0f} | {kl} | {accuracy} |")


if __name__ == "__main__":
    main()
