"""The training loop against a step done by hand, and the log against what happened."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import PRIVATE, PUBLIC, RECIPE, TEST, Boundaries, Logits, student

from edge_student.events.buffer import EventBuffer
from edge_student.events.log_file import Totals
from edge_student.events.perfetto import to_trace
from edge_student.training.loss import combined_loss
from edge_student.training.trainer import Trainer
from edgekd.data.datasets import load_dataset
from edgekd.data.tensors import to_input
from edgekd.files import write_json, write_text
from edgekd.wire.order import batch_ids
from scheduler.model.state import Task


def test_three_cycles_are_three_steps_of_sgd_on_equation_1() -> None:
    torch.set_num_threads(1)
    trainer = Trainer(student=student(), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    boundaries = Boundaries()
    trainer.train(3, boundaries, Logits(), lambda done: None)
    assert boundaries.tasks == [Task.FORWARD, Task.BACKWARD] * 3

    by_hand = student()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    for cycle in range(3):
        private_ids = batch_ids(5, len(PRIVATE.images), 6, cycle)
        public_ids = batch_ids(4, len(PUBLIC.images), 10, cycle)
        logits = by_hand(to_input(np.concatenate([PRIVATE.images[private_ids], PUBLIC.images[public_ids]])))
        labels, teacher = torch.from_numpy(PRIVATE.labels[private_ids]), torch.from_numpy(Logits().logits(cycle))
        loss = combined_loss(logits[:6], labels, logits[6:], teacher, alpha=0.3, temperature=2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for ours, theirs in zip(trainer.student.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert trainer.last_loss == loss.item()


def test_warming_up_changes_neither_weights_nor_statistics() -> None:
    trainer = Trainer(student=student(), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    before = {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}
    trainer.warm_up(10)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.student.state_dict().items())


def test_accuracy_is_the_fraction_that_is_right() -> None:
    trainer = Trainer(student=student(), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    with torch.no_grad():
        predicted = trainer.student.eval()(to_input(TEST.images)).argmax(1).numpy()
    assert trainer.accuracy(TEST) == pytest.approx((predicted == TEST.labels).mean())


def test_images_of_two_shapes_are_refused_by_name() -> None:
    other = load_dataset("synthetic:classes=10,size=16,samples=20:public")
    with pytest.raises(ValueError, match="must be of one shape"):
        Trainer(student=student(), private=PRIVATE, public=other, recipe=RECIPE)


DECISION = {
    "event": "decision",
    "policy": "static:1",
    "reason": "policy",
    "state": [0, 0, 0],
    "allocation": {"comm": 1, "comp": 1, "pinned": True},
    "requested": {"comm": [0], "comp": [1]},
}


def totals_of(log: EventBuffer) -> Totals:
    totals = Totals()
    for record in log.records:
        totals.add(record)
    return totals


def buffer() -> EventBuffer:
    log = EventBuffer()
    log.record({"event": "task", "task": "forward", "index": 0, "started": 101.0, "ended": 103.0})
    log.record({"event": "wait", "why": "logits", "index": 0, "started": 103.0, "ended": 104.5})
    comm = {"event": "task", "task": "comm", "index": 0, "cpu_s": 0.5, "num_bytes": 640}
    log.record({**comm, "started": 100.0, "ended": 104.5})
    log.record({**DECISION, "sequence": 0, "time": 100.0})
    log.record({**DECISION, "sequence": 1, "time": 104.5, "requested": {"comm": [], "comp": [0, 1]}})
    log.record({"event": "task", "task": "backward", "index": 0, "started": 104.5, "ended": 106.0})
    return log


def test_the_log_is_in_order_and_counts_from_the_start() -> None:
    records = buffer().relative_to(100.0)
    assert [record.get("started", record.get("time")) for record in records] == [0.0, 0.0, 1.0, 3.0, 4.5, 4.5]
    totals = totals_of(buffer())
    assert (totals.stall_s, totals.hold_s, totals.comm_s) == (1.5, 0.0, 4.5)
    assert (totals.forward_s, totals.backward_s, totals.num_decisions) == (2.0, 1.5, 2)
    assert (totals.comm_cpu_s, totals.comm_num_bytes, totals.num_cached_batches) == (0.5, 640, 0)


def test_the_trace_shows_who_had_each_core() -> None:
    trace = to_trace(buffer().relative_to(100.0), cores=(0, 1))
    json.dumps(trace, allow_nan=False)
    slices = [(e["tid"], e["name"], e["ts"], e["dur"]) for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == 2]
    assert (0, "comm", 0.0, 4.5e6) in slices
    assert (1, "comp", 0.0, 6e6) in slices
    assert (0, "comp", 4.5e6, 1.5e6) in slices
    tasks = {e["name"] for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == 1}
    assert tasks == {"forward 0", "comm 0", "wait for logits 0", "backward 0"}


def test_a_core_is_computes_from_when_it_was_bound_until_it_left() -> None:
    """Decided at 2 s that compute gives core 1 to comm; compute leaves it at 3 s, and waits from 5 s to 6 s."""
    log = EventBuffer()
    for sequence, time, comm, comp in (
        (0, 0.0, [0], [1, 2]),
        (1, 2.0, [0, 1], [2]),
        (2, 5.0, [0, 1, 2], []),
        (3, 6.0, [0], [1, 2]),
    ):
        log.record({**DECISION, "sequence": sequence, "time": time, "requested": {"comm": comm, "comp": comp}})
    for time, cores in ((1.0, [1, 2]), (3.0, [2]), (5.0, []), (6.5, [1, 2])):
        log.record({"event": "comp-bound", "time": time, "decision": 0, "decided": 0.0, "cores": cores, "where": "layer"})
    log.record({"event": "task", "task": "backward", "index": 0, "started": 0.5, "ended": 8.0, "held_s": 1.0})
    assert owners_of(log, cores=(0, 1, 2)) == {
        0: [("comm", 0.0, 8.0)],
        1: [("comp", 0.0, 3.0), ("comm", 3.0, 6.0), ("comp", 6.5, 8.0)],
        2: [("comp", 0.0, 5.0), ("comm", 5.0, 6.0), ("comp", 6.5, 8.0)],
    }
    assert totals_of(log).backward_s == 6.5, "what it was held is a wait of its own"
    assert [record["decided"] for record in log.relative_to(-1.0) if record["event"] == "comp-bound"] == [1.0] * 4


def test_a_core_that_both_may_use_is_drawn_as_both_once_compute_has_it() -> None:
    log = EventBuffer()
    for sequence, time, comm, comp in ((0, 0.0, [0], [1]), (1, 2.0, [0, 1], [0, 1])):
        log.record({**DECISION, "sequence": sequence, "time": time, "requested": {"comm": comm, "comp": comp}})
    for time, cores in ((0.0, [1]), (3.0, [0, 1])):
        log.record({"event": "comp-bound", "time": time, "decision": 0, "decided": 0.0, "cores": cores, "where": "layer"})
    log.record({"event": "task", "task": "forward", "index": 0, "started": 0.0, "ended": 4.0})
    assert owners_of(log, cores=(0, 1)) == {
        0: [("comm", 0.0, 3.0), ("both", 3.0, 4.0)],
        1: [("comp", 0.0, 2.0), ("both", 2.0, 4.0)],
    }


def owners_of(log: EventBuffer, cores: tuple[int, ...]) -> dict[int, list[tuple[str, float, float]]]:
    """Who has each core in the trace, from second to second; equal neighbours are one."""
    owners: dict[int, list[tuple[str, float, float]]] = {core: [] for core in cores}
    for event in to_trace(log.relative_to(0.0), cores)["traceEvents"]:
        if event["ph"] == "X" and event["pid"] == 2:
            name, start, end = event["name"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6
            track = owners[event["tid"]]
            assert not track or track[-1][2] <= start, "one track holds one thing at a time"
            if track and track[-1][0] == name and track[-1][2] == start:
                start = track.pop()[1]
            if end > start:
                track.append((name, start, end))
    return owners


def test_a_file_is_replaced_whole_and_leaves_no_litter(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
