"""A program that loads what a run loads and trains one small step, for `doctor` to watch: what kills it does not kill `doctor`.

    python -m edge_student.training.torch_check

prints one line of JSON: the version, whether CUDA works, the OpenMP runtimes that were loaded, and the memory it took.
"""

import importlib
import json
import resource
from pathlib import Path
from typing import Any

from edge_student.host.fingerprint import openmp_runtimes

# What a run loads beside torch, and what brings an OpenMP runtime of its own: scikit-learn's digits, scipy's solvers.
_ALSO = ("torchvision", "sklearn.datasets", "scipy.linalg")


def try_torch() -> dict[str, Any]:
    """Load and train; plain JSON values. Whatever goes wrong is raised, or ends the process."""
    import torch

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2048, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = torch.nn.functional.cross_entropy(model(torch.randn(16, 3, 16, 16)), torch.zeros(16, dtype=torch.long))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for name in _ALSO:
        importlib.import_module(name)
    return {
        "version": torch.__version__,
        "num_threads": torch.get_num_threads(),
        "openmp": openmp_runtimes(),
        "openmp_files": _openmp_files(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def _openmp_files() -> list[dict[str, Any]]:
    """The OpenMP runtimes as threadpoolctl sees them: which kind, and which file."""
    import threadpoolctl  # type: ignore[import-untyped]  # scikit-learn brings it

    pools = threadpoolctl.threadpool_info()
    return [
        {"kind": pool["prefix"], "file": Path(pool["filepath"]).name, "num_threads": pool["num_threads"]}
        for pool in pools
        if pool["user_api"] == "openmp"
    ]


if __name__ == "__main__":
    print(json.dumps(try_torch()))
