"""`calibrate`: measures the rates of every mode on this device while both sides run, and saves them as a device profile.

Worker and trainer start with default launch options, because the niceness and the spin count change the rates of a mode.
The profile is written at the end, after a complete measurement, or not at all.
"""

import logging
import os
import sys
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

from edge_student.calibrate.device_profile import make_profile
from edge_student.calibrate.live_device import FOREVER, MOST_BATCHES, LiveDevice
from edge_student.calibrate.table import describe_findings, print_calibration, profile_figure
from edge_student.calibrate.visits import ModeUnderTest, Visit, measure, modes_under_test
from edge_student.host.fingerprint import fingerprint
from edge_student.host.provenance import command_line, describe_software
from edge_student.ipc.ring import Ring
from edge_student.measure.local_teacher import check_models, teacher
from edge_student.run.data import TrainingData, check_teacher, load_training_data, map_classes, name_of_source
from edge_student.run.profile_match import settings_of
from edge_student.run.setup import (
    bind_compute,
    configure_worker,
    limit_torch_threads,
    no_full_collections,
    open_trainer,
    ring_shape,
)
from edge_student.run.shards import choose_shards
from edge_student.run.worker_process import CommWorkerProcess
from edge_student.settings.student import CalibrateConfig
from edgekd.cli.progress import Progress
from edgekd.files import make_folder, write_json
from edgekd.models.devices import choose_device
from edgekd.wire.identity import new_run_id
from scheduler.policies.registry import LaunchOptions

logger = logging.getLogger(__name__)

_FIRST_BATCHES_SHARE = 0.1  # of --seconds, for receiving the batches to train on


def calibrate(config: CalibrateConfig, cores: tuple[int, ...]) -> int:
    """Measure, write the profile and its plot, print the table. Raises ValueError and WorldError before a file is written."""
    modes = modes_under_test(len(cores))
    device = str(choose_device(config.device))
    make_folder(config.out.parent)
    data = load_training_data(config)
    check_models(config, data.private, data.input_shape)
    max_threads = limit_torch_threads(config.torch_threads)
    num_shards = choose_shards(config, "adaptive", len(cores), None)
    notes: list[str] = []
    with teacher(config, cores[0]) as address:
        with CommWorkerProcess(configure_worker(config, address, LaunchOptions(), cores, run_id=new_run_id())) as worker:
            described = worker.await_description()
            source = name_of_source(address)
            check_teacher(described, data, source)
            data = replace(data, private=map_classes(data.private, described, config.class_map, source))
            data = data.share() if num_shards > 1 else data
            ring = Ring.create(ring_shape(config, described))
            kept = Ring.create(replace(ring.shape, num_slots=min(MOST_BATCHES, ring.shape.num_slots)))
            opened = open_trainer(config, data, kept, device=device, num_shards=num_shards, note=notes.append)
            with closing(ring), closing(kept), opened as trainer, no_full_collections():
                num_shards = trainer.num_shards
                worker.use_ring(ring, start=0, stop=FOREVER)
                compute = bind_compute(trainer, max_threads)
                with LiveDevice(worker=worker, ring=ring, kept=kept, trainer=trainer, compute=compute, cores=cores) as live:
                    live.receive_first(_FIRST_BATCHES_SHARE * config.seconds)
                    began = time.monotonic()
                    visits = _measure(live, modes, config)
                    seconds = time.monotonic() - began
    for note in live.notes:
        logger.warning(note)
    notes += live.notes
    profile = make_profile(visits, len(cores)) | {
        "fingerprint": fingerprint(cores, os.environ),
        "settings": _settings(config, data, device, num_shards, described.num_classes),
        "software": describe_software(),
        "command": command_line(sys.argv),
        "seconds": seconds,
        "notes": notes,
    }
    _save(config, profile)
    return 0


def _measure(live: LiveDevice, modes: tuple[ModeUnderTest, ...], config: CalibrateConfig) -> list[Visit]:
    names = ", ".join(mode.name for mode in modes)
    logger.info("measuring %d modes in turns for about %g s: %s", len(modes), config.seconds, names)
    with Progress("seconds of measuring", max(1, round(config.seconds))) as progress:

        def show(name: str, spent_s: float) -> None:
            progress.describe(name)
            progress.reach(min(int(spent_s), round(config.seconds)))

        return measure(live, modes, seconds=config.seconds, window=config.window, clock=time.monotonic, on_visit=show)


def _settings(config: CalibrateConfig, data: TrainingData, device: str, num_shards: int, num_classes: int) -> dict[str, Any]:
    """Return the settings that the rates depend on, with the teacher and its rate limit."""
    shape = data.private.input_shape
    held_for = settings_of(config, device=device, num_shards=num_shards, input_shape=shape, num_classes=num_classes)
    return {**held_for, "teacher": config.teacher or "embedded", "rate_limit": config.rate_limit}


def _save(config: CalibrateConfig, profile: dict[str, Any]) -> None:
    """Write the plot, then the profile. A profile file therefore implies a complete result."""
    # local, because importing matplotlib takes a second and would delay the measurement
    from scheduler.figures import draw_files, draw_fitted_costs

    plots = draw_files(config.out.with_suffix(""), profile_figure(profile), draw_fitted_costs)
    write_json(config.out, profile)
    print_calibration(profile)
    for line in describe_findings(profile):
        print(line)
    print(f"written to {config.out}, drawn in {' and '.join(str(path) for path in plots)}; give it to train with --profile")
