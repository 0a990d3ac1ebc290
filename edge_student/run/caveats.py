"""What a reader of a run's figures must know: everything that was given up, went wrong, or makes them incomparable.

It outlives the process: a run that goes on has what was noted before.
"""

from dataclasses import dataclass
from typing import Any

from scheduler.model.checked_json import check_keys, listing, shown, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Caveats:
    """`is_ranked`: whether the run had the cores that it was to have, as its policy divided them: then its times may be compared.

    `num_reconnects` and `num_refused_chunks` are of all receivers; None where nobody has told yet.
    """

    notes: tuple[str, ...] = ()
    is_ranked: bool = True
    num_reconnects: int = 0
    num_refused_chunks: int | None = 0

    def after(self, before: "Caveats") -> "Caveats":
        """These, and those of what came before."""
        is_known = self.num_refused_chunks is not None and before.num_refused_chunks is not None
        return Caveats(
            notes=(*before.notes, *(note for note in self.notes if note not in before.notes)),
            is_ranked=self.is_ranked and before.is_ranked,
            num_reconnects=self.num_reconnects + before.num_reconnects,
            num_refused_chunks=(self.num_refused_chunks or 0) + (before.num_refused_chunks or 0) if is_known else None,
        )

    @classmethod
    def from_json(cls, data: Any, where: str) -> "Caveats":
        """Of the fields as a JSON object. ValueError for what is none."""
        check_keys(data, required=("notes", "is_ranked", "num_reconnects", "num_refused_chunks"), where=where)
        notes = listing(data["notes"], where)
        if not all(isinstance(note, str) for note in notes) or not isinstance(data["is_ranked"], bool):
            raise ValueError(f"{where}: these are no caveats: {shown(data)}")
        refused = data["num_refused_chunks"]
        return cls(
            notes=tuple(notes),
            is_ranked=data["is_ranked"],
            num_reconnects=whole(data, "num_reconnects", where, least=0, most=None),
            num_refused_chunks=None if refused is None else whole(data, "num_refused_chunks", where, least=0, most=None),
        )
