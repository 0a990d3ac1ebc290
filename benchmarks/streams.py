"""Throughput of one comm worker in batches per second, by its number of streams and cores.

The sender only sends payloads that are already encoded, because on few cores its CPU time reduces the receiver's. `topk` of many
classes is bound by the receiver's CPU: a few kB arrive, and megabytes of rows are written. float16 of 1,000 classes and float32 of
10 are typical of a run. Sender, worker and the trainer, which frees batches immediately, are separate processes. The worker has one
core, or two, one of which it shares with the sender. The CPU times of both give an upper bound: with all cores busy,
cores / (sender + worker) batches per second.

    python benchmarks/streams.py [--rounds 5] [--seconds 1.5] [--json FILE]

Run it on a quiet machine.
"""

import asyncio
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
from links import configure, serving

from cloud_teacher.logits.store import StoreKey
from cloud_teacher.service.admission import Window, admit, parse
from cloud_teacher.service.limits import Limits
from edge_student.ipc.ring import Ring, RingShape
from edge_student.measure.intervals import median_interval
from edge_student.measure.result_file import write_results
from edge_student.run.worker_process import CommWorkerProcess
from edgekd.cli import command
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import Encoding, Format, checksum, chunk_rows, encode, to_wire
from edgekd.wire.limits import MAX_STRIDE, MAX_WINDOW, PROTOCOL_VERSION, SERVICE_NAME, server_options
from edgekd.wire.order import batch_ids
from scheduler.live.binding import CommBinding
from scheduler.live.comm_port import BatchArrived, CommFailed
from scheduler.live.threads import allowed_cores

