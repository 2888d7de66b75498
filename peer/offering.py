"""What a loaded peer offers its clients, within which limits: from its options, its model, its room and its device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.dht.version import shoal_version
from shoal.peer.book import Limits, Offer
from shoal.peer.line import Line
from shoal.peer.node import NodeConfig
from shoal.peer.scheduler import Budget
from shoal.peer.settle import trim

if TYPE_CHECKING:
    from shoal.peer.config import PeerConfig
    from shoal.peer.duty import Duty
    from shoal.peer.engine import DeviceEngine
    from shoal.peer.fit import Fit
    from shoal.peer.loading import Model
    from shoal.peer.measure import Throughput

STEP_BYTES = 1 << 26  # of KV that come back from host memory before one engine step: some milliseconds of a GPU's bus


def node_config(
    config: PeerConfig, model: Model, room: Fit, engine: DeviceEngine, peer_id: str, speed: Throughput,
    duty: Duty | None,
) -> NodeConfig:  # fmt: skip
    """How the node that serves `engine` is to behave."""
    step_pages = max(1, STEP_BYTES // engine.page_bytes)
    limits = Limits(kept_bytes=room.kept_bytes, swap_pages=room.swap_pages, step_pages=step_pages)
    most = config.max_batch or engine.max_batch
    prefill_s = speed.prefill_s * (engine.stop - engine.start)
    budget = Budget(engine.max_step_tokens, most, prefill_token_s=prefill_s)
    return NodeConfig(
        _offer(config, model, engine, peer_id), f"shoal/{shoal_version()}", limits, budget, at_rest=trim,
        line=Line(config.max_bandwidth), duty=duty,
    )  # fmt: skip


def _offer(config: PeerConfig, model: Model, engine: DeviceEngine, peer_id: str) -> Offer:
    invite = config.invite
    return Offer(
        namespace=invite.namespace, revision=model.checkpoint.revision, start=engine.start, stop=engine.stop,
        width=engine.width, n_pages=engine.n_pages, page_tokens=engine.page_tokens,
        check_proof=lambda proof, client, session: invite.check(proof, client, peer_id, session),
        context=model.spec.max_position,
    )  # fmt: skip
