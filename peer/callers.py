"""Who opens streams to this peer: from which networks, how many in a while, and what their frames cost. No I/O."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from shoal.dht.drawing import Bound, Bounds, Shares
from shoal.dht.keys import network_of
from shoal.peer.toll import AT_ONCE, BURST, FRAME_BYTES, PER_S

if TYPE_CHECKING:
    from shoal.peer.streams import SocketStream

# A stream takes a millisecond or two to begin, TLS more than libp2p. 64 clients behind one address open one each.
BEGUN: Final = Bounds(Bound(256, 32.0), together=Bound(512, 96.0), lean=Bound(32, 4.0))
# What frames of all links of a network may lack of their pay (`toll`), in bytes; one takes some 16 microseconds.
FRAMES: Final = Bounds(
    Bound(4 * BURST * FRAME_BYTES, 2 * PER_S * FRAME_BYTES),
    together=Bound(8 * BURST * FRAME_BYTES, 4 * PER_S * FRAME_BYTES),
    lean=Bound(AT_ONCE * FRAME_BYTES, PER_S * FRAME_BYTES / 8),
)
KNOWN: Final = 1024  # peers of which is remembered whence they came


class Beginnings:
    """How many streams others may still begin."""

    def __init__(self) -> None:
        self._shares = Shares(BEGUN)

    def take(self, network: str | None) -> bool:
        """Whether one more of a network's may begin now; that it does is noted. None: it does not count."""
        now = time.monotonic()
        if network is None:
            return True
        if self._shares.left(network, now) <= 0:
            return False
        self._shares.draw(network, 1, now)
        return True


class Crowd:
    """What all links of one network owe together."""

    def __init__(self, shares: Shares, network: str) -> None:
        self._shares, self._network = shares, network

    def wait_s(self, frames: int, size: int, now: float) -> float:
        """As `Toll.wait_s`, for one of its links."""
        self._shares.draw(self._network, max(0, frames * FRAME_BYTES - size), now)
        return self._shares.wait_s(self._network, now)


class Callers:
    """Those whose streams were taken."""

    def __init__(self) -> None:
        self._frames = Shares(FRAMES)
        self._networks: dict[str, str | None] = {}

    def note(self, stream: SocketStream) -> None:
        """A stream was taken: its frames are counted with those of its network from now on."""
        network = network_of(stream.maddr)
        stream.crowd = None if network is None else Crowd(self._frames, network)
        self._networks.pop(stream.remote, None)
        self._networks[stream.remote] = network
        if len(self._networks) > KNOWN:
            del self._networks[next(iter(self._networks))]

    def whence(self, peer_id: str) -> str | None:
        """The network from which somebody's newest stream came: None if that does not count, "" if it is not known."""
        return self._networks.get(peer_id, "")
