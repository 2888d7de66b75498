"""What signals mean to programs that serve."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
from shoal.dht.leaving import leave_on_signals, on_leave, unless

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(os, "isatty", lambda _: False)  # else pytest would print nowhere from here on
    return []


@pytest.fixture(autouse=True)
def hangups_end_processes() -> Iterator[None]:
    """As a shell leaves it: the tests may run under `nohup`, and uvloop, once closed, leaves its own handler behind."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


async def hear(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)


async def test_a_closed_terminal_asks_once_and_other_signals_each_time(asked: list[str]) -> None:
    on_leave(lambda: asked.append("leave"))
    await hear(signal.SIGHUP, signal.SIGHUP)
    assert len(asked) == 1
    await hear(signal.SIGTERM, signal.SIGINT)
    assert len(asked) == 3


async def test_a_terminal_that_is_closed_later_does_not_hurry(asked: list[str]) -> None:
    on_leave(lambda: asked.append("leave"))
    await hear(signal.SIGINT, signal.SIGHUP)
    assert len(asked) == 1


async def test_nohup_holds(asked: list[str]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    on_leave(lambda: asked.append("leave"))
    await hear(signal.SIGHUP)
    assert asked == []


async def test_the_first_signal_is_told_and_the_second_one_ends_the_process(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr("shoal.dht.leaving.on_leave", called.append)
    monkeypatch.setattr("shoal.dht.leaving.end_soon", asked.append)
    leave = leave_on_signals(lambda: asked.append("told"))
    assert not leave.is_set()
    called[0]()
    assert leave.is_set()
    with pytest.raises(KeyboardInterrupt):
        called[0]()
    assert asked == ["told", 130]


# -- what is given up for it ------------------------------------------------------------------------------------------


async def test_work_is_given_up_when_it_is_time_to_leave() -> None:
    leave, ended = asyncio.Event(), []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(asyncio.current_task())

    asyncio.get_running_loop().call_later(0.01, leave.set)
    assert await unless(leave, work()) is None
    assert ended == [asyncio.current_task()]  # what it opened can be closed here
    assert await unless(leave, asyncio.sleep(0, "late")) is None
    await asyncio.sleep(0)  # it left no cancellation behind


@pytest.mark.parametrize("error", [TimeoutError, ValueError])
async def test_work_that_comes_to_an_end_tells_how(error: type[Exception]) -> None:
    async def fail() -> None:
        raise error

    leave = asyncio.Event()
    assert await unless(leave, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(error):
        await unless(leave, fail())


async def test_what_breaks_on_the_way_out_is_not_told() -> None:
    leave = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError

    asyncio.get_running_loop().call_later(0.01, leave.set)
    assert await unless(leave, work()) is None


async def test_who_is_cancelled_meanwhile_is_cancelled() -> None:
    task = asyncio.create_task(unless(asyncio.Event(), asyncio.sleep(60)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
