"""Coverage-guided fuzzing of all untrusted network data, at both ends. `make fuzz` runs it; pytest does not.

    python tests/fuzzing/fuzz_decoders.py SECONDS CRASHES

The first byte of an input selects the decoder, the rest is data from the wire. An undocumented exception ends the program with
status 1, and the input is kept in the folder CRASHES. To reproduce it, give its path instead of SECONDS. The corpus starts with
valid messages, created in a temporary folder. atheris has wheels for x86_64 only.
"""

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgekd", "edge_student", "cloud_teacher"]):
    import numpy as np
    from google.protobuf.message import DecodeError

    from cloud_teacher.logits.store import StoreKey
    from cloud_teacher.service.admission import RefusedError, admit, parse
    from cloud_teacher.service.limits import Limits
    from edge_student.ipc import messages
    from edge_student.ipc.messages import BatchReceived, Configure, Described, Message
    from edge_student.ipc.ring import RingShape, Slot
    from edge_student.receive.description import RequestRefusedError, check_description
    from edge_student.receive.verify import decode_chunk
    from edgekd.v1 import teacher_pb2
    from edgekd.wire.chunks import parse_chunk
    from edgekd.wire.codec import ChunkError, Encoding, Format, checksum, decode_into, encode, to_wire
    from edgekd.wire.inputs import InputEncoding, decode_inputs_into
    from edgekd.wire.order import batch_ids

DIGEST = "7" * 64
BATCH, CLASSES, SAMPLES, SHAPE = 4, 5, 40, (3, 4, 4)
KEY = StoreKey(teacher_digest=DIGEST, dataset_digest=DIGEST, num_samples=SAMPLES, num_classes=CLASSES)
FORMATS = [Format(Encoding.FLOAT32), Format(Encoding.FLOAT16), Format(Encoding.INT8), Format(Encoding.TOPK, 2)]
INPUTS: list[InputEncoding | None] = [None, InputEncoding.PIXELS, InputEncoding.STORED]


def configured(form: Format, inputs: InputEncoding | None) -> Configure:
    return Configure(
        teacher="127.0.0.1:1",
        batch_size=BATCH,
        seed=3,
        encoding=form.encoding,
        top_k=form.top_k,
        window=4,
        max_wait_s=1.0,
        log_level="error",
        niceness=0,
        is_idle=False,
        inputs=inputs or "",
    )


CONFIGS = [configured(form, inputs) for form in FORMATS for inputs in INPUTS]


def accept_chunk(config: Configure, body: bytes) -> None:
    """A chunk at the edge: what the receiver makes of it, with logits that are then finite and ids that were due."""
    try:
        chunk = parse_chunk(body)
    except DecodeError:
        return
    form = Format(Encoding(config.encoding), config.top_k)
    shape = SHAPE if config.inputs else ()
    slot = Slot.empty(RingShape.one_slot(form, batch_size=BATCH, num_classes=CLASSES, input_shape=shape))
    slot.sample_ids[:] = batch_ids(config.seed, SAMPLES, BATCH, 0)
    slot.logits[:] = np.nan
    # The checksums are the sender's to choose, so a fuzzer need not guess them.
    chunk.header.crc32 = checksum(chunk.payload)
    if config.inputs == InputEncoding.PIXELS:
        chunk.header.pixels_crc32 = checksum(chunk.inputs)
    inputs = InputEncoding(config.inputs) if config.inputs else None
    try:
        rows = decode_chunk(chunk, slot, index=0, row=0, form=form, inputs=inputs)
    except ChunkError:
        return
    assert 1 <= rows <= BATCH
    assert np.isfinite(slot.logits[:rows]).all(), "a value that is none was accepted"


