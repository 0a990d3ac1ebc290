"""Watch a training in TensorBoard, or with any function: python examples/tensorboard_logging.py 127.0.0.1:50051.

Requires pip install edgekd[tensorboard]. Then: tensorboard --logdir runs/board
"""

import sys
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from edge_student import Distiller

writer = SummaryWriter("runs/board")


def log(metrics: dict[str, Any]) -> None:
    """Write every number of a record; wandb.log(metrics) or mlflow.log_metrics would do the same elsewhere."""
    for name, value in metrics.items():
        if isinstance(value, int | float) and name != "cycle":
            writer.add_scalar(name, value, metrics["cycle"])


distiller = Distiller("cnn", private="digits:private", teacher=sys.argv[1], callbacks=[log], eval_every=50, out="runs/board/run")
result = distiller.fit(epochs=8)
writer.close()
print(f"accuracy {result.accuracy:.3f}, {result.cycles} cycles")
