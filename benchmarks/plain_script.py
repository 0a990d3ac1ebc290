"""What a user would write without EdgeKD: a thread that receives, a queue, and a plain torch loop. It is a baseline of regimes.py.

    python benchmarks/plain_script.py --teacher HOST:PORT [--private digits:private] [--cycles 200]

Only data sets, models and the protocol are EdgeKD's, so that it trains the same student on the same batches. It checks nothing,
survives nothing, and leaves threads, cores and malloc as they are. It prints JSON: the seconds of the cycles and the accuracy.
"""

import json
import queue
import sys
import threading
import time
from dataclasses import dataclass

import grpc
import numpy as np
import torch
import torch.nn.functional as F

from edge_student.settings.shared import BufferSettings, DataSettings, ModelSettings, TrainingSettings
from edgekd.cli.command import parse
from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import to_input
from edgekd.models.build import build_model
from edgekd.v1 import teacher_pb2, teacher_pb2_grpc
from edgekd.wire.order import batch_ids

WINDOW = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(DataSettings, ModelSettings, TrainingSettings, BufferSettings):
    teacher: str
    """Address of the teacher, HOST:PORT, without TLS."""


def receive(settings: Settings, batches: "queue.Queue[torch.Tensor]") -> None:
    """Put the logits of every cycle, [public batch, classes], into the queue."""
    stub, size = teacher_pb2_grpc.TeacherStub(grpc.insecure_channel(settings.teacher)), settings.public_batch
    described = stub.Describe(teacher_pb2.DescribeRequest())
    request = teacher_pb2.StreamLogitsRequest(batch_size=size, seed=settings.seed, encoding=teacher_pb2.ENCODING_FLOAT32)
    request.teacher_digest, request.dataset_digest = described.teacher_digest, described.dataset_digest
    parts: list[bytes] = []
    for start in range(0, settings.cycles, WINDOW):
        request.start, request.count = start, min(WINDOW, settings.cycles - start)
        for chunk in stub.StreamLogits(request):
            parts.append(chunk.payload)
            if chunk.row_start + chunk.num_rows == size:
                batches.put(torch.from_numpy(np.frombuffer(b"".join(parts), np.float32).reshape(size, -1).copy()))
                parts.clear()


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="plain_script.py", description="Train a student with a plain torch program.")
    private, public, test = map(load_dataset, (settings.private, settings.public_dataset, settings.test_dataset))
    student = build_model(settings.model, num_classes=private.num_classes, input_shape=private.inputs.shape[1:], seed=settings.seed)
    optimizer = torch.optim.SGD(student.parameters(), lr=settings.lr, momentum=settings.momentum)
    batches: queue.Queue[torch.Tensor] = queue.Queue(maxsize=16)
    threading.Thread(target=receive, args=(settings, batches), daemon=True).start()
    started, size, scale = time.monotonic(), settings.batch_size, settings.temperature
    for cycle in range(settings.cycles):
        ids = batch_ids(settings.seed + 1, len(private.labels), size, cycle)
        public_ids = batch_ids(settings.seed, len(public.labels), settings.public_batch, cycle)
        logits = student(to_input(np.concatenate([private.inputs[ids], public.inputs[public_ids]]), Preprocessing()))
        labelled = F.cross_entropy(logits[:size], torch.from_numpy(private.labels[ids]))
        soft, teacher = F.log_softmax(logits[size:] / scale, dim=1), F.log_softmax(batches.get() / scale, dim=1)
        distilled = F.kl_div(soft, teacher, reduction="batchmean", log_target=True) * scale**2
        optimizer.zero_grad()
        loss = settings.alpha * labelled + (1 - settings.alpha) * distilled
        loss.backward()
        optimizer.step()
    seconds = time.monotonic() - started
    with torch.inference_mode():
        right = (student.eval()(to_input(test.inputs, Preprocessing())).argmax(dim=1).numpy() == test.labels).mean()
    print(json.dumps({"wall_clock_s": seconds, "accuracy": float(right), "loss": loss.item()}))


if __name__ == "__main__":
    main()
