"""Where the comm worker has its logits from: the wire, the wire and a cache, or a cache alone.

All three fill slot after slot with the same batches in the same order, bit for bit alike. numpy and grpc only.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_student.ipc.messages import Configure, Described
from edge_student.ipc.ring import Slot
from edge_student.receive.cache import CacheError, CacheKey, LogitCache, open_cache, open_filled
from edge_student.receive.receiver import Receiver
from edgekd.wire.codec import Encoding, Format
from edgekd.wire.order import batch_ids

Ids = npt.NDArray[np.int64]


class LogitSource(Protocol):
    """Batches of logits in order."""

    def describe(self) -> Described:
        """Whose logits these are; comes first."""

    def check(self, start: int, stop: int) -> None:
        """Raise what would make one of batches start .. stop-1 fail, as far as that can be known before."""

    def divide(self, num_streams: int) -> list["LogitSource"]:
        """So many sources, this one first, or as many as there can be; the n-th is for every batch n, n + their number ...

        After `describe`, and before anything is received. Each is for one thread.
        """

    def needs_all_before(self, index: int) -> bool:
        """Whether batch `index` can be received only when all batches before it have been, by whatever source."""

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        """Fill the slot with batch `index`, and return the bytes that crossed the wire for it: 0 if all was in a cache.

        Otherwise as `Receiver.receive`.
        """

    def release(self) -> None:
        """Give the teacher its stream back until the next `receive`."""

    @property
    def receivers(self) -> list[Receiver]:
        """Who has been on the wire for it."""

    def close(self) -> None:
        """Let go of connections and files."""


class Online:
    """Every batch over the wire."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def describe(self) -> Described:
        """What the teacher says."""
        return self._receiver.describe()

    def check(self, start: int, stop: int) -> None:
        """The wire has everything."""

    def divide(self, num_streams: int) -> list[LogitSource]:
        """As `Receiver.divide`."""
        return [self, *(Online(receiver) for receiver in self._receiver.divide(num_streams)[1:])]

    def needs_all_before(self, index: int) -> bool:
        """No."""
        return False

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        """As `Receiver.receive`."""
        return self._receiver.receive(index, stop, slot, between_chunks)

    def release(self) -> None:
        """As `Receiver.release`."""
        self._receiver.release()

    @property
    def receivers(self) -> list[Receiver]:
        """The one it was made with."""
        return [self._receiver]

    def close(self) -> None:
        """Drop the connection."""
        self._receiver.close()


class Hybrid(Online):
    """A batch whose rows are all in the cache is read there; every other comes over the wire, and its rows are kept.

    Windows end where the cache goes on, so that nothing crosses the wire twice, but for a batch of which only some rows are there:
    the protocol knows whole batches only. For the same reason, where several divide the batches, the second epoch begins when the
    first has come.
    """

    def __init__(self, receiver: Receiver, config: Configure, cache: LogitCache | None = None) -> None:
        """`cache`: of another that divides the batches with this one, and closes it."""
        super().__init__(receiver)
        self._config = config
        self._cache = cache
        self._has_own_cache = cache is None
        self._is_in_second_epoch = False
        self._wire_stop = 0

    def describe(self) -> Described:
        """What the teacher says; opens the cache of its logits. Raises as `Receiver.describe` and `open_cache`."""
        described, config = self._receiver.describe(), self._config
        key = CacheKey(
            teacher_digest=described.teacher_digest,
            dataset_digest=described.dataset_digest,
            dataset_name=described.dataset_name,
            num_samples=described.num_samples,
            num_classes=described.num_classes,
            encoding=config.encoding,
            top_k=config.top_k,
            input_shape=described.input_shape if config.inputs else (),
        )
        self._cache = open_cache(Path(config.cache), key)
        self._receiver.on_rows = self.cache.put
        return described

    def divide(self, num_streams: int) -> list[LogitSource]:
        """As `Receiver.divide`, with one cache."""
        sources: list[LogitSource] = [self]
        for receiver in self._receiver.divide(num_streams)[1:]:
            receiver.on_rows = self.cache.put
            sources.append(Hybrid(receiver, self._config, self.cache))
        return sources

    @property
    def cache(self) -> LogitCache:
        """The cache, once the teacher has been described."""
        assert self._cache is not None, "describe() comes first"
        return self._cache

    def needs_all_before(self, index: int) -> bool:
        """Where others divide the batches with this one: once, where the second epoch begins."""
        if self._receiver.stride == 1 or self._is_in_second_epoch or index < self._second_epoch:
            return False
        self._is_in_second_epoch = True
        return True

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        """From the cache if it can, else over the wire."""
        if index >= self._wire_stop:
            ids = _ids(self._config, self.cache, index)
            if self.cache.has_all(ids):
                between_chunks()
                slot.sample_ids[:] = ids
                self.cache.read(ids, slot.logits, slot.inputs)
                return 0
            self._wire_stop = self._first_cached_after(index, stop)
        return self._receiver.receive(index, self._wire_stop, slot, between_chunks)

    def close(self) -> None:
        """Drop the connection, and write the cache to disk."""
        super().close()
        if self._cache is not None and self._has_own_cache:
            self._cache.close()

    @property
    def _second_epoch(self) -> int:
        """The first batch with a sample of the second epoch."""
        return self.cache.key.num_samples // self._config.batch_size

    def _first_cached_after(self, index: int, stop: int) -> int:
        """The first batch, at most a window away, whose rows will all be there once those before it have come."""
        stride = self._receiver.stride
        last = min(index + self._config.window * stride, stop)
        if stride > 1 and index < self._second_epoch:
            last = min(last, self._second_epoch)
        coming = np.zeros(self.cache.key.num_samples, bool)
        for later in range(index, last, stride):
            ids = _ids(self._config, self.cache, later)
            if later > index and self.cache.has_all(ids[~coming[ids]]):
                return later
            coming[ids] = True
        return last


