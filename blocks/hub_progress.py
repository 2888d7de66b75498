"""How far a download is, and a bar on stderr that shows it; knows no hub and no files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from types import TracebackType


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
