"""What a session's own leases hold is room for that session: it need not wait for others to end."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, World, generate

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
COUNT = 24
PAGES = -(-(len(PROMPT) + COUNT) // toy.PAGE_TOKENS)  # for one session
SPANS = [(0, 4), (2, 6), (0, 2)]
ANNOUNCED_S = 4.0  # by then what peers have free is known to clients


async def filled(it: World, disturb, wait_s: float = 3.0) -> list[int]:
    """Generate where no peer has room for two; `disturb(session)` once everybody knows that they are full."""
    async with it.net.tasks, it.tasks:
        for number, (start, stop) in enumerate(SPANS):
            await it.add_peer(f"p{number}", start, stop, n_pages=PAGES)

        async def each(number, session):
            if number == 6:
                await asyncio.sleep(ANNOUNCED_S)
                await disturb(session)

        try:
            async with it.client() as swarm:
                return await generate(swarm, PROMPT, COUNT, wait_s=wait_s, each=each)
        finally:
            for peer in it.peers.values():
                peer.task.cancel()


@pytest.mark.parametrize("seed", range(3))
def test_a_survivor_that_its_session_fills_may_serve_more_blocks_of_it(seed):
    """p0 dies; only p1, which the session fills with its last blocks, holds blocks 2 and 3 as well."""
    it = World(seed)

    async def disturb(session):
        assert [hop.peer_id for hop in session.route] == ["p0", "p1"]
        assert not it.peers["p1"].node.book.free_tokens > toy.PAGE_TOKENS
        await it.kill("p0")

    assert run(filled(it, disturb)) == toy.generate(PROMPT, N_BLOCKS, COUNT)


def test_a_peer_that_others_fill_is_asked_until_that_is_known():
    """p2 was filled by somebody else a moment ago. It refuses, and from then on counts as full, as others do."""
    it, asked, began = World(1), [], []

    async def disturb(session):
        book, loop = it.peers["p2"].node.book, asyncio.get_running_loop()
        assert book.residency.open(PAGES * toy.PAGE_TOKENS, 0, ("another", 0, 6)) is not None
        opens, began[:] = book.open, [loop.now]
        book.open = lambda *request: asked.append(loop.now) or opens(*request)
        await it.kill("p0")

    with pytest.raises(BaseExceptionGroup, match="TaskGroup") as raised:
        run(filled(it, disturb, wait_s=12.0))
    assert "without free memory" in repr(raised.value)
    assert asked
    assert max(asked) - began[0] < ANNOUNCED_S
