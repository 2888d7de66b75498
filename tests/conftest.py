"""Set before any test is collected: Triton decides when it is first imported whether it interprets kernels."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import steadiness
from tests.forks.popen import forked

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# By the driver's own file and not by torch: tests of the command line look at what is loaded.
if importlib.util.find_spec("triton") is not None and not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell starts what it puts into the background with Ctrl-C ignored, and so would be all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Tests that mind the machine run again where it was lent to others."""
    config.pluginmanager.register(steadiness)


GPUS = "CUDA_VISIBLE_DEVICES"

# What takes long comes first, so that all who share the work end at about the same time; and first of all what computes
# beside what mostly waits.
LONG = ("test_schedules", "test_guide", "test_terminal", "test_survival", "test_wan")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The browser's driver keeps an event loop running in this thread until the end: no async test can follow."""

    def place(item: pytest.Item) -> tuple[bool, int, bool]:
        folders, name = item.path.relative_to(item.config.rootpath).parts, item.path.stem
        return "web" in folders, LONG.index(name) if name in LONG else len(LONG), "swarm" not in folders

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What all tests import stays: each search for garbage in it takes seconds, and finds none."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests of swarms start their processes as forks, fixtures' too, but for those that are about the start; and all
    see no GPU, which peers would take: what is checked is a CPU's, and guides type commands as they stand."""
    if item.get_closest_marker("swarm") is None:
        return (yield)
    executed = item.get_closest_marker("executed") is not None
    with no_gpu(), nullcontext() if executed else forked():
        return (yield)


@contextmanager
def no_gpu() -> Iterator[None]:
    """What fixtures set beside it in the environment stays: some of them last longer than a test."""
    before, os.environ[GPUS] = os.environ.get(GPUS), ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[GPUS]
        else:
            os.environ[GPUS] = before
