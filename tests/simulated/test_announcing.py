"""What a serving peer says of its line, and what it takes back when it fails, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from shoal.blocks.errors import CheckpointError
from shoal.dht.errors import HostError, JoinError, RecordError
from shoal.peer.announcer import Announcer, Facts, withdrawn_on_failure
from shoal.peer.farewell import WITHDRAW_S
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


@pytest.mark.parametrize(
    ("failure", "answer_s", "refusal", "withdrawals"),
    [
        (CheckpointError("broken"), 0.1, None, 1),
        (MemoryError(), 0.1, RecordError("nobody takes it"), 1),
        (CheckpointError("broken"), 3600.0, None, 1),
        (JoinError("another peer has our identity"), 0.1, None, 0),
        (HostError("the daemon is gone"), 0.1, None, 0),
        (None, 0.1, None, 0),
    ],
    ids=repr,
)
def test_what_fails_takes_the_announcement_back_and_is_what_is_told(failure, answer_s, refusal, withdrawals):
    """Whether the directory takes it, refuses it or says nothing; and never that of a twin."""
    asked = []

    class Told:
        async def withdraw(self):
            asked.append(self)
            await asyncio.sleep(answer_s)
            if refusal is not None:
                raise refusal

    async def main():
        try:
            async with withdrawn_on_failure(Told()):
                if failure is not None:
                    raise failure
        except Exception as error:
            return error, asyncio.get_running_loop().time()
        return None, asyncio.get_running_loop().time()

    told, after_s = run(main())
    assert told is failure
    assert len(asked) == withdrawals
    assert after_s <= WITHDRAW_S
