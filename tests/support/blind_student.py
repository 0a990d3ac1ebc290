"""The program edge-student, with a failure when a run has ended: the counters of the machine cannot be read."""

from edge_student.__main__ import main
from edge_student.host.sampler import DisturbanceSampler


def after(self: DisturbanceSampler) -> None:
    raise RuntimeError("the machine is not to be looked at")


DisturbanceSampler.after = after  # type: ignore[assignment,method-assign]

if __name__ == "__main__":
    main()
