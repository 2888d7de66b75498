"""What a session does that no token waits for: it is done once the next step has left. Knows no session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.client.alarm import Alarm

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    Work = Callable[[], None]


class Afterwards:
    """Work that is put off by two turns of the loop: whoever was given an answer has gone on by then, and what they had
    to send has left. Then the alarm, which calls `ring`, is set to what `deadline` gives. `guard` runs both."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        guard: Callable[[Work], None],
        ring: Work,
        deadline: Callable[[], float | None],
    ) -> None:
        self._loop, self._guard, self._deadline = loop, guard, deadline
        self._alarm = Alarm(loop, lambda: guard(ring))
        self._work: list[Work] = []
        self._is_due = False

    def put_off(self, work: Work) -> None:
        """Do this afterwards, in the order in which it was given."""
        self._work.append(work)
        self.soon()

    def do(self, work: Work, *, later: bool) -> None:
        """Do this now, behind what was put off, or `later`."""
        if later:
            self.put_off(work)
        else:
            self.catch_up()
            work()

    def soon(self) -> None:
        """Set the alarm afterwards."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._loop.call_soon, self._guard, self._run)

    def catch_up(self) -> None:
        """Do now what was put off: what follows may build on it."""
        while self._work:
            self._work.pop(0)()

    def end(self) -> None:
        """There is nothing to wait for any more."""
        self._alarm.set(None)

    def _run(self) -> None:
        self._is_due = False
        self.catch_up()
        self._alarm.set(self._deadline())
