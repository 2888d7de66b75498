"""How far downloads and loading are, told on stderr: bars on a terminal, lines elsewhere; knows no hub, no files.

rich is imported when there is something to draw: most commands download nothing."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_EACH = 10  # lines for a whole file, where there is no terminal
LINES_FROM_BYTES = 1 << 26  # a smaller file gets none

_drawn: list[RichProgress] = []  # bars that are on the terminal, and have its cursor hidden


class Progress(Protocol):
    """Told of each file in turn; calls come from the thread that downloads."""

    def start(self, name: str, total_bytes: int, done_bytes: int) -> None: ...
    def update(self, done_bytes: int) -> None: ...
    def finish(self) -> None: ...


class Silent:
    """Shows nothing."""

    def start(self, name: str, total_bytes: int, done_bytes: int) -> None: ...
    def update(self, done_bytes: int) -> None: ...
    def finish(self) -> None: ...


class Bar:
    """One line per file on stderr; a context manager, so that the terminal is left tidy."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._bars: RichProgress | None = None  # without a download there is no line
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            _stop(self._bars)

    def start(self, name: str, total_bytes: int, done_bytes: int) -> None:
        if self._bars is None:
            self._bars = self._columns()
            _start(self._bars)
        self._task = self._bars.add_task(name, total=total_bytes, completed=done_bytes)

    def update(self, done_bytes: int) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done_bytes)

    def finish(self) -> None:
        self._task = None

    def _columns(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        return Progress(TextColumn("{task.description}"), *columns, console=self._console or Console(stderr=True))


class Lines:
    """Tells of large files only, in a line for each tenth: for logs and pipes."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self._tell = tell or _to_stderr
        self._name, self._total, self._told = "", 0, 0

    def start(self, name: str, total_bytes: int, done_bytes: int) -> None:
        self._name, self._total, self._told = name, total_bytes, -1
        self.update(done_bytes)

    def update(self, done_bytes: int) -> None:
        tenths = LINE_EACH * done_bytes // self._total if self._total >= LINES_FROM_BYTES else self._told
        if tenths > self._told:
            self._told = tenths
            self._tell(f"fetching {self._name}: {done_bytes / 1e6:.0f} of {self._total / 1e6:.0f} MB")

    def finish(self) -> None: ...


@contextmanager
def downloads() -> Iterator[Progress]:
    """Shows downloads as long as it is open, as suits stderr."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    with Bar() as bar:
        yield bar


@contextmanager
def counted(what: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """A bar of `total` things, on a terminal only; call what is yielded with how many are done."""
    if total < 1 or not (console or sys.stderr.isatty()):
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console or Console(stderr=True), transient=True)
    _start(bars)
    try:
        task = bars.add_task(what, total=total)
        yield lambda done: bars.update(task, completed=done)
    finally:
        _stop(bars)


def stop_drawing() -> None:
    """Leave the terminal as it was, from any thread, whatever still goes on."""
    for bars in tuple(_drawn):
        _stop(bars)


def _start(bars: RichProgress) -> None:
    _drawn.append(bars)
    bars.start()


def _stop(bars: RichProgress) -> None:
    bars.stop()
    with suppress(ValueError):  # it was stopped before
        _drawn.remove(bars)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
