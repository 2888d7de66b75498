"""Child processes of a command: started, listened to, and ended with it; knows nothing of what they do.

A child's stdin is a pipe that nobody writes to. It is the leash: when the parent is gone, however it went, the child
reads its end and leaves (`client.cli.child`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from shoal.client.cli.complaint import CommandError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping, Sequence

TERMINATE_S = 15.0
KEPT_LINES = 50
MAX_LINE_BYTES = 1 << 20


class Child:
    """One running `shoal` command that prints a JSON object a line."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.errors: deque[str] = deque(maxlen=KEPT_LINES)
        self._process = process
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def event(self, key: str, value: object | None = None) -> dict[str, Any]:
        """The next JSON object that has `key`, with `value` if one is given.

        Errors: `CommandError` with the child's last words if it ends before.
        """
        while (found := await self._events.get()) is not None:
            if key in found and value in (None, found[key]):
                return found
        status = await self._process.wait()
        words = self.errors[-1] if self.errors else f"exit status {status}, without a word"
        raise CommandError(f"{self.name} ended too early: {words.removeprefix('shoal: ')}")

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send the child a signal."""
        self._process.send_signal(number)

    async def status(self) -> int:
        """The exit status, once it has ended."""
        return await self._process.wait()

    async def listen(self) -> None:
        """Read all that the child says until it ends."""
        await asyncio.gather(self._read_events(), self._read_errors())
        self._events.put_nowait(None)

    async def end(self) -> None:
        """Ask the child to leave; make it leave if it does not."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(TERMINATE_S):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _read_events(self) -> None:
        async for line in _lines(self._process.stdout):
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self._events.put_nowait(event)

    async def _read_errors(self) -> None:
        async for line in _lines(self._process.stderr):
            if text := line.strip():
                self.errors.append(text)
                if os.environ.get("SHOAL_DEBUG"):
                    sys.stderr.write(f"[{self.name}] {text}\n")


class Children:
    """`async with Children(environment) as children:` at its end, also by an error, none of them runs any more."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment}
        self._children: list[Child] = []
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.shield(self._end_all())
        await self._tasks.__aexit__(None, None, None)

    async def start(self, name: str, argv: Sequence[str], within: Sequence[str] = ()) -> Child:
        """Start `shoal ARGV`; `within`: a command that becomes the command put after it (`ip netns exec NAME`, say)."""
        process = await asyncio.create_subprocess_exec(
            *within, sys.executable, "-m", "shoal.client.cli.child", *argv,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=self._environment, limit=MAX_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is the parent's to hear
        )  # fmt: skip
        child = Child(name, process)
        self._children.append(child)
        self._tasks.create_task(child.listen())
        return child

    async def _end_all(self) -> None:
        await asyncio.gather(*(child.end() for child in self._children))


async def _lines(stream: asyncio.StreamReader | None) -> Any:
    """Lines of text until the stream ends; one that is longer than the limit is passed over."""
    while stream is not None and not stream.at_eof():
        try:
            line = await stream.readline()
        except ValueError:
            continue
        yield line.decode(errors="replace")
