"""`shoal peer --dry-run`: what a peer would serve, why, what the swarm would gain; nothing is loaded."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from shoal.dht.identity import Identity
from shoal.dht.remembered import Remembered
from shoal.peer.choose import knowing, look_up, presumed
from shoal.peer.config import cache_folder
from shoal.peer.join import join
from shoal.peer.matching import warn_of_others
from shoal.routing.placement import Gain, gain_of, place_span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.peer.config import PeerConfig
    from shoal.peer.fit import Fit
    from shoal.peer.loading import Model
    from shoal.routing.view import View

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Preview:
    """Blocks `start`..`stop` and why; `assumed`: what the figures stand on; bytes of weights and KV."""

    start: int
    stop: int
    why: str
    assumed: str
    fit: str
    weights_bytes: int
    kv_bytes: int
    gain: Gain


async def preview(config: PeerConfig, model: Model, room: Fit) -> int:
    """Look at the swarm, and print what a peer would do that has so much room for this model. Errors: as `serve`."""
    identity = Identity.generate()  # nobody is to take this look for the peer itself
    remembered = Remembered(cache_folder() / "swarms" / config.invite.namespace.hex())
    async with join(config, identity, model, remembered) as net:
        revision, n_blocks = model.checkpoint.revision, model.spec.n_blocks
        await warn_of_others(net.directory, net.host.peer_id, config, revision)
        view = await look_up(net.directory, net.host.peer_id, revision, n_blocks, time.time())
        rtts_s = await net.survey(view, {})
    found = await asyncio.to_thread(_preview, config, model, room, view, rtts_s)
    sys.stdout.write(json.dumps(_flat(found)) + "\n" if config.json else _words(found))
    return 0


def _preview(config: PeerConfig, model: Model, room: Fit, view: View, rtts_s: Mapping[str, float]) -> Preview:
    from shoal.peer.loading import memory_of

    speed, knowledge = presumed(view), knowing(rtts_s)
    alike = ", as with the other peers" if view.peers else ""
    measured = f"measured are the ways to {len(rtts_s)} of {len(view.peers)} peers, " if rtts_s else ""
    assumed = (
        f"a block takes {1e3 * speed.decode_s:.3g} ms a token here{alike}; {measured}ways to others that nobody has "
        f"measured take {1e3 * knowledge.default_leg_s:.3g} ms"
    )
    blocks, why = config.blocks, "they were asked for"
    if blocks is None:
        placed = place_span(view, room.blocks, speed, view.at, random.Random(), knowledge)  # noqa: S311 - no secret
        blocks, why = range(placed.start, placed.stop), placed.reason
    weights, kv = memory_of(config, model, room, blocks)
    gain = gain_of(view, blocks.start, blocks.stop, speed, knowledge)
    return Preview(blocks.start, blocks.stop, why, assumed, room.why, weights, kv, gain)


def _flat(found: Preview) -> dict[str, object]:
    figures = asdict(found)
    gain = figures.pop("gain")
    return {"event": "preview", "blocks": [figures.pop("start"), figures.pop("stop")], **figures, **gain}


def _words(found: Preview) -> str:
    gain = found.gain
    return (
        f"would serve blocks {found.start}:{found.stop}: {found.why}\n"
        f"memory: {found.weights_bytes / MIB:.1f} MiB of weights, {found.kv_bytes / MIB:.1f} MiB of KV ({found.fit})\n"
        f"the slowest blocks: {gain.bottleneck_before:.3g} tokens/s now, {gain.bottleneck_after:.3g} with this peer\n"
        f"a token through the swarm: {_ms(gain.token_before_s)} now, {_ms(gain.token_after_s)} with this peer\n"
        f"assumed: {found.assumed}\n"
    )


def _ms(seconds: float | None) -> str:
    return "impossible" if seconds is None else f"{1e3 * seconds:.3g} ms"
