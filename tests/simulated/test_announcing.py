"""What a serving peer says of its line, in virtual time."""

from __future__ import annotations

import asyncio

from shoal.peer.announcer import Announcer, Facts
from shoal.peer.line import MEMORY_S
from shoal.peer.node import Node

from tests.sim.clock import run
from tests.sim.swarm import SimDirectory, world

FACTS = Facts("p0", "r1", "none", "float32", 0.001, 0.002, (), "1", "")


def test_ways_that_carry_much_less_than_the_line_are_announced(monkeypatch):
    """Two of four: one that was measured at a tenth, one at half; not one that carries as much, nor one unmeasured."""
    carried = {"slow": 1e5, "half": 5e5, "usual": 9e5}

    async def main():
        async with world(3, [(0, 6)]) as it:
            node, now = it.peers["p0"].node, asyncio.get_running_loop().time
            announcer = Announcer(SimDirectory(it.table, "p0", it.wall), node, FACTS)
            monkeypatch.setattr(Node, "rates", lambda _self: carried)
            said = [announcer.announcement().rates]  # of a line that nobody has measured, no way is slower
            node._line.saw(1e6, now())
            said.append(announcer.announcement().rates)
            await asyncio.sleep(MEMORY_S + 1)
            said.append(announcer.announcement().rates)
            return said

    assert run(main()) == [(), (("slow", 1e5), ("half", 5e5)), ()]
