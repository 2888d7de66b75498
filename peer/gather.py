"""Whether to hold a decode step back for sessions that are about to return. No tensors, no sockets; told the time.

Sessions that decode in step fall apart into a large and a small batch, and the engine runs two steps where one would
do. Waiting a fraction of a step for those that were just answered brings them together; a lone session never waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

SHARE = 0.25  # of a decode step is the most that is waited
FRESH = 2.0  # decode steps after its answer a session is no longer expected
DECODING_S = 0.5  # after the last answer to a decode step, more of them are to be reckoned with


class Gather:
    """Remembers which sessions were answered lately and have not come back."""

    def __init__(self) -> None:
        self._answered: dict[bytes, float] = {}
        self._since: float | None = None
        self._decoding: dict[str, float] = {}  # client -> its last answer to a decode step; the oldest one first

    def answered(self, session: bytes, client: str, now: float) -> None:
        """A decode step of this client's session was answered."""
        self._answered[session] = now
        self._decoding.pop(client, None)
        self._decoding[client] = now

    def returned(self, session: bytes) -> None:
        """The session is back, or has ended."""
        self._answered.pop(session, None)

    def expects_nobody(self) -> bool:
        """Whether no session was answered that has not come back."""
        return not self._answered

    def decoding(self, now: float) -> Collection[str]:
        """The clients that are in the midst of decoding, if not here at this moment."""
        while self._decoding and now - self._decoding[client := next(iter(self._decoding))] >= DECODING_S:
            del self._decoding[client]
        return self._decoding

    def wait_s(self, now: float, step_s: float | None) -> float:
        """How long to wait for those that are expected before the next decode step: 0 to start it now."""
        if step_s is None:
            return 0.0
        for session in [session for session, at in self._answered.items() if now - at > FRESH * step_s]:
            del self._answered[session]
        if not self._answered:
            return 0.0
        self._since = now if self._since is None else self._since
        return max(0.0, self._since + SHARE * step_s - now)

    def started(self) -> None:
        """An engine step begins: the next wait counts anew."""
        self._since = None
