"""What a volunteer chose for a peer: data only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.dht.invite import Invite
    from shoal.peer.idle import IdleLimits


class PeerError(Exception):
    """A peer cannot start or go on; the message says what to do."""


def cache_folder() -> Path:
    """Where measurements and identities of this user are kept."""
    return Path.home() / ".cache" / "shoal"


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """Everything that `shoal peer` was told. `blocks` None: chosen where it helps most; `listen` empty: as the
    invite suggests. `direct_port` 0: the one after `port`, or any; None: no direct streams. Memory in bytes; what is
    None is chosen to fit the machine. `max_bandwidth`: bytes/s each way, 0 for no limit. `idle` None: serve whether the
    machine is idle or not."""

    invite: Invite
    model: str
    blocks: range | None = None
    num_blocks: int | None = None
    quantization: str = "none"
    device: str = "cpu"
    dtype: str | None = None
    listen: str = ""
    port: int = 0
    direct_port: int | None = 0
    announce: tuple[str, ...] = ()
    identity: Path | None = None
    revision: str | None = None
    kv_tokens: int | None = None
    kv_dtype: str = "auto"
    vram: int | None = None
    host_memory: int | None = None
    offload: bool = False
    max_batch: int | None = None
    max_bandwidth: float = 0.0
    drain_s: float = 30.0
    rebalance_s: float = 600.0
    name: str = ""
    idle: IdleLimits | None = None
    max_power_w: float | None = None
    json: bool = False
