"""Keeps a fault in one session from the others: it ends that session with an error, and is told whole in the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from shoal.peer.errors import SessionClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.peer.errors import ShoalError

logger = logging.getLogger(__name__)


class Ending(Protocol):
    """What can end with an error."""

    def end(self, error: ShoalError) -> None:
        """No step will be answered any more."""
        ...


def alone(session: Ending, event: Callable[[], None]) -> None:
    """Let a session hear of an event. What came may be a stranger's, made to find a fault in us."""
    try:
        event()
    except Exception as fault:
        logger.exception("a session ended by a fault of this program; please report it")
        session.end(SessionClosed(f"a fault in this program ended the session: {fault!r}"))
