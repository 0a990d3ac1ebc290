"""Sources of logits for the comm worker: online (wire only), hybrid (wire and cache) and offline (cache only).

All three fill the slots with bit-identical batches in the same order.
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
    """Delivers batches of logits in order."""

    def describe(self) -> Described:
        """Return the digests and sizes of the logits. Must be the first call."""

    def check(self, start: int, stop: int) -> None:
        """Raise an error if one of batches start .. stop-1 is known to be unavailable."""

    def divide(self, num_streams: int) -> list["LogitSource"]:
        """Return `num_streams` sources that share the batches, this one first, or as many as possible.

        Source n of m delivers batches n, n + m, n + 2m, ... in one thread. Call it after `describe` and before `receive`.
        """

    def needs_all_before(self, index: int) -> bool:
        """Return whether batch `index` must wait until all sources have received all batches before it."""

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        """Fill the slot with batch `index`. Returns the bytes that crossed the wire: 0 for a batch from the cache.

        Parameters and errors are those of `Receiver.receive`.
        """

    def release(self) -> None:
        """End the teacher's stream until the next `receive`."""

    @property
    def receivers(self) -> list[Receiver]:
        """The receivers that this source uses."""

    def close(self) -> None:
        """Close connections and files."""


class Online:
    """Receives every batch over the wire."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def describe(self) -> Described:
        """Return the teacher's description."""
        return self._receiver.describe()

    def check(self, start: int, stop: int) -> None:
        """Do nothing: the wire can deliver every batch."""

    def divide(self, num_streams: int) -> list[LogitSource]:
        """Divide as `Receiver.divide`."""
        return [self, *(Online(receiver) for receiver in self._receiver.divide(num_streams)[1:])]

    def needs_all_before(self, index: int) -> bool:
        """Return False: batches are independent."""
        return False

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        """Receive as `Receiver.receive`."""
        return self._receiver.receive(index, stop, slot, between_chunks)

    def release(self) -> None:
        """Release as `Receiver.release`."""
        self._receiver.release()

    @property
    def receivers(self) -> list[Receiver]:
        """The receiver of this source."""
        return [self._receiver]

    def close(self) -> None:
        """Close the connection."""
        self._receiver.close()


class Hybrid(Online):
    """Reads a batch from the cache if all its rows are there; receives every other batch over the wire and caches its rows.

    A window ends at the next fully cached batch, so no cached batch crosses the wire again. A batch with some cached rows is
    received completely, because the protocol transfers whole batches only. For the same reason several streams start the second
    epoch only after the first epoch is complete.
    """

    def __init__(self, receiver: Receiver, config: Configure, cache: LogitCache | None = None) -> None:
        """`cache` is the open cache of the source that was divided and closes it; None to open one in `describe`."""
        super().__init__(receiver)
        self._config = config
        self._cache = cache
        self._has_own_cache = cache is None
        self._is_in_second_epoch = False
        self._wire_stop = 0

    def describe(self) -> Described:
        """Return the teacher's description and open the matching cache. Raises as `Receiver.describe` and `open_cache`."""
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
            input_dtype=described.input_dtype if config.inputs else "uint8",
            class_names=described.class_names,
            classes_digest=described.classes_digest,
        )
        self._cache = open_cache(Path(config.cache), key)
        return described

    def divide(self, num_streams: int) -> list[LogitSource]:
        """Divide as `Receiver.divide`; all sources share one cache."""
        return [self, *(Hybrid(receiver, self._config, self.cache) for receiver in self._receiver.divide(num_streams)[1:])]

    @property
    def cache(self) -> LogitCache:
        """The open cache; `describe` must come first."""
        assert self._cache is not None, "describe() comes first"
        return self._cache

    def needs_all_before(self, index: int) -> bool:
        """Return True once, at the start of the second epoch, if several streams share the batches."""
        if self._receiver.stride == 1 or self._is_in_second_epoch or index < self._second_epoch:
            return False
        self._is_in_second_epoch = True
        return True

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        """Read the batch from the cache if it is complete there, else receive and cache it."""
        if index >= self._wire_stop:
            ids = _ids(self._config, self.cache, index)
            if self.cache.has_all(ids):
                between_chunks()
                slot.sample_ids[:] = ids
                self.cache.read(ids, slot.logits, slot.inputs)
                return 0
            self._wire_stop = self._first_cached_after(index, stop)
        return self._receiver.receive(index, self._wire_stop, slot, between_chunks, on_rows=self.cache.put)

    def close(self) -> None:
        """Close the connection, and flush the cache to disk."""
        super().close()
        if self._cache is not None and self._has_own_cache:
            self._cache.close()

    @property
    def _second_epoch(self) -> int:
        """Index of the first batch with a sample of the second epoch."""
        return self.cache.key.num_samples // self._config.batch_size

    def _first_cached_after(self, index: int, stop: int) -> int:
        """Return the first batch, at most a window away, that will be fully cached after the batches before it are received."""
        stride = self._receiver.stride
        last = min(index + self._config.window * stride, stop)
        if stride > 1 and index < self._second_epoch:
            last = min(last, self._second_epoch)
        pending = np.zeros(self.cache.key.num_samples, bool)
        for later in range(index, last, stride):
            ids = _ids(self._config, self.cache, later)
            if later > index and self.cache.has_all(ids[~pending[ids]]):
                return later
            pending[ids] = True
        return last


