"""Layouts of logit rows in a payload: one class per encoding, with its bytes per row, its error bound and its checks.

All values are little-endian, row after row, without padding. numpy only; the kernels work on whole arrays and release the GIL. A
layout decodes directly into the given array, without copies except for its checks.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Decoded = npt.NDArray[np.float32 | np.float16]

FLOAT16_MAX = 65504.0
_INT8_MAX = 127
# 127 times this scale is still a finite float32.
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(_INT8_MAX), np.float32(0), dtype=np.float32)


class LayoutError(ValueError):
    """A payload that no encoder of this layout produces."""


class Layout(ABC):
    """One encoding of rows with `num_classes` classes."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes of one row."""

    @abstractmethod
    def encode(self, logits: Logits) -> bytes:
        """Encode logits, float32 [rows, classes], all finite, to a payload."""

    @property
    def dtype(self) -> type[np.float32] | type[np.float16]:
        """Smallest type that holds every decoded value; the type of the ring's slots."""
        return np.float32

    @abstractmethod
    def decode(self, payload: bytes | memoryview, out: Decoded) -> None:
        """Fill `out`, [rows, classes] of `dtype` or float32, from a payload with the same number of rows.

        Raises LayoutError for values that encode() never writes; `out` is then unchanged.
        """


class Float32(Layout):
    """IEEE 754 binary32: exact."""

    @property
    def row_bytes(self) -> int:
        """4 per class."""
        return 4 * self.num_classes

    def encode(self, logits: Logits) -> bytes:
        """Copy the values unchanged."""
        return logits.astype("<f4", order="C", copy=False).tobytes()

    def decode(self, payload: bytes | memoryview, out: Decoded) -> None:
        """Reject NaN and infinities."""
        values = np.frombuffer(payload, "<f4").reshape(out.shape)
        _check_finite(values)
        np.copyto(out, values)


class Float16(Layout):
    """IEEE 754 binary16. Values beyond +-65504 are clipped; the error of others is at most 2^-11 relative, or 2^-25 near zero."""

    @property
    def row_bytes(self) -> int:
        """2 per class."""
        return 2 * self.num_classes

    @property
    def dtype(self) -> type[np.float16]:
        """float16 as received: torch widens the values where they are used, in a sixth of the time that numpy takes."""
        return np.float16

    def encode(self, logits: Logits) -> bytes:
        """Clip, then cast: a cast that overflows warns and yields an infinity."""
        return np.clip(logits, -FLOAT16_MAX, FLOAT16_MAX).astype("<f2", order="C").tobytes()

    def decode(self, payload: bytes | memoryview, out: Decoded) -> None:
        """Reject NaN and infinities."""
        bits = np.frombuffer(payload, "<i2").reshape(out.shape)
        # NaN and infinities have an exponent of all ones. The bit test is 16 times as fast as isfinite on float16 on x86.
        # They are the largest values: as int16 those with a positive sign, as uint16 those with a negative sign.
        if bits.max(initial=0) >= 0x7C00 or bits.view(np.uint16).max(initial=0) >= 0xFC00:
            raise LayoutError("holds a NaN or an infinity")
        np.copyto(out, bits.view("<f2"))


class ScaledInt8(Layout):
    """A float32 scale, then one int8 in -127 .. 127 per class; a value is their product.

    The scale is 1/127 of the row's largest magnitude. The error of a value is at most (1/2 + 2^-15) scales, or 2^-142 near zero.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self._row = np.dtype([("scale", "<f4"), ("values", "i1", (num_classes,))])

    @property
    def row_bytes(self) -> int:
        """4, plus 1 per class."""
        return self._row.itemsize

    def encode(self, logits: Logits) -> bytes:
        """Quantise each row; a row of zeros has scale 0."""
        rows = np.empty(len(logits), self._row)
        scale = np.abs(logits).max(axis=1, initial=0) / np.float32(_INT8_MAX)
        scale = np.minimum(scale, _LARGEST_SCALE)
        rows["scale"] = scale
        steps = logits / np.where(scale > 0, scale, np.float32(1))[:, None]
        rows["values"] = np.clip(np.rint(steps), -_INT8_MAX, _INT8_MAX)
        return rows.tobytes()

    def decode(self, payload: bytes | memoryview, out: Decoded) -> None:
        """Reject -128, and a scale that is negative, NaN, or large enough to make a value infinite."""
        rows = np.frombuffer(payload, self._row)
        scale, values = rows["scale"], rows["values"]
        if not (scale >= 0).all() or not (scale <= _LARGEST_SCALE).all():
            raise LayoutError(f"holds a scale outside 0 .. {_LARGEST_SCALE:g}")
        if values.min(initial=0) < -_INT8_MAX:
            raise LayoutError(f"holds -128, must be in -{_INT8_MAX} .. {_INT8_MAX}")
        np.multiply(values, scale[:, None], out=out)


class TopK(Layout):
    """The logit of the rest as float32, the classes of the k largest logits, ascending, as uint32, and these logits as float32.

    The k logits are exact. Every other class is decoded as one common logit: the log of the mean of their exponentials. It keeps
    the total softmax mass of these classes at temperature 1. Among equal logits the choice of the k is unspecified.
    """

    def __init__(self, num_classes: int, k: int) -> None:
        super().__init__(num_classes)
        self._k = k
        self._row = np.dtype([("rest", "<f4"), ("classes", "<u4", (k,)), ("values", "<f4", (k,))])

    @property
    def row_bytes(self) -> int:
        """4, plus 8 for each of the k; independent of the number of classes."""
        return self._row.itemsize

    def encode(self, logits: Logits) -> bytes:
        """Select the k largest logits of each row; k must be below the number of classes."""
        rows = np.empty(len(logits), self._row)
        order = np.argpartition(logits, self.num_classes - self._k, axis=1)
        top, others = np.sort(order[:, -self._k :], axis=1), order[:, : -self._k]
        rows["classes"] = top
        rows["values"] = np.take_along_axis(logits, top, axis=1)
        rest = np.take_along_axis(logits, others, axis=1).astype(np.float64)
        largest = rest.max(axis=1, keepdims=True)
        mean = np.exp(rest - largest).mean(axis=1)
        # The mean of numbers up to 1 is at most 1, except for rounding.
        rows["rest"] = np.minimum(largest[:, 0] + np.log(mean), largest[:, 0])
        return rows.tobytes()

    def decode(self, payload: bytes | memoryview, out: Decoded) -> None:
        """Reject NaN and infinities, classes that do not exist or do not ascend, and a rest above one of the k."""
        rows = np.frombuffer(payload, self._row)
        rest, classes, values = rows["rest"], rows["classes"], rows["values"]
        _check_finite(rest)
        _check_finite(values)
        if classes[:, -1].max(initial=0) >= self.num_classes:
            raise LayoutError(f"holds class {classes[:, -1].max()}, must be below {self.num_classes}")
        if not (classes[:, 1:] > classes[:, :-1]).all():
            raise LayoutError("holds a row whose classes do not ascend")
        if not (rest <= values.min(axis=1, initial=np.inf)).all():
            raise LayoutError("has a rest above one of the largest logits")
        out[:] = rest[:, None]
        np.put_along_axis(out, classes.astype(np.intp), values, axis=1)


def _check_finite(values: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise LayoutError("holds a NaN or an infinity")