CORES = tuple(sorted(allowed_cores()))
BATCH = 128
NUM_SAMPLES = 8 * BATCH
_WARM_UP_S = 0.3
CASES = {
    "topk, k = 10 of 20,000": (Format(Encoding.TOPK, 10), 20_000),
    "topk, k = 10 of 1,000": (Format(Encoding.TOPK, 10), 1_000),
    "float16 of 1,000": (Format(Encoding.FLOAT16), 1_000),
    "float32 of 10": (Format(Encoding.FLOAT32), 10),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Measure the throughput of comm by its streams and cores."""

    rounds: int = 5
    """Number of rounds. Each measures every case with every combination of streams and cores."""
    seconds: float = 1.5
    """Seconds of each measurement."""
    json: Path | None = None
    """Result file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Throughput and CPU times of one measurement."""

    batches_per_s: float
    worker_us_per_batch: float
    sender_us_per_batch: float


def send(num_classes: int) -> None:
    """Serve windows of cached payloads on loopback. Every sample has the same rows, and each payload is encoded once."""
    rows = np.random.default_rng(0).standard_normal((BATCH, num_classes)).astype(np.float32)
    key = StoreKey(teacher_digest="7" * 64, dataset_digest="d0" * 32, num_samples=NUM_SAMPLES, num_classes=num_classes)

    @cache
    def payload_of(form: Format, row: int) -> tuple[int, bytes, int]:
        """Return the number of rows of the chunk that begins at `row`, a message with its payload only, and its checksum."""
        part = rows[row : row + chunk_rows(num_classes, form)]
        payload = encode(part, form)
        return len(part), teacher_pb2.LogitsChunk(payload=payload).SerializeToString(), checksum(payload)

    def messages_of(window: Window, index: int) -> list[bytes]:
        ids, row, messages = batch_ids(window.seed, NUM_SAMPLES, BATCH, index), 0, []
        while row < BATCH:
            num_rows, payload, crc32 = payload_of(window.form, row)
            header = teacher_pb2.LogitsChunk(
                batch_index=index,
                row_start=row,
                num_rows=num_rows,
                num_classes=num_classes,
                encoding=to_wire(window.form.encoding),
                top_k=window.form.top_k,
                sample_ids=ids[row : row + num_rows].tolist(),
                crc32=crc32,
            )
            messages.append(header.SerializeToString() + payload)  # concatenated protobuf messages merge their fields
            row += num_rows
        return messages

    async def describe(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return teacher_pb2.DescribeResponse(
            protocol_version=PROTOCOL_VERSION,
            teacher_digest=key.teacher_digest,
            dataset_digest=key.dataset_digest,
            num_samples=NUM_SAMPLES,
            num_classes=num_classes,
            encodings=[to_wire(encoding) for encoding in Encoding],
            max_batch_size=BATCH,
            max_window=MAX_WINDOW,
            max_stride=MAX_STRIDE,
        ).SerializeToString()

    async def stream(request: bytes, context: grpc.aio.ServicerContext) -> None:
        window = admit(parse(request), key, Limits())
        for index in range(window.start, window.start + window.count * window.stride, window.stride):
            for message in messages_of(window, index):
                await context.write(message)

    async def serve() -> None:
        server = grpc.aio.server(options=server_options())
        methods = {
            "Describe": grpc.unary_unary_rpc_method_handler(describe),
            "StreamLogits": grpc.unary_stream_rpc_method_handler(stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"listening on 127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()

    asyncio.run(serve())


def receive(address: str, form: Format, num_classes: int, num_streams: int, cores: frozenset[int], seconds: float) -> Outcome:
    """Measure a comm worker on these cores with a trainer that frees batches immediately."""
    sender = next(child for child in psutil.Process().children() if "_send" in child.cmdline())
    config = configure(address, batch_size=BATCH, encoding=form.encoding.value, top_k=form.top_k, num_streams=num_streams)
    with CommWorkerProcess(config) as worker:
        worker.await_description()
        ring = Ring.create(replace(RingShape.one_slot(form, batch_size=BATCH, num_classes=num_classes), num_slots=8))
        binding = CommBinding(worker.pid)
        try:
            worker.use_ring(ring, start=0, stop=1 << 30)
            binding.apply(cores)
            worker.go()
            first = _consume(worker, _WARM_UP_S, 0)
            binding.apply(cores)
            worker_s, sender_s, started = _cpu_s(psutil.Process(worker.pid)), _cpu_s(sender), time.monotonic()
            last = _consume(worker, seconds, first)
            elapsed, count = time.monotonic() - started, last - first
            worker_s, sender_s = _cpu_s(psutil.Process(worker.pid)) - worker_s, _cpu_s(sender) - sender_s
        finally:
            ring.close()
    return Outcome(
        batches_per_s=count / elapsed, worker_us_per_batch=worker_s / count * 1e6, sender_us_per_batch=sender_s / count * 1e6
    )


def _consume(worker: CommWorkerProcess, seconds: float, num_batches: int) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        event = worker.next_event(30.0)
        if isinstance(event, CommFailed):
            raise event.error
        assert isinstance(event, BatchArrived), event
        num_batches = event.index + 1
        worker.free_slots(num_batches)
    return num_batches


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(form: Format, num_classes: int, settings: Settings) -> dict[str, Any]:
    """Measure one case with every combination, interleaved. Ratios are to one stream on one core of the same round."""
    highest, both = frozenset(CORES[-1:]), frozenset(CORES[-2:])
    ways = {
        "1 stream, 1 core": (1, highest),
        "2 streams, 1 core": (2, highest),
        "1 stream, 2 cores": (1, both),
        "2 streams, 2 cores": (2, both),
    }
    found: dict[str, list[Outcome]] = {way: [] for way in ways}
    with serving([sys.executable, __file__, "_send", str(num_classes)]) as address:
        receive(address, form, num_classes, 1, both, settings.seconds)  # fills the cache of payloads
        for number in range(settings.rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                num_streams, cores = ways[way]
                found[way].append(receive(address, form, num_classes, num_streams, cores, settings.seconds))
    base = found["1 stream, 1 core"]
    rows = {}
    for way, outcomes in found.items():
        row: dict[str, Any] = {key: statistics.median(asdict(each)[key] for each in outcomes) for key in asdict(outcomes[0])}
        ratios = [outcome.batches_per_s / reference.batches_per_s for outcome, reference in zip(outcomes, base, strict=True)]
        interval = median_interval(ratios)
        bound = len(CORES) / (row["worker_us_per_batch"] + row["sender_us_per_batch"]) * 1e6
        row |= {
            "speedup": statistics.median(ratios),
            "speedup_interval": interval and asdict(interval),
            "bound_batches_per_s": bound,
        }
        rows[way] = row
    return rows


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "_send":
        send(int(sys.argv[2]))
        return
    settings = command.parse(Settings, sys.argv[1:], prog="streams.py", description="Throughput of comm by streams and cores.")
    results = {}
    for name, (form, num_classes) in CASES.items():
        results[name] = measure(form, num_classes, settings)
        print(f"{name}: done", file=sys.stderr, flush=True)
    print("| payload | streams, cores | batches/s | vs 1 on 1 | worker, us | sender, us | bound, batches/s |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in results.items():
        for way, row in rows.items():
            interval = row["speedup_interval"]
            shown = f"{row['speedup']:.2f}" + (f" ({interval['low']:.2f} .. {interval['high']:.2f})" if interval else "")
            cpu = f"{row['worker_us_per_batch']:.0f} | {row['sender_us_per_batch']:.0f}"
            print(f"| {name} | {way} | {row['batches_per_s']:,.0f} | {shown} | {cpu} | {row['bound_batches_per_s']:,.0f} |")
    write_results(settings.json, cores=CORES, settings=settings, results={"cases": results})


if __name__ == "__main__":
    main()
