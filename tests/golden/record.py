"""Write the files in data/ that test_golden.py compares with: outputs of the three programs and of the wire.

They were recorded from commit 7cdb76f, before modules were moved; data/machine.json and data/versions.json say on what. The weights
of the teacher were trained first, by

    cloud-teacher train --dataset digits:public --model cnn:width=4 --epochs 2 --seed 3 --out teacher.safetensors

Do not record again to make a test pass. Record again only where an output was changed on purpose, and say so in the commit.

    PYTHONPATH=tests python tests/golden/record.py [--repeats N]

Every policy is run N times. Weights and values must be the same each time; shapes are joined over the runs.
"""

import argparse
import importlib.metadata
import itertools
import json
import platform
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import golden_runs as runs
from golden_runs import DATA, LEARNERS, OLD_CYCLES, OPTIONS, POLICIES, SMALL_RING

from edgekd.v1 import teacher_pb2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4, help="Runs of each policy.")
    repeats = parser.parse_args().repeats
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record_teacher(folder)
        write_json("machine.json", runs.machine())
        packages = ("torch", "numpy", "scipy", "grpcio", "protobuf", "safetensors", "scikit-learn")
        versions = {package: importlib.metadata.version(package) for package in packages}
        write_json("versions.json", {"commit": "7cdb76f", "python": platform.python_version(), **versions})
        record_scheduler(folder)
        record_programs(folder)
        port = runs.free_port()
        with runs.golden_teacher(folder / "store", "--metrics-listen", f"127.0.0.1:{port}") as address:
            record_wire(address, port)
            record_runs(address, folder, repeats)
            record_options(address, folder, repeats)
            record_old_files(address, folder)
        copy_folder(next((folder / "store").iterdir()), DATA / "old-store")
    (DATA / "teacher.binpb").write_bytes(teacher_pb2.DESCRIPTOR.serialized_pb)


def record_teacher(folder: Path) -> None:
    """Record the teacher once. Later recordings keep its weights."""
    if not (DATA / "teacher.safetensors").exists():
        words = ("--dataset", "digits:public", "--model", "cnn:width=4", "--epochs", "2", "--seed", "3")
        finished = runs.start("cloud_teacher", "train", *words, "--out", "teacher.safetensors", cwd=folder)
        assert finished.returncode == 0, finished.stderr
        for suffix in ("safetensors", "json"):
            shutil.copyfile(folder / f"teacher.{suffix}", DATA / f"teacher.{suffix}")


def record_scheduler(folder: Path) -> None:
    simulated = {name: runs.simulated(name, folder) for name in runs.SCENARIOS}
    write_json("scheduler.json", {"simulate": simulated, "fit": runs.fitted(folder)})


def record_programs(folder: Path) -> None:
    flags = {f"{program} {command}": runs.flags_of(program, command, folder) for program, command in runs.COMMANDS}
    statuses = {name: runs.status_of(name, folder) for name in runs.STATUSES}
    write_json("programs.json", {"flags": flags, "statuses": statuses})


def record_wire(address: str, port: int) -> None:
    chunks = runs.chunks_of(address)
    facts = {name: [runs.chunk_facts(chunk) for chunk in answer] for name, answer in chunks.items()}
    wire = {
        "describe": runs.describe(address),
        "chunks": facts,
        "refusals": runs.refusals(address),
        "health": runs.health(address),
        "metrics": runs.metric_kinds(port),
    }
    write_json("wire.json", wire)
    (DATA / "logits.f32").write_bytes(b"".join(chunk.payload for chunk in chunks["float32"]))


def record_runs(address: str, folder: Path, repeats: int) -> None:
    """Record weights, events, results and traces of every policy."""
    weights, order, recorded = set(), set(), {}
    for policy in POLICIES:
        outs = [
            runs.train(folder, f"{policy.replace(':', '-')}-{number}", "--teacher", address, "--policy", policy, *SMALL_RING)
            for number in range(repeats)
        ]
        weights |= {(out / "student.safetensors").read_bytes() for out in outs}
        results = [runs.read_json(out / "result.json") for out in outs]
        traces = [runs.read_json(out / "trace.json") for out in outs]
        logs = [runs.events(out) for out in outs]
        order |= {
            json.dumps([runs.task_order(log), runs.trace_slices(trace)], sort_keys=True)
            for log, trace in zip(logs, traces, strict=True)
        }
        in_all = sorted(kind for kind in common(map(runs.by_kind, logs)) if not kind.startswith("wait"))  # waits depend on the time
        shapes = {kind: runs.shape_of(records) for kind, records in sorted(runs.by_kind(itertools.chain(*logs)).items())}
        tracks = [runs.trace_kinds(trace) for trace in traces]
        recorded[policy] = {
            "events": shapes,
            "kinds_in_every_run": in_all,
            "trace": {
                track: runs.shape_of([event for kinds in tracks for event in kinds[track]]) for track in sorted(common(tracks))
            },
            "result": runs.shape_of(results),
            "values": only(f"values of {policy}", [runs.result_values(result) for result in results]),
        }
    assert len(weights) == 1, "the policies have different weights"
    (DATA / "weights.safetensors").write_bytes(weights.pop())
    (tasks, slices) = json.loads(only("order of tasks", list(order)))
    write_json("runs.json", {"policies": folded(recorded), "tasks": tasks, "slices": slices})


