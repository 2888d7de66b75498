"""Many requests over one swarm of three real peers: what each gets is what transformers computes whole, in fp32."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import torch
from processes import Processes
from python_swarm import start_swarm, whole_model
from shoal.blocks.errors import PromptTooLong
from shoal.client.calling import must_call
from shoal.client.calls import CallReader
from shoal.client.chat import Chat
from shoal.client.generation import GenerationError, GenerationOptions
from shoal.client.grammar import Grammars
from shoal.client.local import load_model
from shoal.client.options import Model
from shoal.client.sampling_options import Sampling
from shoal.client.serving import Ask, Serving
from shoal.client.swarm import join_swarm
from shoal.dht.invite import Invite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from shoal.client.local import ClientModel

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

TEXT = '''\
class PhoneBook:
    """Names and their numbers."""

    def __init__(self):
        self._numbers = {}

    def __contains__(self, name):
        return name in self._numbers

    def add(self, name, number):
        if name in self._numbers:
            raise ValueError(f"{name} is in the book already")
        self._numbers[name] = number

    def remove(self, name):
'''
SHORT = "import"


@pytest.fixture(scope="module")
def invite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Invite]:
    with Processes() as running:
        yield Invite.parse(start_swarm(running, tmp_path_factory.mktemp("keys")))


@pytest.fixture(scope="module")
def model() -> ClientModel:
    return load_model("demo", "float32")


@pytest.fixture(scope="module")
def whole() -> Iterator[torch.nn.Module]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield whole_model()
    torch.set_num_threads(threads)


def tokens(model: ClientModel, text: str = TEXT) -> tuple[int, ...]:
    return tuple(model.tokenizer(text)["input_ids"])


def greedy(whole: torch.nn.Module, ids: tuple[int, ...], count: int, **options: object) -> list[int]:
    given = torch.tensor([ids])
    how = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, **options}
    out = whole.generate(given, attention_mask=torch.ones_like(given), **how)
    return out[0, len(ids) :].tolist()


@asynccontextmanager
async def serving(invite: Invite, model: ClientModel) -> AsyncIterator[Serving]:
    spec = model.ends.spec
    about = Model(spec.n_blocks, spec.hidden_size, model.checkpoint.revision)
    async with join_swarm(invite, about) as swarm:
        await swarm.wait_covered(30)
        yield Serving(swarm, model)


async def answers(serving: Serving, ask: Ask):
    async with serving.stream(ask) as stream:
        seen = [news async for news in stream]
    for answer in stream.answers:
        assert [piece for index, piece in seen if index == answer.index] == answer.pieces
    return stream.answers


async def leases(serving: Serving, *, wanted: bool) -> None:
    """Wait until some peer announces leases, or none does."""
    async with asyncio.timeout(15):
        while any(peer.queue for peer in (await serving.swarm.refresh()).peers) != wanted:
            await asyncio.sleep(0.1)


async def test_requests_side_by_side_get_what_transformers_computes(invite, model, whole) -> None:
    prompts = [tokens(model), tokens(model, SHORT), tokens(model, "def f(x):\n    return")]
    async with serving(invite, model) as it, asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(answers(it, Ask(ids, GenerationOptions(12)))) for ids in prompts]
    for ids, run in zip(prompts, runs, strict=True):
        (answer,) = run.result()
        assert answer.token_ids == greedy(whole, ids, 12)
        assert answer.text == model.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
        assert answer.route[0].start == 0
        assert answer.route[-1].stop == 12
        assert answer.ttft_s > 0 < answer.tokens_per_s
    assert it.in_flight == 0


async def test_answers_to_one_ask_differ_by_their_seeds_and_run_the_prompt_once(invite, model) -> None:
    options, second = (GenerationOptions(16, Sampling(temperature=1.0, seed=seed)) for seed in (5, 6))
    async with serving(invite, model) as it:
        for number in range(4):
            ids = tokens(model, "\n" * number + TEXT)
            together = await answers(it, Ask(ids, options, n=3))
            (alone,) = await answers(it, Ask(ids, second))
            assert len({tuple(answer.token_ids) for answer in together}) == 3
            assert together[1].token_ids == alone.token_ids
            assert together[0].cached_tokens == 0
            if not any(answer.moves + answer.repairs for answer in together):
                assert [answer.cached_tokens for answer in together[1:]] == [(len(ids) - 1) // 64 * 64] * 2
                return
    pytest.skip("this machine is so busy that hops were replaced in every ask")


async def converse(serving: Serving, chat: Chat, opening: str, whole: torch.nn.Module) -> list[tuple[int, int]] | None:
    """Three turns: of the second and third, what was not run again, and what an earlier turn had run. None where hops
    were replaced on the way, as those behind them then forget, or a turn went another way than the one before, as peers
    that are kept from running are passed by."""
    turns, held, counts, calm, ways = [{"role": "user", "content": opening}], (), [], True, set()
    for _ in range(3):
        prompt = chat.prompt(turns)
        (answer,) = await answers(serving, Ask(prompt.token_ids, GenerationOptions(70), ignore_eos=True))
        assert answer.token_ids == greedy(whole, prompt.token_ids, 70, eos_token_id=None)
        assert prompt.token_ids[: len(held)] == held
        ways.add(tuple(answer.route))
        calm = calm and not answer.moves + answer.repairs and len(ways) == 1
        counts.append((answer.cached_tokens, len(held) // 64 * 64))
        chat.remember(prompt, answer)
        held = (*prompt.token_ids, *answer.token_ids)[:-1]  # the last one was not run
        turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "def f(self):"}]
    return counts[1:] if calm else None


async def test_the_next_turn_of_a_conversation_runs_only_what_is_new(invite, model, whole) -> None:
    async with serving(invite, model) as it:
        for number in range(4):
            counts = await converse(it, Chat(model), f"# Part {number}\n{TEXT.rstrip()}", whole)
            if counts is not None:
                assert all(cached >= before >= 128 for cached, before in counts)
                return
    pytest.skip("this machine is so busy that hops were replaced in every conversation")


async def test_guesses_change_no_token_and_save_steps(invite, model) -> None:
    ids = tokens(model, TEXT + "        if name in self._numbers:\n")
    async with serving(invite, model) as it:
        found = []
        for speculate in (0, 8):
            (answer,) = await answers(it, Ask(ids, GenerationOptions(60, speculate=speculate)))
            found.append(answer)
    alone, guessing = found
    assert guessing.token_ids == alone.token_ids
    assert guessing.steps < 0.8 * alone.steps


async def test_a_tool_is_called_with_arguments_that_fit(invite, model) -> None:
    grammars = Grammars(model.tokenizer, model.ends.spec.vocab_size, model.eos)
    place = {"type": "object", "properties": {"city": {"enum": ["Ulm", "Bonn"]}}, "required": ["city"]}
    function = {"name": "weather", "parameters": {**place, "additionalProperties": False}}
    tools = [{"type": "function", "function": function}]
    chat = Chat(model)
    prompt = chat.prompt([{"role": "user", "content": "How is the weather in Ulm?"}], tools)
    grammar = must_call(grammars, chat.calls, tools, parallel=False)
    ask = Ask(prompt.token_ids, GenerationOptions(80, Sampling(temperature=0.8, seed=1), grammar=grammar), n=2)
    async with serving(invite, model) as it:
        for answer in await answers(it, ask):
            reader = CallReader(chat.calls, ["weather"])
            (call,) = [*(part for piece in answer.pieces for part in reader.push(piece.text)), *reader.finish()]
            assert call.name == "weather"
            assert json.loads(call.arguments)["city"] in ("Ulm", "Bonn")
            assert answer.finish == "eos"


async def test_a_stream_that_is_left_frees_the_peers_at_once(invite, model) -> None:
    async with serving(invite, model) as it:
        async with it.stream(Ask(tokens(model), GenerationOptions(500), n=2)) as stream:
            await leases(it, wanted=True)
            assert it.in_flight == 1
        assert it.in_flight == 0
        assert not any(answer.finish for answer in stream.answers)
        await leases(it, wanted=False)
        async with asyncio.timeout(5):
            (after,) = await answers(it, Ask(tokens(model, SHORT), GenerationOptions(2)))
        assert len(after.pieces) == 2


async def test_embeddings_are_the_last_hidden_states(invite, model, whole) -> None:
    ids = tokens(model)
    async with serving(invite, model) as it:
        found = (await it.embed(ids)).hidden
        last = await it.embed(ids, last=True)
    with torch.no_grad():
        expected = whole.base_model(torch.tensor([ids])).last_hidden_state[0]
    assert (found - expected).abs().max() < 1e-3
    assert (last.hidden - expected[-1:]).abs().max() < 1e-3
    assert last.made.route


async def test_what_cannot_be_run_is_said_before_anything_is_sent(invite, model) -> None:
    spec = model.ends.spec
    async with serving(invite, model) as it:
        with pytest.raises(GenerationError, match="empty"):
            it.stream(Ask((), GenerationOptions()))
        with pytest.raises(GenerationError, match="empty"):
            await it.embed([])
        with pytest.raises(GenerationError, match="not in the model's vocabulary"):
            it.stream(Ask((1,), GenerationOptions(sampling=Sampling(logit_bias={spec.vocab_size: 1.0}))))
        with pytest.raises(GenerationError, match="n is 0"):
            Ask((1,), GenerationOptions(), n=0)
        with pytest.raises(GenerationError, match="not in the model's vocabulary"):
            await it.embed([spec.vocab_size])
        with pytest.raises(PromptTooLong, match="shorten"):
            it.stream(Ask((1,) * spec.max_position, GenerationOptions()))
        with pytest.raises(PromptTooLong, match="Shorten"):
            await it.embed((1,) * (spec.max_position + 1))
        assert it.in_flight == 0
