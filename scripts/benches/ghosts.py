"""Time to a client's first token in a swarm full of announcements by peers that are not there.

Beside it runs such a swarm without them, and a client joins one and the other in turn: whatever else the machine does
lengthens both. The figure is the median of the ratios, from as many pairs as it takes to know it (`_pairs.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _ghosts import KINDS
from _loop import run
from _pairs import in_turn, ratio
from _report import print_table, write_json
from _swarm import PEER, Shape, median, tell

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from netlab.lab import Lab
from netlab.namespace import why_not
from shoal.client.cli.children import Children
from shoal.client.local import ClientModel, load_model
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import SwarmOptions, join_swarm
from shoal.dht.invite import Invite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

GOAL = 1.2
MOST = 3  # times as many runs as were asked for, where the times vary
SHAPE = Shape(blocks=4, hidden=64, intermediate=128, heads=4)
SPANS = ("0:2", "2:4", "0:2", "2:4")
SWARMS = ("quiet", "haunted")
LINES = "rate=100Mbit rtt=20ms"
PROMPT = list(range(1, 17))


@asynccontextmanager
async def swarm(lab: Lab, folder: Path, boot: str, hosts: Sequence[str]) -> AsyncIterator[str]:
    """A bootstrap node and a peer on each host, all online; the invite."""
    async with Children({"OMP_NUM_THREADS": "1"}) as children:
        argv = ["bootstrap", "--json", "--model", "bench", "--host", lab.hosts[boot], "--port", "4001"]
        node = await children.start(boot, argv, within=lab.command(boot))
        invite = str((await node.event("invite"))["invite"])
        argv = [*PEER, "--model", str(folder), "--join", invite, "--dtype", "float32"]
        started = [
            await children.start(host, [*argv, "--host", lab.hosts[host], "--blocks", span], within=lab.command(host))
            for host, span in zip(hosts, SPANS, strict=False)
        ]
        for peer in started:
            await peer.event("event", "online")
        yield invite


async def first_token_s(lab: Lab, model: ClientModel, invite: Invite) -> float:
    """Seconds in which a client that nobody knows joins, finds its way and has its first token."""
    began = time.perf_counter()
    with lab.inside("me"):
        info = Model(SHAPE.blocks, SHAPE.hidden, model.checkpoint.revision)
        async with join_swarm(invite, info, SwarmOptions(listen=lab.hosts["me"])) as joined:
            await joined.wait_covered(30)
            async with joined.session(SessionOptions(max_tokens=len(PROMPT) + 8, wait_s=30)) as session:
                hidden = await session.step(model.ends.embed(torch.tensor(PROMPT), torch.arange(len(PROMPT))))
                model.ends.logits(hidden)[-1].argmax()
                return time.perf_counter() - began


@asynccontextmanager
async def haunting(lab: Lab, invite: str, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process that announces ghosts."""
    script = str(Path(__file__).with_name("_ghosts.py"))
    process = await asyncio.create_subprocess_exec(
        *lab.command("ghost"), sys.executable, script, invite, str(SHAPE.blocks), str(count), lab.hosts["ghost"],
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def told(process: asyncio.subprocess.Process, kind: str) -> int:
    """Have ghosts of a kind announced; how many others can see."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the ghosts' process has no pipes")
    process.stdin.write(f"{kind}\n".encode())
    answer = await process.stdout.readline()
    if not answer:
        raise RuntimeError("the ghosts' process has ended; what it said is above")
    return int(answer)


async def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Medians in both swarms with each kind."""
    model = load_model(str(folder), "float32")
    hosts = {name: [f"{name[0]}{number}" for number in range(arguments.peers)] for name in SWARMS}
    everyone = " ".join([*SWARMS, *hosts["quiet"], *hosts["haunted"]])
    with Lab(f"{arguments.lines} {everyone} ghost me") as lab:
        async with (
            swarm(lab, folder, "quiet", hosts["quiet"]) as calm,
            swarm(lab, folder, "haunted", hosts["haunted"]) as token,
            haunting(lab, token, arguments.ghosts) as process,
        ):
            quiet, haunted = Invite.parse(calm), Invite.parse(token)
            await first_token_s(lab, model, quiet)  # what is imported and compiled on the way does not count
            figures: dict[str, float] = {}
            without: list[float] = []
            for kind in arguments.kinds:
                figures[f"seen_{kind}"] = float(await told(process, kind))
                pairs = await in_turn(
                    lambda: first_token_s(lab, model, quiet), lambda: first_token_s(lab, model, haunted),
                    GOAL, arguments.runs, MOST * arguments.runs,
                )  # fmt: skip
                tell(f"{kind}: {', '.join(f'{there:.2f} (without {none:.2f})' for none, there in pairs)} s")
                figures |= {f"ttft_s_{kind}": median([there for _, there in pairs]), f"over_{kind}": ratio(pairs)}
                without += [none for none, _ in pairs]
    return figures | {"ttft_s_none": median(without)}


def main() -> None:
    """Measure, print, and say with the exit status whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as one flat object")
    parser.add_argument("--ghosts", type=int, default=500, metavar="N", help="announcements (default 500)")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help=f"at least N pairs (default 5), at most {MOST} N"
    )
    parser.add_argument("--peers", type=int, default=4, choices=(2, 4), help="real ones (default 4)")
    parser.add_argument("--lines", default=LINES, metavar="OPTIONS", help="of all hosts, as scripts/wan takes them")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="where ghosts claim to be")
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        figures = run(measure(SHAPE.save(Path(folder) / "model"), arguments))
    rows = [
        [kind, f"{figures[f'ttft_s_{kind}']:.2f}", f"{figures.get(f'over_{kind}', 1.0):.2f}", f"{GOAL:g}"]
        for kind in ("none", *arguments.kinds)
    ]
    print_table([f"{arguments.ghosts} ghosts", "first token (s)", "over none", "goal"], rows)
    write_json(arguments.json, figures)
    sys.exit(any(figures[f"over_{kind}"] > GOAL for kind in arguments.kinds))


if __name__ == "__main__":
    main()