class Offline:
    """Every batch from a cache that is full already; there is no teacher."""

    def __init__(self, config: Configure) -> None:
        form = Format(Encoding(config.encoding), config.top_k)
        self._config = config
        digest = config.dataset_digest
        self._cache = open_filled(Path(config.cache), dataset_digest=digest, form=form, with_inputs=bool(config.inputs))

    def describe(self) -> Described:
        """What the teacher said when the cache was filled."""
        key = self._cache.key
        return Described(
            teacher_digest=key.teacher_digest,
            dataset_digest=key.dataset_digest,
            dataset_name=key.dataset_name,
            num_samples=key.num_samples,
            num_classes=key.num_classes,
            input_shape=key.input_shape,
        )

    def divide(self, num_streams: int) -> list[LogitSource]:
        """The cache can be read by all."""
        return [self] * num_streams

    def needs_all_before(self, index: int) -> bool:
        """No."""
        return False

    def check(self, start: int, stop: int) -> None:
        """Raises CacheError if one of these batches has a sample without a row."""
        if start >= stop:
            return
        num_samples, size = self._cache.key.num_samples, self._config.batch_size
        # An epoch and two batches visit every sample, wherever they begin.
        wanted = range(start, min(stop, start + num_samples // size + 2))
        ids = np.unique(np.concatenate([_ids(self._config, self._cache, index) for index in wanted]))
        missing = self._cache.num_missing(ids)
        if missing:
            raise CacheError(
                f"the logit cache {self._cache.folder} lacks {missing} of the {len(ids)} samples of this run: "
                "fill it with `edge-student fetch`, or use --logits hybrid"
            )

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        """From the cache, in no time."""
        between_chunks()
        slot.sample_ids[:] = _ids(self._config, self._cache, index)
        self._cache.read(slot.sample_ids, slot.logits, slot.inputs)
        return 0

    def release(self) -> None:
        """There is none."""

    @property
    def receivers(self) -> list[Receiver]:
        """Nobody."""
        return []

    def close(self) -> None:
        """Let others write to the cache."""
        self._cache.close()


def _ids(config: Configure, cache: LogitCache, index: int) -> Ids:
    return batch_ids(config.seed, cache.key.num_samples, config.batch_size, index)


def make_source(config: Configure, receiver: Receiver) -> LogitSource:
    """What `--logits` asks for. Raises CacheError as `open_filled`."""
    if config.logits == "offline":
        return Offline(config)
    return Hybrid(receiver, config) if config.logits == "hybrid" else Online(receiver)
