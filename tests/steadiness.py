"""Bounds on time, on a machine whose processors its host lends to others as well.

Where the host took back a part of the processors' time, a bound on seconds says nothing of the product. A test that is
marked `alone` or `calm` and fails by time in such a time, by a bound that `in_time` holds or by a wait that was given
up, runs again, twice at most, all its fixtures new. Fails it each time, and by `in_time` alone, it is skipped with what
was taken. No other failure is the machine's, a wrong token least of all: it stands at once.
"""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import call_and_report

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

TRIES = 3
STARVED = 0.1
"""Share of the time in which processes here were to run, and did not since the host let others."""

RAN_AGAIN = "ran again"

_TIMES = Path("/proc/stat")


class LateError(AssertionError):
    """A bound on time was not met."""


def in_time(held: bool, *figures: object) -> None:
    """Like assert, for what depends on how much the machine gets done in a second.

    Raises:
        LateError: it does not hold; the figures are in its text.
    """
    __tracebackhide__ = True
    if not held:
        raise LateError(*figures)


@dataclass(frozen=True)
class Processors:
    """Seconds' hundredths, of all processors together, since the machine's start (proc(5), /proc/stat)."""

    busy: int
    stolen: int

    @classmethod
    def now(cls) -> Processors:
        """What the kernel has counted; nothing where it counts none."""
        if not _TIMES.exists():
            return cls(0, 0)
        user, nice, system, _idle, _wait, irq, soft, stolen, *_ = map(
            int, _TIMES.read_text().split("\n")[0].split()[1:]
        )
        return cls(user + nice + system + irq + soft, stolen)

    def withheld_since(self, then: Processors) -> float:
        """The share, 0 to 1, of what was asked for that the host did not give."""
        stolen = self.stolen - then.stolen
        return stolen / max(stolen + self.busy - then.busy, 1)


_late = pytest.StashKey[bool]()
_by_time = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None], item: pytest.Item) -> Generator[None, object, object]:
    """Note whether all that failed of a test is late, and whether what failed last may be blamed on the machine."""
    if call.excinfo is not None:
        errors = list(_single(call.excinfo.value))
        item.stash[_late] = item.stash.get(_late, True) and all(isinstance(error, LateError) for error in errors)
        item.stash[_by_time] = all(map(_is_by_time, errors))
    return (yield)


def _single(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _single(each)
    else:
        yield error


def _is_by_time(error: BaseException) -> bool:
    """A bound on time, or a wait that was given up: subprocess, Playwright and httpx have each a name of their own."""
    return isinstance(error, LateError | queue.Empty) or any("Timeout" in kind.__name__ for kind in type(error).__mro__)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run what minds the machine until it passes, fails not by time, or on a machine that was there, or TRIES times."""
    if not any(item.iter_markers("alone")) and not any(item.iter_markers("calm")):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = _tried(item, nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _tried(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """The reports of the attempt that counts, and those of ends that failed before it."""
    kept: list[pytest.TestReport] = []
    limit = item.get_closest_marker("timeout")
    end = time.monotonic() + float(limit.args[0] if limit else item.config.getini("timeout"))
    for left in reversed(range(TRIES)):
        item._initrequest()  # type: ignore[attr-defined]  # what pytest's own runner does before a test runs again
        began, before = time.monotonic(), Processors.now()
        reports = [call_and_report(item, "setup", log=False)]
        if reports[0].passed:
            reports.append(call_and_report(item, "call", log=False))
        withheld, took_s = Processors.now().withheld_since(before), time.monotonic() - began
        starved = reports[-1].failed and withheld >= STARVED
        again = starved and item.stash.get(_by_time, False) and left > 0 and time.monotonic() + took_s < end
        done = call_and_report(item, "teardown", log=False, nextitem=None if again else nextitem)
        item._request, item.funcargs = False, None  # type: ignore[attr-defined]
        note = f"the host withheld {withheld:.0%} of the processors' time"
        if not again:
            break
        kept += [done] if done.failed else []
        item.user_properties.append((RAN_AGAIN, note))
    if starved and item.stash[_late]:
        reports[-1].outcome = "skipped"
        reports[-1].longrepr = (str(item.path), (item.location[1] or 0) + 1, f"no verdict on its time: {note}")
    return [*kept, *reports, done]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what ran again, and why."""
    found = (report for reports in terminalreporter.stats.values() for report in reports)
    for report in found:
        if getattr(report, "when", "") == "teardown":
            for _, note in (each for each in report.user_properties if each[0] == RAN_AGAIN):
                terminalreporter.write_line(f"RAN AGAIN {report.nodeid}: {note}")