class Offline:
    """Reads every batch from a complete cache, without a teacher."""

    def __init__(self, config: Configure) -> None:
        form = Format(Encoding(config.encoding), config.top_k)
        self._config = config
        digest = config.dataset_digest
        self._cache = open_filled(Path(config.cache), dataset_digest=digest, form=form, with_inputs=bool(config.inputs))

    def describe(self) -> Described:
        """Return the description of the teacher that filled the cache."""
        key = self._cache.key
        return Described(
            teacher_digest=key.teacher_digest,
            dataset_digest=key.dataset_digest,
            dataset_name=key.dataset_name,
            num_samples=key.num_samples,
            num_classes=key.num_classes,
            input_shape=key.input_shape,
            input_dtype=key.input_dtype,
            class_names=key.class_names,
            classes_digest=key.classes_digest,
        )

    def divide(self, num_streams: int) -> list[LogitSource]:
        """Return this source `num_streams` times: all threads can read the cache."""
        return [self] * num_streams

    def needs_all_before(self, index: int) -> bool:
        """Return False: batches are independent."""
        return False

    def check(self, start: int, stop: int) -> None:
        """Raise CacheError if one of these batches has a sample without a cached row."""
        if start >= stop:
            return
        num_samples, size = self._cache.key.num_samples, self._config.batch_size
        # One epoch plus two batches contains every sample, from any start.
        indices = range(start, min(stop, start + num_samples // size + 2))
        ids = np.unique(np.concatenate([_ids(self._config, self._cache, index) for index in indices]))
        missing = self._cache.num_missing(ids)
        if missing:
            raise CacheError(
                f"the logit cache {self._cache.folder} lacks {missing} of the {len(ids)} samples of this run: "
                "fill it with `edge-student fetch`, or use --logits hybrid"
            )

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        """Read the batch from the cache. Returns 0."""
        between_chunks()
        slot.sample_ids[:] = _ids(self._config, self._cache, index)
        self._cache.read(slot.sample_ids, slot.logits, slot.inputs)
        return 0

    def release(self) -> None:
        """Do nothing: there is no stream."""

    @property
    def receivers(self) -> list[Receiver]:
        """Empty: an offline source has no receiver."""
        return []

    def close(self) -> None:
        """Close the cache, so that other processes can write to it."""
        self._cache.close()


def _ids(config: Configure, cache: LogitCache, index: int) -> Ids:
    return batch_ids(config.seed, cache.key.num_samples, config.batch_size, index)


def make_source(config: Configure, receiver: Receiver) -> LogitSource:
    """Return the source that `config.logits` selects. Raises CacheError as `open_filled`."""
    if config.logits == "offline":
        return Offline(config)
    return Hybrid(receiver, config) if config.logits == "hybrid" else Online(receiver)
