"""Where the comm worker has its logits from: the wire, the wire and a cache, or a cache alone.

All three fill slot after slot with the same batches in the same order, bit for bit alike. numpy and grpc only.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_student.logit_cache import CacheError, CacheKey, LogitCache, open_cache, open_filled
from edge_student.messages import Configure, Described
from edge_student.receiver import Receiver
from edgekd.codec import Encoding, Format
from edgekd.layouts import Decoded
from edgekd.order import batch_ids

Ids = npt.NDArray[np.int64]


class LogitSource(Protocol):
    """Batches of logits in order."""

    def describe(self) -> Described:
        """Whose logits these are; comes first."""

    def check(self, start: int, stop: int) -> None:
        """Raise what would make one of batches start .. stop-1 fail, as far as that can be known before."""

    def receive(self, index: int, stop: int, *, logits: Decoded, sample_ids: Ids, between_chunks: Callable[[], None]) -> int:
        """Fill both with batch `index`, and return the payload bytes that crossed the wire for it: 0 if all was in a cache.

        Otherwise as `Receiver.receive`.
        """

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

    def receive(self, index: int, stop: int, *, logits: Decoded, sample_ids: Ids, between_chunks: Callable[[], None]) -> int:
        """As `Receiver.receive`."""
        return self._receiver.receive(index, stop, logits=logits, sample_ids=sample_ids, between_chunks=between_chunks)

    def close(self) -> None:
        """Drop the connection."""
        self._receiver.close()


class Hybrid:
    """A batch whose rows are all in the cache is read there; every other comes over the wire, and its rows are kept.

    Windows end where the cache goes on, so that nothing crosses the wire twice, but for a batch of which only some rows are there:
    the protocol knows whole batches only.
    """

    def __init__(self, receiver: Receiver, config: Configure) -> None:
        self._receiver = receiver
        self._config = config
        self._cache: LogitCache | None = None
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
        )
        self._cache = open_cache(Path(config.cache), key)
        self._receiver.on_rows = self.cache.put
        return described

    @property
    def cache(self) -> LogitCache:
        """The cache, once the teacher has been described."""
        assert self._cache is not None, "describe() comes first"
        return self._cache

    def check(self, start: int, stop: int) -> None:
        """The wire has what the cache has not."""

    def receive(self, index: int, stop: int, *, logits: Decoded, sample_ids: Ids, between_chunks: Callable[[], None]) -> int:
        """From the cache if it can, else over the wire."""
        if index >= self._wire_stop:
            ids = _ids(self._config, self.cache, index)
            if self.cache.has_all(ids):
                between_chunks()
                sample_ids[:] = ids
                self.cache.read(ids, logits)
                return 0
            self._wire_stop = self._first_cached_after(index, stop)
        return self._receiver.receive(index, self._wire_stop, logits=logits, sample_ids=sample_ids, between_chunks=between_chunks)

    def close(self) -> None:
        """Drop the connection, and write the cache to disk."""
        self._receiver.close()
        if self._cache is not None:
            self._cache.close()

    def _first_cached_after(self, index: int, stop: int) -> int:
        """The first batch, at most a window away, whose rows will all be there once those before it have come."""
        coming = np.zeros(self.cache.key.num_samples, bool)
        for later in range(index, min(index + self._config.window, stop)):
            ids = _ids(self._config, self.cache, later)
            if later > index and self.cache.has_all(ids[~coming[ids]]):
                return later
            coming[ids] = True
        return min(index + self._config.window, stop)


class Offline:
    """Every batch from a cache that is full already; there is no teacher."""

    def __init__(self, config: Configure) -> None:
        form = Format(Encoding(config.encoding), config.top_k)
        self._config = config
        self._cache = open_filled(Path(config.cache), dataset_digest=config.dataset_digest, form=form)

    def describe(self) -> Described:
        """What the teacher said when the cache was filled."""
        key = self._cache.key
        return Described(
            teacher_digest=key.teacher_digest,
            dataset_digest=key.dataset_digest,
            dataset_name=key.dataset_name,
            num_samples=key.num_samples,
            num_classes=key.num_classes,
        )

    def check(self, start: int, stop: int) -> None:
        """Raises CacheError if one of these batches has a sample without a row."""
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

    def receive(self, index: int, stop: int, *, logits: Decoded, sample_ids: Ids, between_chunks: Callable[[], None]) -> int:
        """From the cache, in no time."""
        between_chunks()
        sample_ids[:] = _ids(self._config, self._cache, index)
        self._cache.read(sample_ids, logits)
        return 0

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
