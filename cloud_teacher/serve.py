"""What `cloud-teacher serve` does from its settings to its exit status: load, open the store, perhaps precompute, listen, stop.

Imported after the server was pinned, because torch and gRPC start threads that keep the cores they were born with.
"""

import asyncio
import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from cloud_teacher.logits.public_inputs import PublicInputs
from cloud_teacher.logits.store import LogitStore, open_store
from cloud_teacher.logits.teacher import Teacher, make_teacher
from cloud_teacher.monitoring.http_server import metrics_served
from cloud_teacher.monitoring.liveness import Liveness
from cloud_teacher.monitoring.metrics import Metrics
from cloud_teacher.service.auth import server_credentials
from cloud_teacher.service.rate_limit import RateLimiter, parse_rate
from cloud_teacher.service.server import TeacherServer, check_port
from cloud_teacher.service.service import TeacherService
from cloud_teacher.settings import PrecomputeConfig, ServeConfig, TeacherConfig, parse_listen
from edgekd.cli.address import format_address, is_loopback, parse_address
from edgekd.cli.progress import Progress
from edgekd.data.datasets import load_dataset
from edgekd.data.devices import choose_device
from edgekd.data.models import build_model, load_weights
from edgekd.errors import WorldError

logger = logging.getLogger(__name__)


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or Ctrl-C, then return 0. Raises ValueError for the user's mistakes and OSError for the machine's."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    metrics, liveness = Metrics(), Liveness()
    try:
        check_port(*parse_listen(config.listen))
        with _watched(config, metrics, liveness):
            threads = _set_torch_threads(config.torch_threads)
            teacher = load_teacher(config)
            store = open_store(config.store, teacher.key, metrics.timed(teacher.logits))
            metrics.watch(store, config.dataset)
            computing = ThreadPoolExecutor(1, thread_name_prefix="compute", initializer=torch.set_num_threads, initargs=(threads,))
            try:
                _tell_store(store)
                if config.precompute:
                    computing.submit(fill, store).result()
                asyncio.run(_listen(config, store, computing, PublicInputs(teacher.dataset), metrics, liveness))
            finally:
                store.interrupt()
                computing.shutdown(cancel_futures=True)
                store.close()
    except KeyboardInterrupt:
        # Before it listened; afterwards the signals only end the waiting.
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
    logger.info("stopped")
    return 0


def precompute(config: PrecomputeConfig) -> int:
    """Fill the store and return 0. What was computed is kept, whatever ends this, and the next time goes on from there.

    Raises ValueError for the user's mistakes, WorldError if another process has the store, OSError for the machine's.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _set_torch_threads(config.torch_threads)
        teacher = load_teacher(config)
        store = open_store(config.store, teacher.key, teacher.logits)
        try:
            if store.is_private:
                raise WorldError("another process has this logit store: let it compute (serve --precompute), or stop it first")
            _tell_store(store)
            fill(store)
            print(f"{store.num_ready} of {teacher.key.num_samples} rows are in {config.store.expanduser() / teacher.key.folder}")
        finally:
            store.close()
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def load_teacher(config: TeacherConfig) -> Teacher:
    """Data set and model by name, with the weights that were given. Raises ValueError if they do not go together."""
    device = choose_device(config.device)
    dataset = load_dataset(config.dataset)
    model = build_model(config.model, num_classes=dataset.num_classes, input_shape=dataset.images.shape[1:], seed=config.seed)
    if config.weights is None:
        logger.warning("no --weights: these are the initial weights of %s, which have learnt nothing", config.model)
    else:
        try:
            load_weights(model, config.weights)
        except FileNotFoundError:
            raise ValueError(f"--weights {config.weights}: there is no such file; `cloud-teacher train` makes one") from None
    teacher = make_teacher(model, spec=config.model, dataset=dataset, device=device)
    key = teacher.key
    logger.info("teacher %s on %s, digest %s", config.model, device, key.teacher_digest[:16])
    logger.info(
        "data set %s, %d samples, %d classes, digest %s",
        dataset.name,
        key.num_samples,
        key.num_classes,
        key.dataset_digest[:16],
    )
    return teacher


def fill(store: LogitStore) -> None:
    """Compute every row that the store does not have yet. Raises as `LogitStore.fill`."""
    needed = store.key.num_samples - store.num_ready
    if needed:
        with Progress("computing logits", needed) as progress:
            store.fill(np.arange(store.key.num_samples), on_progress=progress.advance)


@contextmanager
def _watched(config: ServeConfig, metrics: Metrics, liveness: Liveness) -> Iterator[None]:
    """Answer to Prometheus and to health checks during the block, if that was asked for."""
    if config.metrics_listen is None:
        yield
        return
    host, port = parse_address(config.metrics_listen, flag="--metrics-listen", lowest_port=0)
    check_port(host, port)
    if not is_loopback(host):
        logger.warning("%s is reachable from other machines: everybody on its network can read the metrics", host)
    with metrics_served(host, port, metrics.registry, liveness) as port:
        logger.info("metrics at http://%s/metrics", format_address(host, port))
        yield


async def _listen(
    config: ServeConfig,
    store: LogitStore,
    computing: ThreadPoolExecutor,
    inputs: PublicInputs,
    metrics: Metrics,
    liveness: Liveness,
) -> None:
    """Serve until a signal comes."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    rate_limiter = None if config.rate_limit is None else RateLimiter(parse_rate(config.rate_limit))
    service = TeacherService(
        store,
        dataset_name=config.dataset,
        limits=config.limits,
        metrics=metrics,
        rate_limiter=rate_limiter,
        computing=computing,
        inputs=inputs,
    )
    server = TeacherServer(service, token_file=config.token_file)
    host, port = parse_listen(config.listen)
    port = await server.start(host, port, server_credentials(config.tls) if config.tls else None)
    if not (config.tls or is_loopback(host)):
        logger.warning("%s is reachable from other machines and the wire is plaintext: everybody can read and change it", host)
    if config.rate_limit is not None:
        logger.info("payload limited to %s, all streams together", config.rate_limit)
    beating = asyncio.create_task(liveness.beat())
    liveness.set_serving(True)
    print(f"listening on {format_address(host, port)}", flush=True)
    filling = asyncio.create_task(service.fill_store()) if config.background else None
    await stop.wait()
    liveness.set_serving(False)
    logger.info("stopping; streams may run on for a moment")
    await server.stop()
    if filling is not None:
        await filling
    beating.cancel()


def _set_torch_threads(wanted: int | None) -> int:
    if wanted is not None:
        torch.set_num_threads(wanted)
    return torch.get_num_threads()


def _tell_store(store: LogitStore) -> None:
    place = "private logit store" if store.is_private else "logit store"
    logger.info("%s: %d of %d rows are there", place, store.num_ready, store.key.num_samples)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
