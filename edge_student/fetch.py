"""`fetch`: fills the edge's logit cache with every row of a teacher, so that `--logits offline` can train without one.

Receives over the same wire and in the same way as a run, in this process. Whatever ends it, what has come is kept, and the next
`fetch` goes on from there.
"""

import logging

from edge_student.ipc.ring import Slot
from edge_student.receive.description import RequestRefusedError
from edge_student.receive.receiver import BadTeacherError, Receiver
from edge_student.receive.retry import LinkLostError
from edge_student.receive.source import Hybrid
from edge_student.settings.fetch import FetchConfig
from edgekd.cli.logs import about, about_from_now_on
from edgekd.cli.progress import Progress
from edgekd.errors import WorldError
from edgekd.wire.identity import new_run_id

logger = logging.getLogger(__name__)


def fetch(config: FetchConfig) -> int:
    """Receive what is missing. Raises ValueError for the user's mistake and WorldError when the teacher stays away."""
    told = config.configure(teacher=config.teacher, batch_size=config.batch_size, logits="hybrid", run_id=new_run_id())
    about_from_now_on(run=told.run_id)
    receiver = Receiver(told, lambda cause, attempt: logger.warning("attempt %d failed: %s", attempt, cause))
    source = Hybrid(receiver, told)
    try:
        said = receiver.describe()  # before a cache is made that nobody wants
        _check_dataset(config, said.dataset_digest, said.dataset_name)
        num_bytes = _receive_all(source, config)
    except RequestRefusedError as error:
        raise ValueError(str(error)) from error
    except (LinkLostError, BadTeacherError) as error:
        raise WorldError(str(error)) from error
    finally:
        source.close()
    key = source.cache.key
    print(f"{source.cache.folder}: {key.num_samples} of {key.num_samples} rows, {num_bytes / 1e6:.2f} MB came over the wire")
    return 0


def _receive_all(source: Hybrid, config: FetchConfig) -> int:
    described = source.describe()
    num_samples = described.num_samples
    shape = config.slot_shape(batch_size=config.batch_size, num_classes=described.num_classes, input_shape=described.input_shape)
    slot = Slot.empty(shape)
    stop = -(-num_samples // config.batch_size)  # the first epoch visits every sample
    logger.info("%d of %d rows are there; filling %s", source.cache.num_rows, num_samples, source.cache.folder)
    progress = Progress("rows", num_samples)
    num_bytes = 0
    try:
        for index in range(stop):
            with about(index=index):
                num_bytes += source.receive(index, stop, slot, lambda: None)
            progress.reach(min((index + 1) * config.batch_size, num_samples))
    finally:
        progress.close()
    return num_bytes


def _check_dataset(config: FetchConfig, digest: str, name: str) -> None:
    """ValueError if the teacher serves another data set than the one that was named."""
    if config.public is None:
        return
    from edgekd.data.datasets import load_dataset  # loads torchvision, which takes a second

    ours = load_dataset(config.public)
    if ours.digest != digest:
        raise ValueError(
            f"the teacher at {config.teacher} serves {name} (digest {digest[:12]}), {config.public} is another data set "
            f"(digest {ours.digest[:12]})"
        )
