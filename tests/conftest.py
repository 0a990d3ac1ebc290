"""Rules for all tests: repeatable examples, no downloads, a temporary home folder, and a skip if a requirement is missing."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from needs import BARE, NEEDS, hide_commands, is_here
from processes import teacher

from edgekd.data import sources

# Hypothesis draws the same examples every time, and a busy machine is no failure. `--hypothesis-profile thorough` draws others.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--with-packages", action="store_true", help="fail where a test lacks what a Debian package would give")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        unknown = {name for mark in item.iter_markers("needs") for name in mark.args} - NEEDS.keys()
        if unknown:
            raise pytest.UsageError(f"{item.nodeid} needs {sorted(unknown)}, which tests/support/needs.py does not know")
        # A test's own number of examples goes before that of the profile, which is meant for every test here.
        own = getattr(getattr(item, "function", None), "_hypothesis_internal_use_settings", None)
        if own is not None and settings.get_current_profile_name() == "thorough":
            item.function._hypothesis_internal_use_settings = settings(own, max_examples=settings().max_examples)  # type: ignore[attr-defined]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = [name for mark in item.iter_markers("needs") for name in mark.args if not is_here(name)]
    if not missing:
        return
    reason = "needs " + ", ".join(f"{name} ({NEEDS[name].remedy})" for name in missing)
    if item.config.getoption("--with-packages") and any(NEEDS[name].package for name in missing):
        pytest.fail(reason, pytrace=False)
    pytest.skip(f"{reason}, hidden by EDGEKD_TESTS_BARE" if BARE else reason)


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The environment of the tests and of every program that they start."""
    # A shell starts a job in the background with SIGINT ignored, and every program that such a job starts would ignore it too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        # No data set that an earlier run has downloaded is found, and nothing is left behind.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        # No server listens at this proxy, so every download fails, also in a program that a test starts: urllib, which torchvision
        # downloads with, asks the proxy for all but this machine. EdgeKD's own connections use no proxy.
        for protocol in ("http", "https"):
            patch.setenv(f"{protocol}_proxy", "http://127.0.0.1:9")
            patch.delenv(f"{protocol.upper()}_PROXY", raising=False)
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        patch.delenv("NO_PROXY", raising=False)
        if BARE:
            patch.setenv("PATH", hide_commands(tmp_path_factory.mktemp("commands")))
            patch.setattr(sources, "DEBIAN_FASHION_MNIST", Path("/nonexistent/fashion-mnist"))
        yield


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield HOST:PORT of a teacher that serves while the tests of one file run."""
    with teacher(tmp_path_factory.mktemp("store")) as serving:
        yield serving.address
