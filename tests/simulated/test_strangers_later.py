"""Whom a client tries first when it joins, and whom if those do not answer."""

from __future__ import annotations

import asyncio

import pytest
from shoal.client.acquaintance import A_FEW, HEAD_START_S, PATIENCE
from shoal.dht.directory import Nodes

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world
from tests.sim.trouble import haunt

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
DOUBLE = [(0, 3), (3, 6), (0, 3), (3, 6)]
REAL = frozenset({"p0", "p1", "p2", "p3"})
GHOSTS = 40
LIES = frozenset(f"ghost{number}" for number in range(20))


def joined(nodes: Nodes, *, silent: bool) -> tuple[set[str], float]:
    """Who has been tried when the first token comes, and how many seconds after the joining began that was. Ghosts
    cannot be reached; or, if `silent`, nothing answers at their address."""

    async def main():
        loop = asyncio.get_running_loop()
        async with world(5, DOUBLE) as it:
            haunt(it, GHOSTS)
            if silent:
                it.net.part([("client", f"ghost{number}") for number in range(GHOSTS)])
            it.nodes = nodes
            begin = loop.time()
            async with it.client() as swarm:
                assert await generate(swarm, PROMPT, 1, wait_s=60.0) == toy.generate(PROMPT, N_BLOCKS, 1)
                return set(swarm._met._asked), loop.time() - begin

    return run(main())


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("nodes", [Nodes(named=REAL), Nodes(answering=REAL), Nodes(frozenset({"p0", "p1"}), REAL)])
def test_few_strangers_are_tried_while_those_that_are_told_of_lead_to_the_first_token(nodes, silent):
    tried, _ = joined(nodes, silent=silent)
    assert tried >= REAL
    assert len(tried - REAL) <= 2 * A_FEW


@pytest.mark.parametrize("silent", [True, False])
def test_where_nobody_is_told_of_all_are_tried_at_once(silent):
    tried, _ = joined(Nodes(), silent=silent)
    assert len(tried) == len(REAL) + GHOSTS


@pytest.mark.parametrize("silent", [True, False])
def test_who_is_told_lies_tries_the_others_a_little_later(silent):
    """A single node may name whom it likes."""
    _, without_s = joined(Nodes(named=REAL), silent=silent)
    tried, took_s = joined(Nodes(named=LIES), silent=silent)
    assert len(tried) == len(REAL) + GHOSTS
    assert took_s <= (1 + PATIENCE) * (HEAD_START_S + without_s)
