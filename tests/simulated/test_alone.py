"""A fault of ours in one session ends that session, with an error that says so, and no other."""

from __future__ import annotations

import asyncio

import pytest
from shoal.client.options import SessionOptions
from shoal.peer.errors import SessionClosed

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, states, world

PROMPT = [5, 17, 42, 99, 7]


@pytest.mark.parametrize("event", ["on_message", "on_closed", "on_timer"])
def test_a_fault_ends_its_own_session_only(event, caplog):
    def fault(*_: object) -> None:
        raise ZeroDivisionError("made for this test")

    async def main() -> list[int]:
        async with world(3, [(0, 3), (3, 6), (0, 6)]) as it, it.client() as swarm, asyncio.TaskGroup() as tasks:
            other = tasks.create_task(generate(swarm, PROMPT, 30))
            async with swarm.session(SessionOptions(max_tokens=40)) as poor:
                if event != "on_message":  # else the hops' first words are too much for it
                    await poor.ready(PROMPT)
                setattr(poor._core, event, fault)
                if event == "on_closed":
                    swarm._on_lost(poor.route[0].peer_id, "was lost")
                elif event == "on_timer":
                    soon = asyncio.get_running_loop().time() + 0.001
                    poor._core.deadline = lambda: soon
                    poor._afterwards.soon()
                await asyncio.sleep(0.1)
                with pytest.raises(SessionClosed, match="made for this test"):
                    await poor.step(states(PROMPT))
            return await other

    assert run(main()) == toy.generate(PROMPT, N_BLOCKS, 30)
    assert "ZeroDivisionError" in caplog.text


def test_a_fault_in_what_was_put_off_keeps_no_session_from_being_closed(caplog):
    def fault() -> None:
        raise ZeroDivisionError("made for this test")

    async def main() -> int:
        async with world(3, [(0, 6)]) as it, it.client() as swarm:
            async with swarm.session(SessionOptions(max_tokens=40)) as poor:
                await poor.ready(PROMPT)
                poor._afterwards.put_off(fault)
            await asyncio.sleep(1)
            return sum(len(peer.node.book.leases) for peer in it.peers.values())

    assert run(main()) == 0
    assert "ZeroDivisionError" in caplog.text
