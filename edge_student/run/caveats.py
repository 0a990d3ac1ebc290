"""Collects the caveats of a run's results: fallbacks, failures, and reasons why its times are not comparable.

Checkpoints store the caveats, so a resumed run keeps those of its earlier parts.
"""

from dataclasses import dataclass
from typing import Any

from scheduler.model.checked_json import check_keys, listing, shown, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Caveats:
    """Caveats of a run. `is_ranked` is True if the policy's allocations were applied on all cores, so that times are comparable.

    `num_reconnects`, `num_refused_chunks` and `num_duplicate_chunks` are sums over all receivers. The two counts of chunks are None
    if no worker has reported.
    """

    notes: tuple[str, ...] = ()
    is_ranked: bool = True
    num_reconnects: int = 0
    num_refused_chunks: int | None = 0
    num_duplicate_chunks: int | None = 0

    def after(self, before: "Caveats") -> "Caveats":
        """Return these caveats combined with those of the earlier parts of the run."""
        return Caveats(
            notes=(*before.notes, *(note for note in self.notes if note not in before.notes)),
            is_ranked=self.is_ranked and before.is_ranked,
            num_reconnects=self.num_reconnects + before.num_reconnects,
            num_refused_chunks=_sum(self.num_refused_chunks, before.num_refused_chunks),
            num_duplicate_chunks=_sum(self.num_duplicate_chunks, before.num_duplicate_chunks),
        )

    @classmethod
    def from_json(cls, data: Any, where: str) -> "Caveats":
        """Return caveats from their fields as a JSON object. Raises ValueError for other data; `where` names its source."""
        # Checkpoints of earlier versions do not count duplicates.
        optional = ("num_duplicate_chunks",)
        check_keys(data, required=("notes", "is_ranked", "num_reconnects", "num_refused_chunks"), optional=optional, where=where)
        notes = listing(data["notes"], where)
        if not all(isinstance(note, str) for note in notes) or not isinstance(data["is_ranked"], bool):
            raise ValueError(f"{where}: invalid caveats: {shown(data)}")
        return cls(
            notes=tuple(notes),
            is_ranked=data["is_ranked"],
            num_reconnects=whole(data, "num_reconnects", where, least=0, most=None),
            num_refused_chunks=_count(data, "num_refused_chunks", where),
            num_duplicate_chunks=_count(data, "num_duplicate_chunks", where),
        )


def _count(data: Any, key: str, where: str) -> int | None:
    return None if data.get(key) is None else whole(data, key, where, least=0, most=None)


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
