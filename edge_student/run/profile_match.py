"""Checks that a device profile was measured on this device and for the workload of this run."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from edge_student.host.fingerprint import fingerprint
from edge_student.settings.student import StudentConfig
from scheduler.model.checked_json import read_json
from scheduler.model.scenario import Profile

_SAME_DEVICE = {
    "cpu": "rates depend on the processor",
    "architecture": "rates depend on the processor",
    "cores": "rates depend on the cores; set the same with --cores",
    "governor": "rates depend on the clock; restore this setting",
    "power_mode": "rates depend on the clock; restore this setting",
    "torch": "rates depend on torch's kernels; install the same version",
}
"""Keys of the fingerprint that must be equal, with the reason and the remedy."""

_SAME_WORK = (
    "model",
    "batch_size",
    "public_batch",
    "input_shape",
    "num_classes",
    "encoding",
    "inputs",
    "streams",
    "device",
    "torch_threads",
    "shards",
)
"""Settings that must be equal."""

_MAY_BE_UNKNOWN = ("input_shape", "num_classes", "shards")
"""Settings that are compared only if both sides have a value."""


def settings_of(
    config: StudentConfig,
    *,
    device: str,
    num_shards: int | None,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Return the settings that rates depend on. `device` is the chosen one. What is unknown yet is None."""
    return {
        "model": config.model,
        "batch_size": config.batch_size,
        "public_batch": config.public_batch,
        "private": config.private,
        "public": config.public_dataset,
        "input_shape": None if input_shape is None else list(input_shape),
        "num_classes": num_classes,
        "encoding": str(config.form),
        "inputs": config.public_inputs,
        "streams": config.streams,
        "device": device,
        "torch_threads": config.torch_threads,
        "shards": num_shards,
    }


def check_profile(data: Any, *, fingerprint: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ValueError, in one line, if a profile's JSON is of another device or for another workload.

    Keys missing from the profile are not compared, so that profiles written by hand are accepted.
    """
    if not isinstance(data, Mapping):
        return  # `Profile.from_json` raises the error for this
    measured = data.get("fingerprint")
    if isinstance(measured, Mapping):
        for key, reason in _SAME_DEVICE.items():
            if key in measured and measured[key] != fingerprint[key]:
                name = key.replace("_", " ")
                raise ValueError(
                    f"the profile was measured with {name} {_shown(measured[key])}, this device has {_shown(fingerprint[key])}:"
                    f" {reason}, or run calibrate again"
                )
    measured = data.get("settings")
    if isinstance(measured, Mapping):
        for key in _SAME_WORK:
            is_unknown = key in _MAY_BE_UNKNOWN and None in (settings[key], measured.get(key))
            if key not in measured or settings[key] == measured[key] or is_unknown:
                continue
            name = key.replace("_", " ")
            raise ValueError(
                f"the profile was measured for {name} {_shown(measured[key])}, this run has {_shown(settings[key])}:"
                " rates depend on the workload; use the same setting, or run calibrate again"
            )


def load_profile(
    config: StudentConfig,
    cores: Sequence[int],
    *,
    device: str,
    num_shards: int | None,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> Profile | None:
    """Return the profile of --profile, or None without the flag.

    Raises ValueError if the file is missing or invalid, or is of another device or for another workload.
    """
    if config.profile is None:
        return None
    settings = settings_of(config, device=device, num_shards=num_shards, input_shape=input_shape, num_classes=num_classes)
    if not config.profile.exists():
        raise ValueError(f"--profile {config.profile}: no such file; create it with `edge-student calibrate`")
    try:
        data = read_json(config.profile.read_text(encoding="utf-8"), "profile")
        check_profile(data, fingerprint=fingerprint(cores, os.environ), settings=settings)
        return Profile.from_json(data)
    except ValueError as error:
        raise ValueError(f"--profile {config.profile}: {error}") from error


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
