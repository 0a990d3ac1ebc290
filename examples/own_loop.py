"""Keep your own training loop, and let the scheduler assign the cores: python examples/own_loop.py 127.0.0.1:50051."""

import sys

import torch
import torch.nn.functional as F

from edge_student.logit_stream import LogitStream
from edge_student.training.loss import distillation_loss
from edgekd.data.datasets import load_dataset

private = load_dataset("digits:private")
images, labels = torch.from_numpy(private.inputs) / 127.5 - 1, torch.from_numpy(private.labels)
student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

with LogitStream(teacher=sys.argv[1], public="digits:public", cycles=200, policy="dynamic") as stream:
    for batch in stream:
        rows = torch.randint(len(labels), (32,))
        with batch.forward() as public:
            logits = student(torch.cat([images[rows], public / 127.5 - 1]))
        with batch.backward() as teacher:
            loss = 0.1 * F.cross_entropy(logits[:32], labels[rows]) + 0.9 * distillation_loss(logits[32:], teacher, temperature=4.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

test = load_dataset("digits:test")
predicted = student(torch.from_numpy(test.inputs) / 127.5 - 1).argmax(dim=1)
print(f"accuracy {(predicted == torch.from_numpy(test.labels)).float().mean():.3f}")
