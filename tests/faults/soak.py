"""Cause a fault every few seconds, and check that memory, descriptors, threads and the result stay the same.

One teacher, the proxy, and one edge that trains during all faults. In the first round each kind of fault occurs once, as a warm-up.
Later faults are drawn at random from a seed. The resources of the three processes are sampled each second. At the end the link is
repaired, the run finishes, and its weights are compared with those of a run without faults.

    python tests/faults/soak.py [--minutes 3] [--fault-every 5] [--seed 0] [--json FILE]

Exits with 0 if all resources are flat and the result is the same, else with 1; a table shows the failed checks.
"""

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from flatness import Trend, trend
from mischief import BATCH_BYTES, CYCLES_PER_S, DATASET, FAULTS, KILLS, PACE, PUBLIC_BATCH, World, serve
from processes import events, student_command, weights
from proxy import Proxy
from proxy_script import CALM
from resources import Holding, read_holding

from edge_student.host.provenance import describe_measurement
from edgekd.cli.command import parse, run
from edgekd.files import write_json
from scheduler.live.threads import allowed_cores

FLAGS = ("--private", f"{DATASET}:private", "--public-batch", str(PUBLIC_BATCH), "--prefetch", "32", "--torch-threads", "1")
KILL_EVERY = 120  # faults
CALM_S = 6.0
FINISH_S = 600.0
"""In good weather, for what faults have kept from being done."""
LEAST_SAMPLES = 30
ALLOWED_KIB = 1024.0
"""Growth over the judged time that is still called flat; what one fault may leak is that by the number of faults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Disturb a run for minutes, and check whether a resource grows."""

    minutes: float = 3.0
    """How long faults come; finishing the run and its twin without faults comes on top, a few seconds for each minute."""
    fault_every: float = 5.0
    """Seconds from one fault to the next."""
    seed: int = 0
    """Seed of the faults after the first round."""
    json: Path | None = None
    """File for the samples and the verdict."""

    def __post_init__(self) -> None:
        if self.fault_every < 4:
            raise ValueError(f"--fault-every is {self.fault_every}, must be at least 4: a fault lasts up to 3 seconds")
        if self.minutes * 60 < 2 * self.warm_up_s + LEAST_SAMPLES:
            least = (2 * self.warm_up_s + LEAST_SAMPLES) / 60
            raise ValueError(
                f"--minutes is {self.minutes}, must be at least {least:.1f}: the first {len(FAULTS)} faults only warm up"
            )

    @property
    def warm_up_s(self) -> float:
        """Seconds until each fault has occurred once."""
        return self.fault_every * len(FAULTS)


@dataclass(kw_only=True, slots=True)
class Life:
    """Resources of one process, sampled each second."""

    role: str
    pid: int
    seconds: list[float] = field(default_factory=list)
    holdings: list[Holding] = field(default_factory=list)

    def trend_after(self, warm_up_s: float) -> Trend | None:
        """Trend of the memory in KiB; None if the process exited too early."""
        judged = [
            (at, holding.private_kib)
            for at, holding in zip(self.seconds, self.holdings, strict=True)
            if at - self.seconds[0] >= warm_up_s
        ]
        return trend(*zip(*judged, strict=True)) if len(judged) >= LEAST_SAMPLES else None


