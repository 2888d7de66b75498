"""A swarm as the pages show it: who holds what, how fast and how far, who was lost, and the way of the last answer.

Data in, JSON out: strangers' names are passed on as they are, and shown as text only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.client.presence import Presence
    from shoal.client.serving import Answer
    from shoal.routing.announcement import Announcement
    from shoal.routing.knowledge import Knowledge
    from shoal.routing.view import View

MOST_SHOWN: Final = 200  # peers that a person looks through


@dataclass(frozen=True)
class Scene:
    """What is looked at. `now`: seconds since the epoch. `last`: the newest answer, maybe still running, and `since_s`
    ago it got its newest piece."""

    name: str
    now: float
    view: View
    knowledge: Knowledge
    presence: Presence
    other_revisions: Mapping[str, str]
    in_flight: int
    last: Answer | None
    since_s: float


def picture(scene: Scene) -> dict[str, Any]:
    """The JSON of /swarm.json. Times in the unit that their names end in; `last.at` on the clock of `at`, in seconds.

    `coverage`, `missing`: by peers that are online and were not lost.
    """
    view, there = scene.view, scene.presence.there(scene.view)
    on_route = {hop.peer_id for hop in scene.last.route} if scene.last else set()
    ranked = sorted(view.peers, key=lambda peer: (peer.peer_id not in on_route, peer.start, peer.stop, peer.peer_id))
    return {
        "at": round(scene.now, 3),
        "model": scene.name,
        "revision": next((peer.revision for peer in view.peers), None),
        "n_blocks": view.n_blocks,
        "coverage": there.coverage(),
        "missing": there.missing(),
        "peers": [_peer(scene, peer) for peer in sorted(ranked[:MOST_SHOWN], key=lambda peer: (peer.start, peer.stop))],
        "hidden_peers": max(0, len(ranked) - MOST_SHOWN),
        "other_revisions": len(scene.other_revisions),
        "in_flight": scene.in_flight,
        "last": _last(scene.last, scene.now - scene.since_s) if scene.last else None,
    }


def _peer(scene: Scene, peer: Announcement) -> dict[str, Any]:
    blocks, knowledge = peer.stop - peer.start, scene.knowledge
    speed = knowledge.speeds.get(peer.peer_id)
    measured = speed is not None and not math.isnan(speed.decode_s)
    decode_s = speed.decode_s if speed is not None and measured else peer.decode_s
    rtt_s = knowledge.rtts_s.get(peer.peer_id)
    return {
        "peer": peer.peer_id,
        "name": peer.name,
        "blocks": [peer.start, peer.stop],
        "state": peer.state,
        "seen": scene.presence.of(peer.peer_id),
        "quantization": peer.quantization,
        "dtype": peer.dtype,
        "token_ms": round(decode_s * blocks * 1e3, 2),
        "token_measured": measured,
        "prompt_tokens_per_s": round(1 / (peer.prefill_s * blocks)) if peer.prefill_s > 0 else None,
        "rtt_ms": None if rtt_s is None else round(rtt_s * 1e3, 1),
        "sessions": peer.queue,
        "free_tokens": peer.free_tokens,
        "reach": peer.reach,
        "version": peer.version,
        "avoided": peer.peer_id in knowledge.banned,
    }


def _last(answer: Answer, at: float) -> dict[str, Any]:
    return {
        "route": [{"peer": hop.peer_id, "blocks": [hop.start, hop.stop]} for hop in answer.route],
        "tokens": len(answer.pieces),
        "tokens_per_s": round(answer.tokens_per_s, 2),
        "ttft_s": round(answer.ttft_s, 3) if answer.pieces else None,
        "repairs": answer.repairs,
        "moves": answer.moves,
        "cached_tokens": answer.cached_tokens,
        "finish": answer.finish,
        "at": round(at),
    }
