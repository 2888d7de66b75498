"""The errors of the wire and of hops; knows no sockets and no tensors.

ShoalError
├── ProtocolError          somebody broke the protocol
│   ├── LocalProtocolError     we did: a bug here
│   └── RemoteProtocolError    they did: close the link
├── HopError               this hop will not do: try elsewhere (`.peer_id`)
│   ├── HopClosed              the stream ended or could not be opened
│   ├── HopTimedOut            silent past its deadline
│   └── HopRefused             said no, with a `Reason`
├── NoRouteError           no peers cover some blocks (`.missing`)
└── SessionClosed          the session is over
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a peer refuses: travels on the wire, and decides whether trying elsewhere helps."""

    BUSY = "busy"  # no free KV pages or leases now
    DRAINING = "draining"  # leaving the swarm
    NO_SUCH_BLOCKS = "no_such_blocks"  # does not serve that span
    WRONG_MODEL = "wrong_model"  # other swarm, model or revision
    FORBIDDEN = "forbidden"  # no proof of the swarm's secret, or not this lease's sender
    UNKNOWN_LEASE = "unknown_lease"  # never opened here, expired, or lost in a restart
    GAP = "gap"  # a step or position is missing
    LIMIT = "limit"  # a declared limit was passed
    NEXT_HOP_LOST = "next_hop_lost"  # could not push to the next hop
    NO_REPLAY = "no_replay"  # outputs are no longer kept
    BAD_OUTPUT = "bad_output"  # the span produced NaN or infinity
    FAULT = "fault"  # the peer's device failed


class ShoalError(Exception):
    """Base of every error of this package."""


class ProtocolError(ShoalError):
    """Somebody broke the protocol."""


class LocalProtocolError(ProtocolError):
    """We tried to send what a peer would refuse."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol forbids."""


class HopError(ShoalError):
    """A hop will not do; `peer_id` says which."""

    def __init__(self, peer_id: str, message: str) -> None:
        super().__init__(message)
        self.peer_id = peer_id


class HopClosed(HopError):
    """The stream to a hop ended, or could not be opened."""


class HopTimedOut(HopError):
    """A hop was silent past its deadline."""


class HopRefused(HopError):
    """A hop said no."""

    def __init__(self, peer_id: str, reason: Reason, message: str) -> None:
        super().__init__(peer_id, message)
        self.reason = reason


class NoRouteError(ShoalError):
    """No route: `missing` lists the blocks that nobody usable serves."""

    def __init__(self, message: str, missing: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class SessionClosed(ShoalError):
    """The session is over and takes no more steps."""
