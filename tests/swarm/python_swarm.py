"""Three peers with the demo model in fp32, any one of which may die, and the same model whole in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from shoal.blocks.checkpoint import DEMO_PATH
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

    from processes import Processes, Running

SPANS = ("0:6", "4:12", "0:12")


def start_swarm(processes: Processes, keys: Path, model: str = "demo", spans: tuple[str, ...] = SPANS) -> str:
    """The invite, once all peers are online."""
    node = processes.start("bootstrap", "--json", "--model", model, "--identity", str(keys / "bootstrap"))
    invite: str = node.event("invite")["invite"]
    options = ["--quant", "none", "--dtype", "float32", "--device", "cpu", "--json"]
    peers: list[Running] = []
    for n, span in enumerate(spans):
        own = ["--blocks", span, "--identity", str(keys / f"peer-{n}")]
        peers.append(processes.start("peer", "--model", model, "--join", invite, *own, *options))
    for peer in peers:
        peer.event("event", "online")
    return invite


def whole_model() -> torch.nn.Module:
    """The demo model, all of it here, by transformers."""
    return AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float32).eval()
