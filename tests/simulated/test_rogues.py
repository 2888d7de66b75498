"""Peers that say the wrong thing at the right time: sessions go on elsewhere, with the right tokens and in time."""

from __future__ import annotations

import asyncio

import pytest
from shoal.peer.errors import Reason
from shoal.peer.wire import Receipt

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world

PROMPT, STEP_TIMEOUT_S = [5, 17, 42], 120.0


@pytest.mark.parametrize("reason", [Reason.GAP, Reason.NO_REPLAY])
def test_a_fast_peer_that_always_lacks_something_ends_no_session(reason):
    async def main():
        async with world(3, []) as it:
            await it.add_peer("bad", 0, 3, lie=50.0)
            await it.add_peer("good", 0, 3)
            await it.add_peer("last", 3, 6)
            node = it.peers["bad"].node

            def on_hidden(_channel, hidden):
                if (lease := node.book.find(hidden.session)) is not None:
                    node.perform(lease, lease.refuse(reason, "no"))

            node._on_hidden = on_hidden
            async with it.client() as swarm:
                return [await generate(swarm, PROMPT, 5, wait_s=60.0) for _ in range(6)]

    assert run(main()) == [toy.generate(PROMPT, N_BLOCKS, 5)] * 6


@pytest.mark.parametrize("step", [0, 1 << 30])
def test_receipts_without_answers_put_off_a_deadline_no_more_than_once(step):
    """One a minute, for the step that is waited for or for one that was never asked."""

    async def main():
        loop = asyncio.get_running_loop()
        async with world(3, [(0, 3), (3, 6)]) as it, it.client() as swarm:
            await it.add_peer("spare", 3, 6, lie=0.01)
            node, dripping = it.peers["p1"].node, []

            async def drip(lease):
                while True:
                    await asyncio.sleep(60.0)
                    link = node._links.get(lease.terms.link)
                    if link is not None and not link.closed:
                        link.send(Receipt(lease.session, lease.epoch, step, 0.0, 0.0))

            def on_hidden(_channel, hidden):
                if (lease := node.book.find(hidden.session)) is not None:
                    dripping.append(asyncio.create_task(drip(lease)))

            node._on_hidden = on_hidden
            began = loop.time()
            tokens = await generate(swarm, PROMPT, 3, wait_s=30.0)
            for task in dripping:
                task.cancel()
            return tokens, loop.time() - began

    tokens, took_s = run(main())
    assert tokens == toy.generate(PROMPT, N_BLOCKS, 3)
    assert took_s < 2 * STEP_TIMEOUT_S
