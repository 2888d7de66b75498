"""Steps that a peer runs as soon as they come in, in virtual time: a lone session's, and only those; nothing of what
has to happen around a step is left out.
"""

from __future__ import annotations

import asyncio

import pytest
from shoal.peer.book import Limits
from shoal.peer.tally import Tally

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world
from tests.simulated.test_pressure import back_and_forth

PROMPTS = [[5 + i, 17, 42 + i, 99, 7, 3, 250, 1, 2 * i, 90, 33] for i in range(4)]


class Quick:
    """Steps of toy engines for which every one is quick, and takes no time. `now`: how many were run so."""

    now = 0

    def run(self, engine: toy.ToyEngine, batch) -> list:
        self.now += 1
        engine._fail_if_told()
        return [engine._run_piece(piece, finite=True) for piece in batch]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Quick:
    found = Quick()
    monkeypatch.setattr(toy.ToyEngine, "quick", lambda _engine, _start, _stop, _count: True)
    monkeypatch.setattr(toy.ToyEngine, "run_now", lambda engine, batch: found.run(engine, batch))
    return found


def expected(prompt, count: int) -> list[int]:
    return toy.generate(prompt, N_BLOCKS, count)


def test_a_lone_session_s_steps_wait_for_nobody(quick):
    async def main():
        async with world(3, []) as it:
            peers = [await it.add_peer("a", 0, 3), await it.add_peer("b", 3, 6)]
            async with it.client() as swarm:
                tokens = await generate(swarm, PROMPTS[0], 12)
            return tokens, [peer.engine.batches for peer in peers]

    tokens, batches = run(main())
    assert tokens == expected(PROMPTS[0], 12)
    assert batches == [[], []]
    assert quick.now >= 2 * 12


def test_sessions_that_decode_at_the_same_time_share_steps(quick, monkeypatch):
    """They are expected back for two steps; these take no time, and so are said to take more than a round trip."""
    add = Tally.add
    monkeypatch.setattr(Tally, "add", lambda tally, tokens, rows, _s, now: add(tally, tokens, rows, 0.05, now))

    async def main():
        async with world(3, []) as it:
            peer = await it.add_peer("a", 0, 6)
            async with it.client() as swarm:
                tokens = await asyncio.gather(*(generate(swarm, prompt, 20) for prompt in PROMPTS))
            return tokens, peer.engine.batches

    tokens, batches = run(main())
    assert tokens == [expected(prompt, 20) for prompt in PROMPTS]
    assert max(batches) == len(PROMPTS)
    assert sum(batches) > len(PROMPTS) * 20 / 2


def test_pages_that_must_be_moved_first_are(quick):
    """Sessions that take turns on a device too small for two of them; rewound, each still finds its own tokens."""

    async def main():
        async with world(2, []) as it:
            peer = await it.add_peer("a", 0, 6, Limits(swap_pages=64), n_pages=10)
            async with it.client() as swarm, asyncio.TaskGroup() as tasks:
                results = []
                for prompt in PROMPTS:
                    results.append(tasks.create_task(back_and_forth(swarm, prompt, pause_s=0.4)))
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            peer.node.book.pages.check()
            return [task.result() for task in results], peer.node.book.residency.counts.saved, peer.node.steps

    results, saved, steps = run(main())
    assert results == [True] * len(PROMPTS)
    assert saved > 0
    assert quick.now > 0
    assert not steps.jobs
    assert not steps._busy


def test_a_fault_ends_the_lease_and_the_text_goes_on(quick):
    async def main():
        async with world(4, []) as it:
            peers = [await it.add_peer(name, 0, 6) for name in "ab"]
            async with it.client() as swarm:
                running = asyncio.create_task(generate(swarm, PROMPTS[0], 30))
                await asyncio.sleep(0.1)
                for peer in peers:
                    peer.engine.fault_next = bool(peer.node.book.leases)
                tokens = await running
            return tokens, [peer.engine.fault_next for peer in peers]

    tokens, left = run(main())
    assert tokens == expected(PROMPTS[0], 30)
    assert left == [False, False]