def decode_payload(config: Configure, body: bytes) -> None:
    """A payload of one row after the other, and then as many inputs as there is left."""
    form = Format(Encoding(config.encoding), config.top_k)
    rows = max(1, len(body) // form.layout(CLASSES).row_bytes)
    out = np.full((rows, CLASSES), np.nan, np.float32)
    try:
        decode_into(body, form=form, rows=rows, num_classes=CLASSES, crc32=checksum(body), out=out)
        assert np.isfinite(out).all(), "a value that is none was decoded"
    except ChunkError:
        pass
    if config.inputs:
        pixels = np.zeros((1, *SHAPE), np.uint8)
        lengths = [len(body)] if config.inputs == InputEncoding.STORED else []
        try:
            decode_inputs_into(body, encoding=InputEncoding(config.inputs), lengths=lengths, crc32=checksum(body), out=pixels)
        except ChunkError:
            pass


def describe(config: Configure, body: bytes) -> None:
    """An answer to Describe, and what of it goes on to the trainer."""
    try:
        answer = teacher_pb2.DescribeResponse.FromString(body)
        check_description(answer, config, config.teacher)
    except (DecodeError, RequestRefusedError):
        return
    assert 1 <= answer.num_samples <= 2**27
    assert answer.dataset_name.isprintable()


def admit_request(config: Configure, body: bytes) -> None:
    """A request at the cloud."""
    try:
        window = admit(parse(body), KEY, Limits(), [encoding for encoding in INPUTS if encoding])
    except RefusedError as refused:
        assert len(refused.details) < 500
        assert refused.details.isprintable()
        return
    assert window.count * window.batch_size <= 1024 * 4096


def receive_packet(config: Configure, body: bytes) -> None:
    """A packet between the edge's own processes, which repeats much of what a teacher said."""
    ours, remote_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, remote_end:
        ours.send(body[:60_000] or b"w")
        try:
            message, _ = messages.receive(remote_end)
        except AssertionError as error:
            if not str(error).startswith("invalid message: "):
                raise
            return
        assert isinstance(message, Message)


TARGETS: list[Callable[[Configure, bytes], None]] = [accept_chunk, decode_payload, describe, admit_request, receive_packet]


def one_input(data: bytes) -> None:
    """Entry point of the fuzzer. The first byte selects the decoder for the rest."""
    if data:
        which, choice = data[0] % len(TARGETS), data[0] // len(TARGETS)
        TARGETS[which](CONFIGS[choice % len(CONFIGS)], data[1:])


def valid_inputs() -> Iterator[bytes]:
    """One input of every kind that is accepted."""
    ids = batch_ids(3, SAMPLES, BATCH, 0)
    logits = np.sin(ids[:, None] + np.arange(CLASSES)).astype(np.float32)
    pixels = np.zeros((BATCH, *SHAPE), np.uint8).tobytes()
    for choice, config in enumerate(CONFIGS):
        form = Format(Encoding(config.encoding), config.top_k)
        payload = encode(logits, form)
        chunk = teacher_pb2.LogitsChunk(
            num_rows=BATCH, num_classes=CLASSES, encoding=to_wire(form.encoding), top_k=form.top_k, sample_ids=ids.tolist()
        )
        chunk.payload, chunk.crc32 = payload, checksum(payload)
        chunk.input_encoding = INPUTS.index(InputEncoding(config.inputs) if config.inputs else None)  # type: ignore[assignment]
        if config.inputs == InputEncoding.PIXELS:
            chunk.inputs, chunk.pixels_crc32 = pixels, checksum(pixels)
        description = teacher_pb2.DescribeResponse(
            protocol_version=1, teacher_digest=DIGEST, dataset_digest=DIGEST, dataset_name="x", num_samples=SAMPLES
        )
        description.num_classes, description.max_batch_size, description.max_window = CLASSES, 64, 8
        description.encodings.extend([1, 2, 3, 4])
        description.input_shape.extend(SHAPE)
        description.input_encodings.extend([1, 2])
        request = teacher_pb2.StreamLogitsRequest(count=4, batch_size=BATCH, teacher_digest=DIGEST, dataset_digest=DIGEST)
        request.encoding, request.top_k = to_wire(form.encoding), form.top_k
        described = Described(teacher_digest="", dataset_digest="", dataset_name="", num_samples=1, num_classes=1)
        batch = BatchReceived(index=1, started=1.0, ended=2.0, cpu_s=0.1, busy_s=None, num_bytes=3)
        bodies = [chunk.SerializeToString(), payload, description.SerializeToString(), request.SerializeToString()]
        for which, body in enumerate([*bodies, batch.pack() if choice % 2 else messages._to_json(described)]):
            yield bytes([choice * len(TARGETS) + which]) + body


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/fuzzing/fuzz_decoders.py SECONDS CRASHES, or the path of an input for SECONDS")
    what, crashes = sys.argv[1], Path(sys.argv[2])
    if not what.isdigit():
        one_input(Path(what).read_bytes())
        print(f"{what}: nothing wrong any more")
        return
    crashes.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(valid_inputs()):
            one_input(content)
            (Path(corpus) / f"{number}").write_bytes(content)
        flags = [f"-max_total_time={what}", f"-artifact_prefix={crashes}/", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
        # libFuzzer ends its process itself, so that is a child, and we remove the folder of the corpus.
        child = os.fork()
        if not child:
            atheris.Setup([sys.argv[0], *flags, "-print_final_stats=1", corpus], one_input)
            atheris.Fuzz()
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        found = sorted(str(path) for path in crashes.iterdir())
        print(f"fuzzing found something (status {code}); the input is in {', '.join(found) or crashes}", file=sys.stderr)
    sys.exit(1 if code else 0)


if __name__ == "__main__":
    main()
