"""`fetch`: download every row of a teacher's logits into the edge's cache, so that `--logits offline` can train without a teacher.

It receives in this process, with the protocol and retries of a run. Received rows are kept when it ends early, and the next `fetch`
resumes from them.
"""

import logging

from edge_student.ipc.ring import Slot
from edge_student.receive.description import RequestRefusedError
from edge_student.receive.receiver import BadTeacherError, Receiver
from edge_student.receive.retry import LinkLostError
from edge_student.receive.source import Hybrid
from edge_student.settings.fetch import FetchConfig
from edgekd.cli.logs import log_context, set_log_context
from edgekd.cli.progress import Progress
from edgekd.errors import WorldError
from edgekd.wire.identity import new_run_id

logger = logging.getLogger(__name__)


def fetch(config: FetchConfig) -> int:
    """Receive the missing rows. Raises ValueError for the user's mistake and WorldError if the teacher is unavailable."""
    configuration = config.configure(teacher=config.teacher, batch_size=config.batch_size, logits="hybrid", run_id=new_run_id())
    set_log_context(run=configuration.run_id)
    receiver = Receiver(configuration, lambda cause, attempt: logger.warning("attempt %d failed: %s", attempt, cause))
    source = Hybrid(receiver, configuration)
    try:
        described = receiver.describe()  # before a cache is created for the wrong data set
        _check_dataset(config, described.dataset_digest, described.dataset_name)
        num_bytes = _receive_all(source, config)
    except RequestRefusedError as error:
        raise ValueError(str(error)) from error
    except (LinkLostError, BadTeacherError) as error:
        raise WorldError(str(error)) from error
    finally:
        source.close()
    key = source.cache.key
    print(f"{source.cache.folder}: {source.cache.num_rows} of {key.num_samples} rows, {num_bytes / 1e6:.2f} MB received")
    return 0


def _receive_all(source: Hybrid, config: FetchConfig) -> int:
    described = source.describe()
    num_samples = described.num_samples
    slot = Slot.empty(config.slot_shape(described, batch_size=config.batch_size))
    stop = -(-num_samples // config.batch_size)  # the first epoch visits every sample
    logger.info("%d of %d rows are cached; downloading the rest into %s", source.cache.num_rows, num_samples, source.cache.folder)
    num_bytes = 0
    with Progress("rows", num_samples) as progress:
        for index in range(stop):
            with log_context(index=index):
                num_bytes += source.receive(index, stop, slot, lambda: None)
            progress.reach(min((index + 1) * config.batch_size, num_samples))
    return num_bytes


def _check_dataset(config: FetchConfig, digest: str, name: str) -> None:
    """Raise ValueError if the teacher serves another data set than --public."""
    if config.public is None:
        return
    from edgekd.data.datasets import load_dataset  # it imports torchvision, which takes a second

    local = load_dataset(config.public)
    if local.digest != digest:
        raise ValueError(
            f"--public is {config.public} (digest {local.digest[:12]}), but the teacher at {config.teacher} serves {name} "
            f"(digest {digest[:12]}): name the same data set"
        )
