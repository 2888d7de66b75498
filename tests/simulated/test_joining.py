"""A client's join: given up it leaves nothing behind, and what others serve is known as long as they do."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from shoal.client import lookout
from shoal.routing.announcement import decode

from tests.sim.clock import run
from tests.sim.swarm import world


def test_a_join_that_is_given_up_leaves_nothing_running():
    """Blocks are missing, so that it looks twice; peers were greeted after the first time."""

    async def main() -> int:
        async with world(3, [(0, 3)]) as it:
            await asyncio.sleep(1)
            before = len(asyncio.all_tasks())
            for number in range(20):
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.03), it.client(f"client{number}"):
                        pass
            await asyncio.sleep(60)
            return len(asyncio.all_tasks()) - before

    assert run(main()) == 0


def test_other_revisions_are_those_of_now_and_few_are_named():
    async def main() -> None:
        async with world(3, [(0, 3), (3, 6)]) as it, it.client() as swarm:
            record = next(iter(it.table.values()))
            for number in range(100):
                name = f"other{number}"
                it.table[name] = replace(record, peer_id=name, revision=f"revision{number}", expiry=it.wall() + 20)
            await swarm.refresh()
            assert len(swarm.other_revisions) == 100
            assert len(swarm._lookout.revision_hint()) < 200
            it.table["other0"] = replace(it.table["other0"], revision="r1")
            for number in range(1, 99):
                del it.table[f"other{number}"]
            await swarm.refresh()
            assert swarm.other_revisions == {"other99": "revision99"}

    run(main())


def test_what_was_read_before_is_not_read_again(monkeypatch):
    """In a swarm of thousands that would take longer than the tokens between two looks."""
    read = []
    monkeypatch.setattr(lookout, "decode", lambda record, n: read.append(record.peer_id) or decode(record, n))

    async def main() -> None:
        async with world(3, [(0, 3), (3, 6), (0, 6)]) as it, it.client() as swarm:
            columns = swarm.view.columns
            await it.peers["p2"].announcer.announce()
            read.clear()
            await swarm.refresh()
            assert read == ["p2"]
            assert swarm.view.former is columns

    run(main())
