"""Loads the libraries of a run and trains one small step, in a process of its own so that a crash does not end `doctor`.

    python -m edge_student.training.torch_check

prints one line of JSON: torch's version, the number of threads, the loaded OpenMP runtimes, and the peak memory.
"""

import importlib
import json
import resource
from pathlib import Path
from typing import Any

from edge_student.host.fingerprint import openmp_runtimes

# Libraries that a run loads besides torch and that bring their own OpenMP runtime.
_OTHER_LIBRARIES = ("torchvision", "sklearn.datasets", "scipy.linalg")


def try_torch() -> dict[str, Any]:
    """Import the libraries, train one step, and return plain JSON values. Errors are raised, or end the process."""
    import torch

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2048, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = torch.nn.functional.cross_entropy(model(torch.randn(16, 3, 16, 16)), torch.zeros(16, dtype=torch.long))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for name in _OTHER_LIBRARIES:
        importlib.import_module(name)
    return {
        "version": torch.__version__,
        "num_threads": torch.get_num_threads(),
        "openmp": openmp_runtimes(),
        "openmp_files": _openmp_files(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def _openmp_files() -> list[dict[str, Any]]:
    """Return the OpenMP runtimes that threadpoolctl finds: kind, file and number of threads."""
    import threadpoolctl  # type: ignore[import-untyped]  # scikit-learn brings it

    pools = threadpoolctl.threadpool_info()
    return [
        {"kind": pool["prefix"], "file": Path(pool["filepath"]).name, "num_threads": pool["num_threads"]}
        for pool in pools
        if pool["user_api"] == "openmp"
    ]


if __name__ == "__main__":
    print(json.dumps(try_torch()))
