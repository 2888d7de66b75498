"""Texts that grow past the length at which longrope goes to its other frequencies: as transformers, which then runs all
tokens again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import torch
from local_sessions import LocalSession, load_local
from shoal.client.generation import GenerationOptions, generate
from shoal.client.model.heads import DistributedModelForCausalLM
from shoal.client.swarm import SessionOptions
from tiny_models import save_tiny, tokens

if TYPE_CHECKING:
    from shoal.blocks.ends import Ends

SWITCH = 16
NEW = 12
HOW = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("longrope")
    return save_tiny("phi3-longrope", folder), folder


@pytest.fixture
def model(saved) -> DistributedModelForCausalLM:
    return DistributedModelForCausalLM(load_local(saved[1])).eval()


class Known(LocalSession):
    """A session whose hops hold the first `held` tokens of its prompt from before."""

    held = 0

    async def ready(self, token_ids) -> None:
        if self.held and not self.position:
            await self.step(self.recall(0, len(token_ids)))
            self.position = self.held


def generated(ends: Ends, session: Known, ids: list[int]) -> list[int]:
    async def run() -> list[int]:
        return [piece.token_id async for piece in generate(session, ends, None, ids, GenerationOptions(NEW))]

    return asyncio.run(run())


def session_of(model: DistributedModelForCausalLM) -> Known:
    blocks = model.loaded.blocks
    return Known(blocks.swarm, SessionOptions(64, blocks.start, blocks.stop))


@pytest.mark.parametrize("count", [10, SWITCH - 1, SWITCH, SWITCH + 1])
def test_a_generation_runs_all_again_once_at_the_switch(saved, model, count) -> None:
    prompt, swarm, again = tokens(1, count), model.loaded.blocks.swarm, SWITCH if count <= SWITCH else 0
    expected = saved[0].generate(prompt, max_new_tokens=NEW, **HOW)
    assert torch.equal(model.generate(prompt, max_new_tokens=NEW, **HOW), expected)
    assert swarm.sent == count + NEW - 1 + again
    swarm.sent = 0
    found = generated(model.loaded.ends, session_of(model), prompt[0].tolist())
    assert found == expected[0, count:].tolist()
    assert swarm.sent == count + NEW - 1 + again


def test_what_hops_hold_of_a_long_prompt_is_good_for_it(saved, model) -> None:
    """It is less than the switch, but was made for prompts of this one's kind."""
    prompt, session = tokens(1, SWITCH + 6), session_of(model)
    session.held = SWITCH - 4
    expected = saved[0].generate(prompt, max_new_tokens=NEW, **HOW)[0, prompt.shape[1] :].tolist()
    assert generated(model.loaded.ends, session, prompt[0].tolist()) == expected
    assert model.loaded.blocks.swarm.sent == 2 * prompt.shape[1] - session.held + NEW - 1


def test_a_session_that_was_used_for_a_shorter_text_begins_anew(saved, model) -> None:
    text, session = tokens(1, SWITCH + 6), session_of(model)
    session.recall_with(lambda start, stop: hidden[start:stop])
    hidden = model.loaded.ends.embed(text[0], torch.arange(text.shape[1]))
    asyncio.run(session.step(hidden[: SWITCH - 4]))
    expected = saved[0].generate(text, max_new_tokens=NEW, **HOW)[0, text.shape[1] :].tolist()
    assert generated(model.loaded.ends, session, text[0].tolist()) == expected


def test_beams_part_at_the_switch_as_those_of_transformers(saved, model) -> None:
    prompt, how = tokens(1, 12), {**HOW, "max_new_tokens": NEW, "num_beams": 3}
    assert torch.equal(model.generate(prompt, **how), saved[0].generate(prompt, **how))


def test_a_session_goes_over_the_switch_and_back(saved, model) -> None:
    prompt = tokens(1, 10)
    expected = saved[0].generate(prompt, max_new_tokens=NEW, **HOW)
    with model.inference_session(max_length=64) as session:
        model.generate(prompt, max_new_tokens=3, **HOW)
        assert torch.equal(model.generate(max_new_tokens=NEW - 3, **HOW), expected[:, 13:])
        session.position = 10
        assert torch.equal(model.generate(max_new_tokens=NEW, **HOW), expected[:, 10:])


def test_with_dynamic_scaling_no_token_is_run_again(tmp_path) -> None:
    """Its frequencies change with every token, and transformers keeps the keys that it has."""
    save_tiny("llama-dynamic-rope", tmp_path)
    model = DistributedModelForCausalLM(load_local(tmp_path)).eval()
    assert model.loaded.ends.spec.length_kind(18) != model.loaded.ends.spec.length_kind(19)
    with model.inference_session(max_length=15):
        model.generate(tokens(1, 8), max_new_tokens=7, **HOW)
    assert model.loaded.blocks.swarm.sent == 8 + 7 - 1
