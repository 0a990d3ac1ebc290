"""The commands `serve` and `precompute` of cloud-teacher: load the teacher, open the store, compute logits, serve them.

Imported after the process was pinned, because torch and gRPC start threads, which inherit the core mask at that moment.
"""

import asyncio
import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from cloud_teacher.loading import load_teacher, measure_agreement
from cloud_teacher.logits.public_inputs import PublicInputs
from cloud_teacher.logits.store import LogitStore, open_store
from cloud_teacher.logits.teacher import Teacher
from cloud_teacher.monitoring.http_server import metrics_served
from cloud_teacher.monitoring.liveness import Liveness
from cloud_teacher.monitoring.metrics import Metrics
from cloud_teacher.service.auth import server_credentials
from cloud_teacher.service.rate_limit import RateLimiter
from cloud_teacher.service.server import TeacherServer, check_port
from cloud_teacher.service.service import TeacherService
from cloud_teacher.settings import PrecomputeConfig, ServeConfig, parse_listen
from edgekd.cli.address import format_address, is_loopback, parse_address
from edgekd.cli.progress import Progress
from edgekd.cli.rate import parse_rate

logger = logging.getLogger(__name__)


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or Ctrl-C, then return 0. Raises ValueError for invalid settings and OSError for system errors."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    metrics, liveness = Metrics(), Liveness()
    try:
        check_port(*parse_listen(config.listen))
        with _monitored(config, metrics, liveness):
            threads = _set_torch_threads(config.torch_threads)
            teacher = load_teacher(config)
            store = open_store(config.store, teacher.key, metrics.timed(teacher.logits))
            metrics.watch(store, config.dataset)
            computing = ThreadPoolExecutor(1, thread_name_prefix="compute", initializer=torch.set_num_threads, initargs=(threads,))
            try:
                _log_store(store)
                if config.precompute:
                    computing.submit(fill, store).result()
                computing.submit(measure_agreement, teacher, store).result()
                asyncio.run(_listen(config, store, computing, teacher, metrics, liveness))
            finally:
                store.interrupt()
                computing.shutdown(cancel_futures=True)
                store.close()
    except KeyboardInterrupt:
        # A signal during startup. Once the server listens, signals set an event instead.
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
    logger.info("stopped")
    return 0


def precompute(config: PrecomputeConfig) -> int:
    """Fill the store and return 0. An interrupted call keeps the computed rows, and the next call computes the rest.

    Raises ValueError for invalid settings, WorldError if another process uses the store, and OSError for system errors.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _set_torch_threads(config.torch_threads)
        teacher = load_teacher(config)
        store = open_store(config.store, teacher.key, teacher.logits, may_be_private=False)
        try:
            _log_store(store)
            fill(store)
            measure_agreement(teacher, store)
            print(f"{store.num_ready} of {teacher.key.num_samples} rows are in {config.store.expanduser() / teacher.key.folder}")
        finally:
            store.close()
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def fill(store: LogitStore) -> None:
    """Compute all missing rows of the store. Raises as `LogitStore.fill`."""
    needed = store.key.num_samples - store.num_ready
    if needed:
        with Progress("computing logits", needed) as progress:
            store.fill(np.arange(store.key.num_samples), on_progress=progress.advance)


@contextmanager
def _monitored(config: ServeConfig, metrics: Metrics, liveness: Liveness) -> Iterator[None]:
    """Serve metrics and health checks during the block if --metrics-listen is given."""
    if config.metrics_listen is None:
        yield
        return
    host, port = parse_address(config.metrics_listen, flag="--metrics-listen", lowest_port=0)
    check_port(host, port)
    if not is_loopback(host):
        logger.warning("%s is reachable from other machines: every host on its network can read the metrics", host)
    with metrics_served(host, port, metrics.registry, liveness) as port:
        logger.info("metrics at http://%s/metrics", format_address(host, port))
        yield


async def _listen(
    config: ServeConfig,
    store: LogitStore,
    computing: ThreadPoolExecutor,
    teacher: Teacher,
    metrics: Metrics,
    liveness: Liveness,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
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
        inputs=PublicInputs(teacher.dataset),
        class_names=teacher.class_names,
    )
    server = TeacherServer(service, token_file=config.token_file)
    host, port = parse_listen(config.listen)
    port = await server.start(host, port, server_credentials(config.tls) if config.tls else None)
    if not (config.tls or is_loopback(host)):
        logger.warning("%s is reachable from other machines without TLS: others on the path can read and change the traffic", host)
    if config.rate_limit is not None:
        logger.info("payload of all streams together is limited to %s", config.rate_limit)
    beating = asyncio.create_task(liveness.beat())
    liveness.set_serving(True)
    print(f"listening on {format_address(host, port)}", flush=True)
    filling = asyncio.create_task(service.fill_store()) if config.background else None
    await stop.wait()
    liveness.set_serving(False)
    logger.info("stopping; open streams continue for a moment")
    await server.stop()
    if filling is not None:
        await filling
    beating.cancel()


def _set_torch_threads(num_threads: int | None) -> int:
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()


def _log_store(store: LogitStore) -> None:
    kind = "private logit store" if store.is_private else "logit store"
    logger.info("%s: has %d of %d rows", kind, store.num_ready, store.key.num_samples)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