def common(found: Iterable[Iterable[str]]) -> set[str]:
    """Return the names that all of them have."""
    return set.intersection(*map(set, found))


def folded(recorded: dict[str, Any]) -> dict[str, Any]:
    """Write shapes that several policies share once, under the first policy. The others refer to it."""
    first: dict[str, str] = {}
    for policy, entry in recorded.items():
        places = [(entry[name], kind) for name in ("events", "trace") for kind in entry[name]]
        for place, key in [*places, (entry, "result")]:
            text = json.dumps([key, place[key]])
            place[key] = first[text] if text in first else place[key]
            first.setdefault(text, policy)
    return recorded


def record_options(address: str, folder: Path, repeats: int) -> None:
    """Record a run with more options, its requests to the teacher, and the requests of a run of the plain recipe."""
    weights, asked = set(), []
    for number in range(repeats):
        calls = {}
        for name, flags in (("options", OPTIONS), ("plain", ("--policy", "os-default", *SMALL_RING))):
            with runs.recorded(address) as (recorder, noted):
                out = runs.train(folder, f"{name}-asked-{number}", "--teacher", recorder, *flags)
            result = runs.read_json(out / "result.json")
            calls[name] = runs.sorted_calls(noted, result["run_id"])
            if name == "options":
                weights.add((out / "student.safetensors").read_bytes())
                calls["values"] = runs.result_values(result)
        asked.append(calls)
    assert len(weights) == 1, "the run with options has different weights"
    (DATA / "options.safetensors").write_bytes(weights.pop())
    write_json("asked.json", only("requests", asked))


def record_old_files(address: str, folder: Path) -> None:
    """Record files that later versions must still read: checkpoints, a logit cache and a profile."""
    rates = {}
    for policy in LEARNERS:
        flags = ("--teacher", address, "--policy", policy, *SMALL_RING)
        old = runs.train(folder, f"old-{policy}", *flags, cycles=OLD_CYCLES)
        kept = DATA / f"old-{policy}"
        copy_folder(old, kept, "checkpoint.edgekd", "events.jsonl", "result.json")
        scrub(kept / "result.json")
        found = []
        for number in range(2):
            again = folder / f"again-{policy}-{number}"
            shutil.copytree(old, again)
            found.append(runs.first_rates_after(runs.train(folder, again.name, *flags, "--resume"), old))
        if policy == "dynamic":  # adaptive learns nothing
            rates[policy] = only(f"rates of {policy} that went on", found)
    write_json("resumed.json", rates)
    cached = ("--logits", "hybrid", "--cache", "cache", "--policy", "os-default", *SMALL_RING)
    runs.train(folder, "cached", "--teacher", address, *cached)
    copy_folder(next((folder / "cache").iterdir()), DATA / "old-cache")
    words = ("calibrate", "--out", "profile.json", "--seconds", "4", *runs.RECIPE, *runs.two_cores(), "--edge-id", runs.EDGE_ID)
    finished = runs.start("edge_student", *words, "--teacher", address, "--streams", "1", cwd=folder)
    assert finished.returncode == 0, finished.stderr
    shutil.copyfile(folder / "profile.json", DATA / "old-profile.json")


def scrub(path: Path) -> None:
    """Remove the names of other processes from a result."""
    result = runs.read_json(path)
    result["disturbance"]["busiest_others"] = []
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def copy_folder(source: Path, target: Path, *names: str) -> None:
    """Copy the files with these names, or all files except the lock. The folder keeps its name where digests contain it."""
    if not names:
        target, names = target / source.name, tuple(path.name for path in source.iterdir() if path.name != "lock")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in names:
        shutil.copyfile(source / name, target / name)


def only(what: str, found: list[Any]) -> Any:
    """Return the common value of all of them. Raises AssertionError with the differences."""
    for other in found[1:]:
        assert found[0] == other, (what, runs.differences(found[0], other))
    return found[0]


def write_json(name: str, value: Any) -> None:
    (DATA / name).write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
