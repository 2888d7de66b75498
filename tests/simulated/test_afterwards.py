"""What comes with an answer waits until the next step has left, and nothing of it is lost."""

from __future__ import annotations

import pytest
from shoal.client.options import SessionOptions
from shoal.peer.wire import Hidden, Receipt

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, states, world

PROMPT = [5, 17, 42]
STEPS = 12
ROUTES = {"one hop": [(0, 6)], "two hops": [(0, 3), (3, 6)]}


@pytest.mark.parametrize("spans", ROUTES.values(), ids=ROUTES)
def test_the_next_step_leaves_before_the_receipt_that_came_with_an_answer_is_looked_at(spans, monkeypatch):
    events: list[tuple[str, int]] = []

    async def main() -> list[int]:
        async with world(3, spans) as it, it.client() as swarm, swarm.session(SessionOptions(max_tokens=40)) as session:
            hear, send, last = session._core.on_message, swarm._pool.send, None

            def on_message(peer_id, message, now):
                if isinstance(message, Receipt) and peer_id == session.route[-1].peer_id:
                    events.append(("receipt", message.step))
                return hear(peer_id, message, now)

            def on_send(peer_id, addrs, message, asker=""):
                if isinstance(message, Hidden):
                    events.append(("step", message.step))
                send(peer_id, addrs, message, asker)

            monkeypatch.setattr(session._core, "on_message", on_message)
            monkeypatch.setattr(swarm._pool, "send", on_send)
            given, tokens = states(PROMPT), []
            for _ in range(STEPS):
                last = await session.step(given)
                tokens.append(toy.choose([int(number) for number in last[-1]]))
                given = states(tokens[-1:])
            assert {hop.steps for hop in session.stats.hops.values()} == {STEPS}
            kept = [hop.kept for hop in session.stats.hops.values()]
            assert all(one.steps for each in kept for one in each.values())
            return tokens

    assert run(main()) == toy.generate(PROMPT, N_BLOCKS, STEPS)
    order = [events.index(("receipt", number)) - events.index(("step", number + 1)) for number in range(STEPS - 1)]
    assert all(place > 0 for place in order)
    assert sorted(events) == sorted([(kind, number) for kind in ("receipt", "step") for number in range(STEPS)])
