"""Private data never leaves the edge: all bytes an edge sends are recorded and searched for its training data."""

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import teacher, train

from edgekd.data.dataset import Dataset
from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import to_input

pytestmark = [pytest.mark.slow, pytest.mark.promise(number=20)]
SIZE, CLASSES, IMAGES = 8, 3, 60
LABEL = "canary-of-a-class"


class Recorder:
    """Forwards connections to an address and records every byte in both directions."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._sent: list[bytearray] = []
        self._received: list[bytearray] = []
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"

    @property
    def sent(self) -> bytes:
        """All bytes sent by the edge, connection by connection."""
        return b"".join(self._sent)

    @property
    def received(self) -> bytes:
        """All bytes received by the edge."""
        return b"".join(self._received)

    def accept(self) -> None:
        """Accept connections until the listening socket is shut down."""
        while True:
            try:
                edge, _ = self._listening.accept()
            except OSError:
                return
            cloud = socket.create_connection(self._target)
            self._sockets += [edge, cloud]
            for source, sink, records in ((edge, cloud, self._sent), (cloud, edge, self._received)):
                records.append(bytearray())
                thread = threading.Thread(target=self._forward, args=(source, sink, records[-1]))
                self._threads.append(thread)
                thread.start()

    def _forward(self, source: socket.socket, sink: socket.socket, record: bytearray) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                record += content
                sink.sendall(content)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in self._sockets:
            with each, suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@contextmanager
def recording(address: str) -> Iterator[Recorder]:
    recorder = Recorder(address)
    accepting = threading.Thread(target=recorder.accept)
    accepting.start()
    try:
        yield recorder
    finally:
        recorder.close()
        accepting.join()


def make_folder(folder: Path, seed: int) -> str:
    """Create an image folder of unique noise and return its data set name."""
    noise = np.random.default_rng(seed)
    for kind in range(CLASSES):
        (folder / f"{LABEL}-{kind}").mkdir(parents=True)
        for number in range(IMAGES):
            pixels = noise.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{LABEL}-{kind}" / f"canary-{seed}-{number}.png")
    return f"imagefolder:{folder},size={SIZE}"


def canaries(dataset: Dataset, folder: Path) -> dict[str, list[bytes]]:
    """Return byte strings that would reveal the data, by encoding."""
    windows = [image.ravel()[at : at + 8] for image in dataset.inputs for at in (0, 90, 184)]
    raw = [window.tobytes() for window in windows]
    floats = [to_input(window.reshape(1, 1, 2, 4), Preprocessing()).numpy().ravel()[:4] for window in windows]
    files = [Path(file).read_bytes() for file in dataset.files]
    labels = dataset.labels
    return {
        "pixels": raw,
        "pixels, channels last": [image.transpose(1, 2, 0).ravel()[:8].tobytes() for image in dataset.inputs],
        "floats": [values.astype(np.float32).tobytes() for values in floats],
        "halves": [values.astype(np.float16).tobytes() for values in floats],
        "hexadecimal": [content.hex().encode() for content in raw],
        "base64": [base64.b64encode(image.tobytes()[skip:])[4:20] for image in dataset.inputs for skip in range(3)],
        "files": [content[at : at + 12] for content in files for at in (41, len(content) // 2)],
        "base64 of files": [base64.b64encode(content[41 + skip : 77 + skip]) for content in files for skip in range(3)],
        "labels": [labels[:6].astype(kind).tobytes() for kind in (np.int64, np.int32, np.int16, np.uint8)],
        "names": [LABEL.encode(), b"canary-", str(folder).encode()],
    }


def test_no_byte_of_the_private_set_leaves_the_edge(tmp_path: Path) -> None:
    public, private = make_folder(tmp_path / "public", 1), make_folder(tmp_path / "private", 2)
    ours, theirs = load_dataset(f"{private}:private"), load_dataset(f"{public}:public")
    with teacher(tmp_path / "store", dataset=f"{public}:public") as serving, recording(serving.address) as recorder:
        flags = ("--private", f"{private}:private", "--public-inputs", "stream", "--cycles", "12", "--policy", "os-default")
        flags += ("--streams", "2", "--logits", "hybrid", "--cache", str(tmp_path / "cache"))
        result = train(recorder.address, tmp_path / "run", *flags)
    assert result["cycles"] == 12
    sent, received = recorder.sent, recorder.received
    assert b"PRI * HTTP/2.0" in sent
    found = {kind for kind, contents in canaries(ours, tmp_path / "private").items() if any(each in sent for each in contents)}
    assert found == set()
    assert len(sent) < ours.inputs.nbytes / 3, "noise cannot be squeezed, so that little cannot hold it, however it is written"
    # The same search must find the public data in the other direction, or it would prove nothing.
    public_found = {
        kind for kind, contents in canaries(theirs, tmp_path / "public").items() if any(each in received for each in contents)
    }
    assert "pixels" in public_found


def test_the_search_finds_each_kind_of_canary(tmp_path: Path) -> None:
    private = load_dataset(f"{make_folder(tmp_path / 'private', 2)}:private")
    image, file = private.inputs[3], Path(private.files[3]).read_bytes()
    inputs = to_input(image[np.newaxis], Preprocessing()).numpy()
    written = {
        "pixels": image.tobytes(),
        "pixels, channels last": image.transpose(1, 2, 0).tobytes(),
        "floats": inputs.tobytes(),
        "halves": inputs.astype(np.float16).tobytes(),
        "hexadecimal": image.tobytes().hex().encode(),
        "base64": base64.b64encode(b"x" + image.tobytes()),
        "files": file,
        "base64 of files": base64.b64encode(b"xy" + file),
        "labels": private.labels.tobytes(),
        "names": str(private.files[3]).encode(),
    }
    for kind, contents in canaries(private, tmp_path / "private").items():
        assert any(each in b"\x00" + written[kind] + b"\x00" for each in contents), kind
