"""How far downloads and loading are, told on stderr: bars on a terminal, lines elsewhere; knows no hub, no files."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

LINE_EACH = 10  # lines for a whole file, where there is no terminal
LINES_FROM_BYTES = 1 << 26  # a smaller file gets none


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
        columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bars = RichProgress(
            TextColumn("{task.description}"), BarColumn(), *columns, console=console or Console(stderr=True)
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars.live.is_started:
            self._bars.stop()

    def start(self, name: str, total_bytes: int, done_bytes: int) -> None:
        self._bars.start()  # not before: without a download there is no line
        self._task = self._bars.add_task(name, total=total_bytes, completed=done_bytes)

    def update(self, done_bytes: int) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done_bytes)

    def finish(self) -> None:
        self._task = None


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
    if not Console(stderr=True).is_terminal:
        yield Lines()
        return
    with Bar() as bar:
        yield bar


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of `total` things, on a terminal only; call what is yielded with how many are done."""
    console = Console(stderr=True)
    if not console.is_terminal or total < 1:
        yield lambda _done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda done: bars.update(task, completed=done)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
