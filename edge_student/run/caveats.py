"""Collects the caveats of a run's results: fallbacks, failures, and reasons why its times are not comparable.

Checkpoints store the caveats, so a resumed run keeps those of its earlier parts.
"""

from dataclasses import dataclass
from typing import Any

from scheduler.model.checked_json import check_keys, listing, shown, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Caveats:
    """Caveats of a run. `is_ranked` is True if the policy's allocations were applied on all cores, so that times are comparable.

    `num_reconnects` and `num_refused_chunks` are sums over all receivers; None until a worker has reported.
    """

    notes: tuple[str, ...] = ()
    is_ranked: bool = True
    num_reconnects: int = 0
    num_refused_chunks: int | None = 0

    def after(self, before: "Caveats") -> "Caveats":
        """Return these caveats combined with those of the earlier parts of the run."""
        is_known = self.num_refused_chunks is not None and before.num_refused_chunks is not None
        return Caveats(
            notes=(*before.notes, *(note for note in self.notes if note not in before.notes)),
            is_ranked=self.is_ranked and before.is_ranked,
            num_reconnects=self.num_reconnects + before.num_reconnects,
            num_refused_chunks=(self.num_refused_chunks or 0) + (before.num_refused_chunks or 0) if is_known else None,
        )

    @classmethod
    def from_json(cls, data: Any, where: str) -> "Caveats":
        """Return caveats from their fields as a JSON object. Raises ValueError for other data; `where` names its source."""
        check_keys(data, required=("notes", "is_ranked", "num_reconnects", "num_refused_chunks"), where=where)
        notes = listing(data["notes"], where)
        if not all(isinstance(note, str) for note in notes) or not isinstance(data["is_ranked"], bool):
            raise ValueError(f"{where}: invalid caveats: {shown(data)}")
        refused = data["num_refused_chunks"]
        return cls(
            notes=tuple(notes),
            is_ranked=data["is_ranked"],
            num_reconnects=whole(data, "num_reconnects", where, least=0, most=None),
            num_refused_chunks=None if refused is None else whole(data, "num_refused_chunks", where, least=0, most=None),
        )
