"""Clients generate without pause while peers are killed, stopped, drained and restarted: no token may be wrong."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _chaos_clients import NEW_TOKENS, Client, Task, undisturbed
from _chaos_peers import ChaosError, Peer, peers_of
from _chaos_schedule import KINDS, Fault, schedule
from _loop import run
from _report import print_table, write_json
from _swarm import tell
from shoal.client.cli.children import Children
from shoal.client.cli.complaint import CommandError
from shoal.client.cli.terminal import quiet_libraries
from shoal.client.local import ClientModel, load_model
from shoal.client.options import Model
from shoal.client.swarm import join_swarm
from shoal.dht.invite import Invite

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from shoal.client.swarm import Swarm

STALLS = {"p50": 0.5, "p99": 0.99, "max": 1.0}
SETTLE_S = 3.0  # without faults, so that every client is at work before the first


@dataclass(frozen=True)
class Options:
    """What the command was told."""

    seconds: float
    every_s: float
    seed: int
    clients: int
    new_tokens: int


@dataclass(frozen=True)
class Blow:
    """A fault that happened: when, in seconds of `time.perf_counter`, and which clients were using the peer."""

    fault: Fault
    at: float
    until: float
    victims: tuple[Client, ...]


@dataclass
class Outcome:
    """All that is reported."""

    clients: list[Client]
    blows: list[Blow] = field(default_factory=list)
    skipped: int = 0
    trouble: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, float | int | str]:
        """One flat object; stalls are 0 for a kind of fault that struck nobody."""
        failures = sum(len(client.failures) for client in self.clients) + len(self.trouble)
        found: dict[str, float | int | str] = {
            "failed": failures, "wrong": sum(client.wrong for client in self.clients),
            "runs": sum(client.runs for client in self.clients),
            "tokens": sum(len(client.times) - 1 for client in self.clients),
            "repairs": sum(client.repairs for client in self.clients),
            "faults": len(self.blows), "skipped": self.skipped,
        }  # fmt: skip
        for kind in KINDS:
            stalls = self.stalls(kind)
            found[f"faults_{kind}"] = sum(blow.fault.kind == kind for blow in self.blows)
            for name, part in STALLS.items():
                found[f"stall_{name}_s_{kind}"] = _percentile(stalls, part)
        return found

    def users(self, peer: Peer) -> tuple[Client, ...]:
        """Clients whose session at work now goes through a peer."""
        return tuple(client for client in self.clients if client.uses(peer.peer_id))

    def stalls(self, kind: str) -> list[float]:
        """The longest wait for a token of every client that a fault of this kind struck, rising."""
        blows = [blow for blow in self.blows if blow.fault.kind == kind]
        return sorted(client.stall_s(blow.at, blow.until) for blow in blows for client in blow.victims)


def _percentile(rising: Sequence[float], part: float) -> float:
    return rising[min(len(rising) - 1, int(part * len(rising)))] if rising else 0.0


async def _strike(peers: list[Peer], outcome: Outcome, options: Options) -> None:
    """Carry the schedule out; at the end every peer is back."""
    began = time.perf_counter() + SETTLE_S
    async with asyncio.TaskGroup() as tasks:
        for fault in schedule(options.seed, options.seconds, options.every_s):
            await asyncio.sleep(max(0.0, began + fault.at_s - time.perf_counter()))
            online = {peer.number for peer in peers if peer.online}
            used = {peer.number for peer in peers if outcome.users(peer)}
            number = fault.victim(online, used)
            if number is None:
                outcome.skipped += 1
                tell(f"{fault.at_s:5.0f} s: nobody can be spared, so no {fault.kind}")
                continue
            victims, now = outcome.users(peers[number]), time.perf_counter()
            outcome.blows.append(Blow(fault, now, now + options.every_s, victims))
            tell(f"{fault.at_s:5.0f} s: {_words(fault, number)}; {len(victims)} clients use it")
            tasks.create_task(_suffer(peers[number], fault, outcome))
        await asyncio.sleep(max(0.0, began + options.seconds - time.perf_counter()))


def _words(fault: Fault, number: int) -> str:
    away = f" for {fault.away_s:.1f} s{' with its daemon' * fault.daemon}" if fault.away_s else ""
    return f"{fault.kind} peer {number}{away}"


async def _suffer(peer: Peer, fault: Fault, outcome: Outcome) -> None:
    try:
        await peer.suffer(fault)
    except (ChaosError, CommandError, TimeoutError) as error:
        outcome.trouble.append(f"after {_words(fault, peer.number)}: {error or 'it did not leave in time'}")


async def _chaos(options: Options) -> Outcome:
    outcome = Outcome([Client(number) for number in range(options.clients)])
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        children = await stack.enter_async_context(Children({"OMP_NUM_THREADS": "1", "HOME": folder}))
        node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "demo"])
        invite = str((await node.event("invite"))["invite"])
        peers = peers_of(children, invite, Path(folder))
        tell(f"starting {len(peers)} peers")
        model = load_model("demo", "float32")
        expecting = asyncio.gather(asyncio.to_thread(undisturbed, model, options.new_tokens))
        await asyncio.gather(*(peer.start() for peer in peers))
        swarms = [await stack.enter_async_context(_join(invite, model)) for _ in outcome.clients]
        (tasks,) = await expecting
        tell(f"{options.clients} clients, a fault every {options.every_s:g} s for {options.seconds:g} s")
        await _trial(peers, swarms, model, tasks, outcome, options)
    return outcome


def _join(invite: str, model: ClientModel) -> AbstractAsyncContextManager[Swarm]:
    spec = model.ends.spec
    return join_swarm(Invite.parse(invite), Model(spec.n_blocks, spec.hidden_size, model.checkpoint.revision))


async def _trial(
    peers: list[Peer], swarms: list[Swarm], model: ClientModel, tasks: list[Task], outcome: Outcome, options: Options
) -> None:
    over = asyncio.Event()
    for swarm in swarms:
        await swarm.wait_covered(60)
    async with asyncio.TaskGroup() as work:
        for client, swarm in zip(outcome.clients, swarms, strict=True):
            work.create_task(client.work(swarm, model, tasks, over))
        await _strike(peers, outcome, options)
        over.set()


def _report(outcome: Outcome, options: Options, path: Path | None) -> int:
    figures = outcome.figures()
    rows = [
        [kind, str(figures[f"faults_{kind}"]), str(len(outcome.stalls(kind)))]
        + [f"{figures[f'stall_{name}_s_{kind}']:.2f}" for name in STALLS]
        for kind in KINDS
    ]
    print_table(["fault", "times", "clients struck", "stall p50 s", "p99 s", "max s"], rows)
    print(
        f"\n{figures['runs']} generations, {figures['tokens']} tokens, {figures['repairs']} repairs: "
        f"{figures['failed']} failed, {figures['wrong']} wrong tokens (seed {options.seed})"
    )
    lines = [*(line for client in outcome.clients for line in client.failures), *outcome.trouble]
    for line in lines:
        print(f"failed: {line}")
    write_json(path, figures)
    bad = figures["failed"] or figures["wrong"] or not figures["runs"]
    if bad:
        print(
            f"the same schedule again: scripts/bench chaos --minutes {options.seconds / 60:g} --seed {options.seed} "
            f"--every {options.every_s:g}",
            file=sys.stderr,
        )
    return int(bool(bad))


def main() -> int:
    """Do it, print, write; 1 if anything failed or was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/bench chaos", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long faults go on (default 5)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between faults (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule (default 0)")
    parser.add_argument("--clients", type=int, default=4, help="how many generate at once (default 4)")
    parser.add_argument("--tokens", type=int, default=NEW_TOKENS, help=f"of a generation (default {NEW_TOKENS})")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    options = Options(60 * arguments.minutes, arguments.every, arguments.seed, arguments.clients, arguments.tokens)
    outcomes: list[Outcome] = []

    async def go() -> None:
        outcomes.append(await _chaos(options))

    run(go())
    return _report(outcomes[0], options, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
