"""Train a small network on private digits with a teacher's logits.

Start a teacher first:  cloud-teacher serve --dataset digits:public --model cnn:width=32 --listen 127.0.0.1:50051
Then:                   python examples/quickstart.py 127.0.0.1:50051
"""

import sys

import torch

from edge_student import Distiller, load_student

student = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(4),
    torch.nn.Flatten(),
    torch.nn.Linear(256, 10),
)
distiller = Distiller(
    student,
    private="digits:private",
    teacher=sys.argv[1],
    optimizer="adamw",
    lr=0.003,
    schedule="cosine",
    eval_every=50,
    out="runs/quickstart",
)
result = distiller.fit(cycles=150)
print(f"accuracy {result.accuracy:.3f} after {result.cycles} cycles, {result.wall_clock_s:.1f} s")

reloaded = load_student("runs/quickstart/student.safetensors", model=student)
print("one image of zeros:", reloaded(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).shape)
