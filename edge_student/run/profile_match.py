"""Whether a device profile was measured on a device like this one, for work like this run's."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from edge_student.host.fingerprint import fingerprint
from edge_student.settings.student import StudentConfig
from scheduler.model.checked_json import read_json
from scheduler.model.scenario import Profile

_SAME_DEVICE = {
    "cpu": "another processor has other rates",
    "architecture": "another processor has other rates",
    "cores": "other cores may have other rates; name these with --cores",
    "governor": "rates change with the clock; set it back",
    "power_mode": "rates change with the clock; set it back",
    "torch": "its kernels may be others; install that one",
}


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
)


_MAY_BE_UNKNOWN = ("input_shape", "num_classes")


def settings_of(
    config: StudentConfig, *, device: str, input_shape: Sequence[int] | None = None, num_classes: int | None = None
) -> dict[str, Any]:
    """What rates hold for; `device` is the one that was chosen. A shape or a number of classes that is None is not compared."""
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
    }


def check_profile(data: Any, *, fingerprint: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """ValueError, in one line, if a profile's JSON says that it is of another device or for other work than these.

    What a profile does not say is not held against it: one that was written by hand is used as it is.
    """
    if not isinstance(data, Mapping):
        return  # `Profile.from_json` says what is wrong with it
    theirs = data.get("fingerprint")
    if isinstance(theirs, Mapping):
        for key, why in _SAME_DEVICE.items():
            if key in theirs and theirs[key] != fingerprint[key]:
                name = key.replace("_", " ")
                raise ValueError(
                    f"the profile was measured with {name} {_shown(theirs[key])}, and here it is {_shown(fingerprint[key])}:"
                    f" {why}, or run calibrate again"
                )
    theirs = data.get("settings")
    if isinstance(theirs, Mapping):
        for key in _SAME_WORK:
            if (
                key not in theirs
                or settings[key] == theirs[key]
                or (key in _MAY_BE_UNKNOWN and None in (settings[key], theirs[key]))
            ):
                continue
            name = key.replace("_", " ")
            raise ValueError(
                f"the profile was measured for {name} {_shown(theirs[key])}, and this run has {_shown(settings[key])}:"
                " other work takes other times; use the same, or run calibrate again"
            )


def load_profile(
    config: StudentConfig,
    cores: Sequence[int],
    *,
    device: str,
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> Profile | None:
    """The profile that the user named; None if he named none. ValueError if it is none, or not for this device and this work."""
    if config.profile is None:
        return None
    settings = settings_of(config, device=device, input_shape=input_shape, num_classes=num_classes)
    if not config.profile.exists():
        raise ValueError(f"--profile {config.profile}: there is no such file; make one with `edge-student calibrate`")
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