class Sampler:
    """Samples all processes each second, in a thread. A context manager."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")
        self._began = time.monotonic()
        self.lives: list[Life] = []

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(1.0):
            for role, pid in list(self._world.pids.items()):
                with contextlib.suppress(OSError):  # just killed
                    holding = read_holding(pid)
                    life = next((life for life in self.lives if life.pid == pid), None)
                    if life is None:
                        self.lives.append(life := Life(role=role, pid=pid))
                    life.seconds.append(time.monotonic() - self._began)
                    life.holdings.append(holding)


def calm_level(world: World) -> dict[str, Holding]:
    """Return the resources of each process after a time without faults: the least of several samples, by role."""
    time.sleep(CALM_S)
    looks: dict[str, list[Holding]] = {role: [] for role in world.pids}
    for _ in range(8):
        for role, pid in world.pids.items():
            looks[role].append(read_holding(pid))
        time.sleep(0.25)
    return {
        role: Holding(
            private_kib=min(look.private_kib for look in seen),
            descriptors=min(look.descriptors for look in seen),
            threads=min(look.threads for look in seen),
        )
        for role, seen in looks.items()
    }


def disturb(world: World, settings: Settings) -> tuple[list[tuple[float, str]], dict[str, Any]]:
    """Apply all faults in turn. Returns their times in seconds and names, and the resources before and after, without faults."""
    others = [name for name in FAULTS if name not in KILLS]
    first_round = [*KILLS, *world.random.sample(others, len(others))]
    began, came, before = time.monotonic(), [], {}
    due = began
    while time.monotonic() < began + settings.minutes * 60:
        if len(came) == len(first_round):
            before = calm_level(world)
            due = time.monotonic()
        time.sleep(max(0.0, due - time.monotonic()))
        due += settings.fault_every
        if world.student.poll() is not None:
            print((world.folder / "messages").read_text(), file=sys.stderr)
            raise SystemExit(f"the edge ended with {world.student.returncode} after {came}")
        if len(came) < len(first_round):
            name = first_round[len(came)]
        else:
            is_kill = len(came) % KILL_EVERY == 0
            name = KILLS[len(came) // KILL_EVERY % len(KILLS)] if is_kill else world.random.choice(others)
        came.append((round(time.monotonic() - began, 1), name))
        print(f"{came[-1][0]:7.1f} s  {name}", file=sys.stderr, flush=True)
        FAULTS[name](world)
    return came, {"before": before, "after": calm_level(world)}


def soak(settings: Settings, folder: Path) -> dict[str, Any]:
    """Run the whole soak test in `folder`, and return the report."""
    cycles = int(settings.minutes * 60 * CYCLES_PER_S)
    flags = (*FLAGS, "--cycles", str(cycles))
    with contextlib.ExitStack() as stack:
        serving = serve(folder)
        proxy = stack.enter_context(Proxy(serving.port, weather=PACE))
        command = student_command(proxy.address, folder / "run", *flags, "--max-wait", "120", "--checkpoint-every", "5")
        world = World(folder, serving, proxy, command, settings.seed)
        stack.callback(world.close)
        proxy.wait_until(lambda counts: counts.bytes_given > 10 * BATCH_BYTES)
        with Sampler(world) as sampler:
            came, levels = disturb(world, settings)
        proxy.set_weather(CALM)
        status = world.student.wait(FINISH_S)
        counts = asdict(proxy.counts)
        if status:
            print((folder / "messages").read_text(), file=sys.stderr)
        is_same = status == 0 and has_same_result(folder, world.serving.address, flags, cycles)
    trends = [(life, life.trend_after(settings.warm_up_s)) for life in sampler.lives]
    return {
        "settings": {"minutes": settings.minutes, "fault_every": settings.fault_every, "seed": settings.seed},
        "cycles": cycles,
        "faults": came,
        "proxy": counts,
        "exit_status": status,
        "is_same_result": is_same,
        "memory": [
            {"role": life.role, "pid": life.pid, "trend": asdict(found), "is_flat": found.is_flat(ALLOWED_KIB)}
            for life, found in trends
            if found is not None
        ],
        "unjudged_lives": sum(found is None for _, found in trends),
        "levels": {when: {role: asdict(holding) for role, holding in held.items()} for when, held in levels.items()},
        "samples": [asdict(life) for life in sampler.lives],
    }


def has_same_result(folder: Path, address: str, flags: tuple[str, ...], cycles: int) -> bool:
    """Return whether every batch was used once, and the weights equal those of a run without faults.

    Batches that were received but not used when the edge was killed are received twice.
    """
    log = events(folder / "run")
    for task in ("forward", "backward"):
        if [record["index"] for record in log if record.get("task") == task] != list(range(cycles)):
            return False
    if {record["index"] for record in log if record.get("task") == "comm"} != set(range(cycles)):
        return False
    command = student_command(address, folder / "twin", *flags)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=FINISH_S)
    return weights(folder / "run") == weights(folder / "twin")


def complaints(report: dict[str, Any]) -> list[str]:
    """Return one sentence for each failed check."""
    found = [
        f"{row['role']}: its memory grows by {row['trend']['grown']:.0f} KiB in {row['trend']['minutes']:.1f} minutes"
        for row in report["memory"]
        if not row["is_flat"]
    ]
    before, after = report["levels"]["before"], report["levels"]["after"]
    for role in before:
        for name in ("descriptors", "threads"):
            usual = max(before[role][name], usual_level(report, role, name))
            if after[role][name] > usual:
                found.append(f"{role}: {after[role][name]} {name} in calm at the end, {usual} in the first half")
    judged = {row["role"] for row in report["memory"]}
    found += [f"{role}: no process of it lived for long enough to be judged" for role in before if role not in judged]
    if report["exit_status"] != 0:
        found.append(f"the edge ended with {report['exit_status']}")
    elif not report["is_same_result"]:
        found.append("the result is not that of a run without faults")
    return found


def usual_level(report: dict[str, Any], role: str, name: str) -> int:
    """Return the 90th percentile of a role's samples in the first half: gRPC holds one descriptor more or less while it polls."""
    half_s = report["settings"]["minutes"] * 30
    seen = [
        holding[name]
        for life in report["samples"]
        if life["role"] == role
        for at, holding in zip(life["seconds"], life["holdings"], strict=True)
        if at < half_s
    ]
    return sorted(seen)[len(seen) * 9 // 10]


def print_table(report: dict[str, Any]) -> None:
    """Print the resources as a table."""
    settings, num_connections = report["settings"], report["proxy"]["connections"]
    print(f"{len(report['faults'])} faults in {settings['minutes']:g} minutes, seed {settings['seed']}: ", end="")
    print(f"{num_connections} connections, {report['cycles']} cycles")
    print(f"{'':14}{'private memory, KiB':>24}{'KiB per minute, 95 %':>36}{'grown':>8}{'descriptors':>14}{'threads':>12}")
    before, after = report["levels"]["before"], report["levels"]["after"]
    for row in report["memory"]:
        line, role = row["trend"], row["role"]
        slope = f"{line['slope']:.1f} ({line['low']:.1f} .. {line['high']:.1f})"
        counted = [f"{before[role][name]} -> {after[role][name]}" for name in ("descriptors", "threads")]
        memory = f"{line['start']:.0f} -> {line['end']:.0f}"
        print(f"{role:14}{memory:>24}{slope:>36}{line['grown']:>8.0f}{counted[0]:>14}{counted[1]:>12}")
    if report["unjudged_lives"]:
        print(f"{report['unjudged_lives']} short lives are not judged")


def soak_and_tell() -> int:
    """Run the program."""
    settings = parse(Settings, sys.argv[1:], prog="soak.py", description="A fault every few seconds: what grows?")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all processes end, whatever ends us
    with tempfile.TemporaryDirectory() as folder:
        report = soak(settings, Path(folder))
    wrong = complaints(report)
    print_table(report)
    for complaint in wrong:
        print(f"NOT FLAT  {complaint}")
    print("soak: failed" if wrong else "soak: flat, and the result is the same")
    if settings.json is not None:
        cores = tuple(sorted(allowed_cores()))
        write_json(settings.json, {**describe_measurement(sys.argv, cores), **report, "complaints": wrong})
    return 1 if wrong else 0


if __name__ == "__main__":
    run(soak_and_tell)
