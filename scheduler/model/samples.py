"""Samples: measured seconds of some work for some number of comm cores. Read from JSON.

A device profile contains the samples that its rates come from. It can be read in place of a file of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scheduler.model.checked_json import check_keys, is_whole, number, read_json, shown
from scheduler.model.scenario import MAX_CORES


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`work` of one side took `seconds`, while comm had `comm_cores` cores and comp had the others."""

    work: float
    comm_cores: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The samples of both sides, measured on a device with `cores` cores."""

    cores: int
    comp: tuple[Sample, ...]
    comm: tuple[Sample, ...]

    @classmethod
    def from_text(cls, text: str) -> Samples:
        """Read a JSON document. Raises ValueError as `from_json`, and for invalid JSON or a duplicate key."""
        return cls.from_json(read_json(text, "samples"))

    @classmethod
    def from_json(cls, data: Any) -> Samples:
        """Read {"cores", "comp": [{"work", "comm_cores", "seconds"}, ...], "comm": [...]}; `comm_cores` counts COMM cores in both.

        Also reads a profile of `calibrate`, which has this object as its "samples". Raises ValueError, naming the value and the
        rule, unless works and seconds are positive and every c has a rate: 0..cores-1 for comp and 1..cores for comm.
        """
        if isinstance(data, Mapping) and "modes" in data and "samples" in data:
            data = data["samples"]
        check_keys(data, required=("cores", "comp", "comm"), where="samples")
        cores = data["cores"]
        if not is_whole(cores) or not 2 <= cores <= MAX_CORES:
            raise ValueError(f"samples: 'cores' is {shown(cores)}; it must be a whole number in 2..{MAX_CORES}")
        comp = _samples(data["comp"], "comp", 0, cores - 1)
        return cls(cores=cores, comp=comp, comm=_samples(data["comm"], "comm", 1, cores))


def _samples(data: Any, side: str, lowest: int, highest: int) -> tuple[Sample, ...]:
    if not isinstance(data, list) or not data:
        raise ValueError(f"samples: '{side}' is {shown(data)}; it must be a list of at least one sample")
    return tuple(_sample(sample, f"samples {side}[{n}]", lowest, highest) for n, sample in enumerate(data))


def _sample(data: Any, where: str, lowest: int, highest: int) -> Sample:
    check_keys(data, required=("work", "comm_cores", "seconds"), where=where)
    work, seconds = (number(data, key, where) for key in ("work", "seconds"))
    for key, value in (("work", work), ("seconds", seconds)):
        if value <= 0:
            raise ValueError(f"{where}: '{key}' is {value:g}; it must be positive")
    c = data["comm_cores"]
    if not is_whole(c) or not lowest <= c <= highest:
        raise ValueError(
            f"{where}: 'comm_cores' is {shown(c)}; it must be a whole number in {lowest}..{highest}, where this side has cores"
        )
    return Sample(work=work, comm_cores=c, seconds=seconds)
