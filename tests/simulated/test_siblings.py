"""Several answers to one ask, in virtual time: those that wait for the first to run the prompt go where it was run."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
import torch
from shoal.client.generation import GenerationOptions
from shoal.client.options import SessionOptions
from shoal.client.prefix import Prompt
from shoal.client.serving import Ask, Serving

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, states, world

PROMPT = tuple((37 * i + i // 7) % toy.VOCAB for i in range(150))
COUNT, USUAL_S, LONG_S = 60, 0.004, 0.3


class ToyEnds:
    """The toy model's, with what serving asks of `blocks.ends`."""

    spec = SimpleNamespace(
        vocab_size=toy.VOCAB, hidden_size=toy.WIDTH, max_position=1000, n_blocks=N_BLOCKS,
        length_kind=lambda _count: 0, outgrown=lambda *_: False,
    )  # fmt: skip

    def embed(self, ids: torch.Tensor, _positions: torch.Tensor) -> torch.Tensor:
        return states(ids.tolist())

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        chosen = torch.tensor([toy.choose(row) for row in hidden.tolist()])
        return torch.nn.functional.one_hot(chosen, toy.VOCAB).float()


async def keep_busy(it, swarm, tasks):
    """Another client's prompts run at every peer: what comes next waits for `LONG_S`."""

    async def prompt():
        async with swarm.session(SessionOptions(max_tokens=200)) as session:
            await session.step(states(range(200)))

    for peer in it.peers.values():
        peer.engine.step_s = LONG_S
    while not all(peer.engine.batches for peer in it.peers.values()):
        tasks.create_task(prompt())
        await asyncio.sleep(0.01)
    for peer in it.peers.values():
        peer.engine.step_s = USUAL_S


def in_one_ask(after_the_first_token):
    """Three answers of a swarm of three peers, in which the prompt had to wait; and where a session would go then that
    did not wait for it."""

    async def main():
        async with world(3, []) as it, AsyncExitStack() as stack:
            for name in ("p0", "p1", "p2"):
                await it.add_peer(name, 0, N_BLOCKS, n_pages=1024)
            swarm, others = [await stack.enter_async_context(it.client(name)) for name in ("client", "other")]
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            serving = Serving(swarm, SimpleNamespace(ends=ToyEnds(), tokenizer=None, dtype="float32", eos=frozenset()))
            await keep_busy(it, others, tasks)
            async with serving.stream(Ask(PROMPT, GenerationOptions(COUNT), n=3)) as stream:
                ran = elsewhere = ""
                async for _ in stream:
                    if ran:
                        continue
                    ran = stream.answers[0].route[0].peer_id
                    await after_the_first_token(it, ran)
                    async with swarm.session(SessionOptions(max_tokens=300, prompt=Prompt(PROMPT))) as session:
                        await session.ready(PROMPT)
                        elsewhere = session.route[0].peer_id
            return ran, elsewhere, stream.answers

    ran, elsewhere, answers = run(main())
    assert [answer.token_ids for answer in answers] == [toy.generate(PROMPT, N_BLOCKS, COUNT)] * 3
    return ran, elsewhere, answers


def test_they_go_where_the_prompt_was_run_though_it_waited_there_for_long():
    async def nothing(_it, _ran):
        pass

    ran, elsewhere, answers = in_one_ask(nothing)
    assert elsewhere != ran
    assert [answer.cached_tokens for answer in answers] == [0, 128, 128]
    assert [[hop.peer_id for hop in answer.route] for answer in answers] == [[ran]] * 3


def test_they_leave_a_hop_that_stays_slow():
    async def slow(it, ran):
        it.peers[ran].engine.step_s = LONG_S

    ran, elsewhere, answers = in_one_ask(slow)
    assert elsewhere != ran
    assert [answer.cached_tokens for answer in answers] == [0, 128, 128]
    assert all(answer.moves == 1 and answer.route[0].peer_id != ran for answer in answers)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_they_go_elsewhere_if_it_is_not_there_any_more(end):
    async def gone(it, ran):
        await getattr(it, end)(ran)

    ran, elsewhere, answers = in_one_ask(gone)
    assert elsewhere != ran
    assert all(answer.route[0].peer_id != ran for answer in answers)
