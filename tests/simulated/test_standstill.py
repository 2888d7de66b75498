"""Hops, and clients, that stand still for a while and go on: what had been computed is still there, and is kept."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from shoal.client.options import SessionOptions
from shoal.peer.wire import Open, Want
from shoal.routing.health import Health

from tests.sim import toy
from tests.sim.clock import on_machine, run
from tests.sim.network import messages_in
from tests.sim.swarm import N_BLOCKS, states, world

PROMPT = [5, 17, 42, 99, 7, 3, 250, 1, 2, 90, 33]
COUNT = 24


class Seen:
    """What a session went through: `recalled` inputs, peers `blamed` and asked for leases (`opened`), seconds between
    tokens."""

    def __init__(self) -> None:
        self.recalled: list[tuple[int, int]] = []
        self.blamed: list[str] = []
        self.opened: list[str] = []
        self.stalls: list[float] = []
        self.counts = (0, 0)


def generated(monkeypatch, spans, disturb, rows: int = 1, seed: int = 3, asked=None) -> Seen:
    """Generate on the machine "client" while `disturb(world, session, number)` works; the tokens are checked. Every
    step brings `rows` tokens, of which all but one are overwritten, as wrong guesses are. `asked(world)` is called
    once, when a hop has been asked for its lease."""
    seen = Seen()
    monkeypatch.setattr(Health, "failure", lambda _self, peer_id, _now: seen.blamed.append(peer_id))

    async def work(it):
        loop = asyncio.get_running_loop()
        times, tokens, new = [loop.now], list(PROMPT), list(PROMPT)

        def recall(start, stop):
            seen.recalled.append((start, stop))
            return states(tokens[start:stop])

        async with it.client() as swarm, swarm.session(SessionOptions(len(PROMPT) + COUNT + rows)) as session:
            session.recall_with(recall)
            for number in range(COUNT):
                if number and rows > 1:
                    guesses = [(new[0] + 1 + i) % toy.VOCAB for i in range(rows - 1)]
                    tokens += guesses
                    out = await session.step(states([*new, *guesses]), Want.ALL, prompt=False)
                    session.position -= len(guesses)
                    del tokens[-len(guesses) :]
                    out = out[:1]
                else:
                    out = await session.step(states(new))
                times.append(loop.now)
                new = [toy.choose(out[-1].tolist())]
                tokens += new
                seen.counts = session.stats.repairs, session.stats.moves
                disturb(it, session, number)
        assert tokens[len(PROMPT) :] == toy.generate(PROMPT, N_BLOCKS, COUNT)
        seen.stalls = [b - a for a, b in itertools.pairwise(times)]

    async def main():
        async with world(seed, spans) as it:

            def hear(_source, target, data):
                asks = any(isinstance(message, Open) for message in messages_in(data))
                if asks and not seen.opened and asked is not None:
                    asyncio.get_running_loop().call_soon(asked, it, context=it.net.context)
                seen.opened.extend([target] * asks)

            it.net.listeners.append(hear)
            await asyncio.get_running_loop().create_task(work(it), context=on_machine("client"))
            await asyncio.sleep(0.1)
            assert not any(peer.node.book.leases for peer in it.peers.values())

    run(main())
    return seen


def stands_still(it, name: str, for_s: float) -> None:
    """SIGSTOP, and SIGCONT later: all its timers then fire at once, before it reads what came meanwhile."""
    it.net.freeze(name)

    async def go_on() -> None:
        await asyncio.sleep(for_s)
        await it.net.thaw(name, clock_stood=False, late_s=0.002)

    it.tasks.create_task(go_on(), context=it.net.context.copy())


@pytest.mark.parametrize("for_s", [1.01, 1.02, 1.5, 2.2])
@pytest.mark.parametrize("spans", [[(0, 3), (3, 6)], [(0, 4), (2, 6), (0, 2)]])
def test_a_silent_hop_without_a_substitute_is_waited_for(monkeypatch, spans, for_s):
    """There is nobody to take its place, or only survivors who would have to serve otherwise: all that hops have
    computed would be lost to a pause of a second."""

    def disturb(it, session, number):
        if number == 6:
            stands_still(it, session.route[0].peer_id, for_s)

    seen = generated(monkeypatch, spans, disturb)
    assert (seen.counts, seen.recalled, seen.blamed) == ((0, 0), [], [])
    assert for_s - 0.1 < max(seen.stalls) < for_s + 0.1


@pytest.mark.parametrize("for_s", [1.5, 4.0, 12.0])
@pytest.mark.parametrize("spans", [[(0, 3), (3, 6)], [(0, 3), (3, 6), (0, 3), (3, 6)]])
def test_a_client_that_stands_still_takes_no_hop_for_silent(monkeypatch, spans, for_s):
    """Its timers fire before it reads the answers that have come meanwhile."""

    def disturb(it, session, number):
        if number == 6:
            stands_still(it, "client", for_s)

    seen = generated(monkeypatch, spans, disturb)
    assert (seen.counts, seen.recalled, seen.blamed) == ((0, 0), [], [])
    assert len(seen.opened) == 2


@pytest.mark.parametrize("for_s", [4.0, 12.0])
def test_a_client_that_stands_still_while_its_hops_open_blames_nobody(monkeypatch, for_s):
    seen = generated(monkeypatch, [(0, 3), (3, 6)], lambda *_: None, asked=lambda it: stands_still(it, "client", for_s))
    assert (seen.counts, seen.recalled, seen.blamed) == ((0, 0), [], [])
    assert len(seen.opened) == 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [2, 5])
def test_a_hop_that_is_silent_under_a_step_of_guesses_is_replaced_as_soon(monkeypatch, seed, rows):
    def disturb(it, session, number):
        if number == 6:
            it.net.hang(session.route[seed % 2].peer_id)
        if number == 18:
            it.net.resume(*it.net.hung)

    seen = generated(monkeypatch, [(0, 3), (3, 6), (0, 3), (3, 6)], disturb, rows=rows, seed=seed)
    assert (seen.counts, seen.blamed) == ((0, 1), [])
    assert 1.0 < max(seen.stalls) < 1.2


def test_what_stands_still_in_a_simulation_does_nothing():
    """The simulation's own: timers of a stopped machine, set before or after, wait, and its clock may stand, too."""

    async def ticks(loop, seen):
        while len(seen) < 6:
            seen.append((round(loop.now, 3), round(loop.time(), 3)))
            await asyncio.sleep(1.0)

    async def main(*, clock_stood: bool):
        loop, seen = asyncio.get_running_loop(), []
        task = loop.create_task(ticks(loop, seen), context=on_machine("m"))
        await asyncio.sleep(1.5)
        loop.stop_machine("m")
        await asyncio.sleep(2.25)
        assert len(seen) == 2
        loop.continue_machine("m", clock_stood=clock_stood)
        await task
        return seen[2:]

    assert run(main(clock_stood=False)) == [(3.75, 3.75), (4.75, 4.75), (5.75, 5.75), (6.75, 6.75)]
    assert run(main(clock_stood=True)) == [(4.25, 2.0), (5.25, 3.0), (6.25, 4.0), (7.25, 5.0)]
