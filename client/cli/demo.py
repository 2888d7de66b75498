"""`shoal demo`: a whole swarm on this machine for the length of one completion; everything in it is the real thing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.client.cli.surroundings import utf8
from shoal.client.cli.terminal import (
    gap_teller,
    quiet_libraries,
    route_json,
    route_line,
    run_async,
    short,
    tell,
    write,
)
from shoal.dht.arguments import Parser, whole
from shoal.dht.invite import Invite
from shoal.dht.threads import in_thread

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable

    from shoal.client.cli.children import Children
    from shoal.client.cli.completion import Outcome
    from shoal.client.local import ClientModel

MODEL = "demo"
PROMPT = '''\
class PhoneBook:
    """Names and their numbers."""

    def __init__(self):
        self._numbers = {}

    def __contains__(self, name):
'''
# Overlapping spans of the demo model's 12 blocks: most blocks have two holders, of different quantization.
SPANS = (("0:5", "none"), ("3:8", "int8"), ("6:11", "nf4"), ("8:12", "none"))
COVERED_S = 60.0
TERMINATED = 143
EXAMPLE = "shoal demo --prompt 'class Config(dict):' --max-new-tokens 60"
SUMMARY = """\
Show Shoal at work on this machine alone: a bootstrap node and four peers, each a process of its own with some of the
demo model's blocks, quantized differently; a client that finds them, chains them and generates text; and an end
with nothing left running. Needs no GPU, no network and no account."""


@dataclass(frozen=True)
class DemoPeer:
    """A peer that is online."""

    peer_id: str
    blocks: tuple[int, int]
    quantization: str


@dataclass(frozen=True)
class DemoSwarm:
    """All peers are online; `model` is the client's part of the model."""

    invite: Invite
    peers: list[DemoPeer]
    model: ClientModel


def demo(argv: list[str]) -> int:
    """Show it work: five processes and a completion on this machine."""
    arguments = _parse(argv)
    quiet_libraries()
    try:
        outcome, peers = run_async(_demo(arguments))
    except asyncio.CancelledError:
        return TERMINATED
    if arguments.json:
        write(json.dumps(as_json(outcome, peers)) + "\n")
    else:
        write(f"\n\n{_figures(outcome)}\n")
    return 0


def as_json(outcome: Outcome, peers: list[DemoPeer]) -> dict[str, object]:
    """What `--json` prints; `tokens` is their number."""
    completion = outcome.completion
    return {
        "text": completion.text,
        "tokens": len(completion.pieces),
        "token_ids": completion.token_ids,
        "prompt_token_ids": outcome.prompt_ids,
        "route": route_json(completion.route),
        "tokens_per_s": completion.tokens_per_s,
        "ttft_s": completion.ttft_s,
        "peers": [
            {"peer": peer.peer_id, "blocks": list(peer.blocks), "quantization": peer.quantization} for peer in peers
        ],
    }


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("demo", SUMMARY, EXAMPLE)
    parser.add_argument(
        "--prompt", type=utf8, default=PROMPT, metavar="P", help="what to continue (default: a bit of Python)"
    )
    parser.add_argument("--max-new-tokens", type=whole(1), default=96, metavar="N", help="at most N (default 96)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where every peer computes")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, at the end")
    return parser.parse_args(argv)


async def _demo(arguments: argparse.Namespace) -> tuple[Outcome, list[DemoPeer]]:
    me = asyncio.current_task()
    if me is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    async with _swarm(arguments.device) as swarm:
        return await _complete(arguments, swarm), swarm.peers


@asynccontextmanager
async def _swarm(device: str) -> AsyncIterator[DemoSwarm]:
    """A bootstrap node and the peers, all online; gone at the end, with their identities."""
    from shoal.client.cli.children import Children

    threads = str(max(1, (os.cpu_count() or 1) // len(SPANS)))
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as folder:
        async with Children({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}) as children:
            tell("starting a bootstrap node")
            node = await children.start("the bootstrap node", ["bootstrap", "--json", *_identity(folder, "bootstrap")])
            invite = str((await node.event("invite"))["invite"])
            tell(f"starting {len(SPANS)} peers (some seconds: each loads its blocks and measures its speed)")
            async with asyncio.TaskGroup() as starting:
                tasks = [starting.create_task(_peer(children, n, invite, device, folder)) for n in range(len(SPANS))]
                model = starting.create_task(in_thread(_client_model))
            yield DemoSwarm(Invite.parse(invite), [task.result() for task in tasks], model.result())
            tell("stopping everything")


async def _peer(children: Children, number: int, invite: str, device: str, folder: str) -> DemoPeer:
    blocks, quantization = SPANS[number]
    argv = ["peer", "--model", MODEL, "--join", invite, "--blocks", blocks, "--quant", quantization]
    argv += ["--device", device, "--json", *_identity(folder, f"peer-{number}")]
    child = await children.start(f"peer {number + 1} ({blocks}, {quantization})", argv)
    online = await child.event("event", "online")
    start, stop = online["blocks"]
    tell(f"  {short(online['peer'])} is online with blocks {start}:{stop}, {quantization}")
    return DemoPeer(str(online["peer"]), (int(start), int(stop)), quantization)


def _identity(folder: str, name: str) -> list[str]:
    return ["--identity", str(Path(folder) / f"{name}.key")]


def _client_model() -> ClientModel:
    from shoal.client.local import load_model

    return load_model(MODEL, None)


async def _complete(arguments: argparse.Namespace, swarm: DemoSwarm) -> Outcome:
    from shoal.client.cli.completion import Listener, Request, complete
    from shoal.client.generation import GenerationOptions

    request = Request(arguments.prompt, None, GenerationOptions(arguments.max_new_tokens), COVERED_S)
    on_text = (lambda _: None) if arguments.json else _writer(arguments.prompt)
    return await complete(swarm.model, swarm.invite, request, Listener(on_text, tell, gap_teller()))


def _writer(prompt: str) -> Callable[[str], None]:
    """Writes the prompt before the first text."""
    begun: list[str] = []

    def on_text(text: str) -> None:
        if not begun:
            write(f"\n{prompt}")
        begun.append(text)
        write(text)

    return on_text


def _figures(outcome: Outcome) -> str:
    completion = outcome.completion
    return (
        f"route:               {route_line(completion.route)}\n"
        f"speed:               {completion.tokens_per_s:.1f} tokens/s ({len(completion.pieces)} tokens)\n"
        f"time to first token: {completion.ttft_s:.2f} s"
    )
