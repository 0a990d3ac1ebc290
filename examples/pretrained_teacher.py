"""A pre-trained teacher with its own normalization and more classes than the edge needs. In this folder:

cloud-teacher serve --dataset digits:public --model pretrained_teacher:network --classes 36 \
    --keep-classes 0,1,2,3,4,5,6,7,8,9 --listen 127.0.0.1:50051
python pretrained_teacher.py 127.0.0.1:50051

With timm the same is --model timm:resnet18@pretrained, whose card comes from timm, and --keep-classes with names of ImageNet.
"""

import sys
from pathlib import Path

import torch

from edge_student import Distiller

WEIGHTS = Path("runs/pretrained.pt")


def network(num_classes: int, input_shape: tuple[int, ...]) -> torch.nn.Module:
    """Return a network of 36 classes; its weights come from a file, if there is one, as a package would bring them."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 64), torch.nn.ReLU(), torch.nn.Linear(64, num_classes))
    if WEIGHTS.exists():
        model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model


# What the network was trained with. Without a card, `serve` asks for --normalize instead of guessing.
network.card = {"normalize": "imagenet", "channels": 3, "num_classes": 36}  # type: ignore[attr-defined]

if __name__ == "__main__":
    result = Distiller("cnn", private="digits:private", teacher=sys.argv[1], alpha=0.3, out="runs/pretrained").fit(cycles=100)
    print(f"accuracy {result.accuracy:.3f}")
