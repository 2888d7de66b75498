"""Generation over real blocks in this process: the tokens, texts and ends that transformers' own `generate` gives."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.ends import load_ends, load_tokenizer
from shoal.blocks.errors import PromptTooLong
from shoal.blocks.kv import PAGE_TOKENS, KVPool
from shoal.blocks.span import Row, Span, SpanOptions, load_span
from shoal.client import generation
from shoal.client.cli.completion import Outcome
from shoal.client.cli.generate import as_json
from shoal.client.generation import Completion, GenerationError, GenerationOptions, eos_token_ids, generate, room
from shoal.client.grammar import Grammars
from shoal.client.guess import Guesser
from shoal.client.sampling_options import Sampling, SamplingError
from shoal.client.serving import Answer
from shoal.peer.wire import Want
from shoal.routing.route import Hop
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shoal.blocks.checkpoint import Checkpoint
    from shoal.blocks.ends import Ends

VOCAB, EOS, CONTEXT = 257, 256, 128
CUTS = (0, 2, 3, 5)


class LocalSession:
    """A session whose hops are spans in this process: each with pages of its own, as on as many peers.

    `held`: tokens of the prompt that are in the KV from before.
    """

    def __init__(self, checkpoint: Checkpoint, held: int = 0) -> None:
        pages = CONTEXT // PAGE_TOKENS
        self._spans = [
            Span(span._parts, KVPool(span.spec, span.blocks, pages, span.device, span.dtype))
            for span in spans_of(checkpoint.path)
        ]
        self._pages = range(pages)
        self.position = 0
        self._held = held
        self.asked: list[tuple[int, Want]] = []
        self.recall: Callable[[int, int], torch.Tensor] | None = None

    def recall_with(self, recall: Callable[[int, int], torch.Tensor]) -> None:
        self.recall = recall

    def remember(self, tokens: Callable[[], Sequence[int]]) -> None:
        self.remembered = tokens

    async def ready(self, token_ids: Sequence[int]) -> None:
        assert self._held < len(token_ids)
        if self._held and not self.position:
            self._run(self.recall(0, self._held))

    async def step(self, hidden: torch.Tensor, want: Want = Want.LAST, *, prompt: bool = True) -> torch.Tensor:
        assert prompt or len(hidden) > 1
        self.asked.append((len(hidden), want))
        hidden = self._run(hidden)
        return hidden[-1:] if want is Want.LAST else hidden

    def _run(self, hidden: torch.Tensor) -> torch.Tensor:
        count = len(hidden)
        for span in self._spans:
            hidden = span.forward(hidden, [Row(self._pages, self.position, count)])
        self.position += count
        return hidden


@cache
def spans_of(path: Path) -> list[Span]:
    """Read once; each session has KV of its own beside their weights."""
    checkpoint, options = resolve(str(path)), SpanOptions(kv_pages=1, dtype=torch.float32)
    return [load_span(checkpoint, range(start, stop), options) for start, stop in itertools.pairwise(CUTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of random weights with a byte-level tokenizer, as transformers saves it."""
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, initializer_range=0.2, num_hidden_layers=CUTS[-1],
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, eos_token_id=EOS,
        bos_token_id=EOS,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)} | {"<eos>": EOS}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return resolve(str(folder))


@cache
def tokenizer_in(path: Path) -> PreTrainedTokenizerFast:
    """Made once: transformers takes a second for it."""
    return load_tokenizer(resolve(str(path)))


@cache
def ends_of(path: Path) -> Ends:
    """Read once: they keep nothing of a text."""
    return load_ends(resolve(str(path)), dtype=torch.float32)


def run(
    checkpoint: Checkpoint, prompt: list[int], options: GenerationOptions, session: LocalSession | None = None
) -> Completion:
    async def collect() -> Completion:
        completion = Completion(time.perf_counter())
        pieces = generate(session or LocalSession(checkpoint), ends, tokenizer_in(checkpoint.path), prompt, options)
        async for piece in pieces:
            completion.pieces.append(piece)
        return completion

    ends = ends_of(checkpoint.path)
    return asyncio.run(collect())


@cache
def unsplit(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def theirs(folder: Path, prompt: list[int], count: int, **options: object) -> list[int]:
    model = unsplit(folder)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, pad_token_id=EOS, **options)
    return out[0, len(prompt) :].tolist()


PROMPT = [5, 17, 101, 33, 200, 9, 64]


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_tokens_equal_transformers(folder: Path, checkpoint: Checkpoint, penalty: float) -> None:
    options = GenerationOptions(max_new_tokens=48, sampling=Sampling(repetition_penalty=penalty))
    expected = theirs(folder, PROMPT, 48, do_sample=False, repetition_penalty=penalty)
    assert len(set(expected)) > 3
    assert run(checkpoint, PROMPT, options).token_ids == expected


def test_text_is_the_tokens_text(checkpoint: Checkpoint) -> None:
    completion = run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=40))
    assert completion.text == tokenizer_in(checkpoint.path).decode(completion.token_ids, skip_special_tokens=True)
    assert completion.finish == "length"


def test_logprobs_are_the_models(folder: Path, checkpoint: Checkpoint) -> None:
    completion = run(
        checkpoint, PROMPT, GenerationOptions(max_new_tokens=8, sampling=Sampling(temperature=2.0, seed=1))
    )
    model = unsplit(folder)
    with torch.inference_mode():
        scores = model(torch.tensor([PROMPT + completion.token_ids])).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    expected = scores.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([p.logprob for p in completion.pieces]), expected, atol=1e-4, rtol=0)


def test_a_seed_gives_the_same_text_again(checkpoint: Checkpoint) -> None:
    options = GenerationOptions(max_new_tokens=24, sampling=Sampling(temperature=1.5, seed=11))
    first = run(checkpoint, PROMPT, options)
    assert run(checkpoint, PROMPT, options).token_ids == first.token_ids


def test_one_pass_over_the_prompt_then_one_token_a_step(checkpoint: Checkpoint) -> None:
    session = LocalSession(checkpoint)
    run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=5), session)
    assert session.asked == [(len(PROMPT), Want.LAST), *[(1, Want.LAST)] * 4]


class Oracle(Guesser):
    """Knows the text, and is wrong about some of its tokens."""

    text: Sequence[int] = ()
    wrong_every = 7

    def guess(self, ids: Sequence[int], room: int) -> list[int]:
        found = self.text[len(ids) : len(ids) + min(self._most, room)]
        return [token if at % self.wrong_every else (token + 1) % VOCAB for at, token in enumerate(found, len(ids))]


SAMPLINGS = {
    "greedy": Sampling(), "penalty": Sampling(repetition_penalty=1.3), "warm": Sampling(temperature=0.7, seed=5),
    "hot": Sampling(temperature=1.5, top_p=0.9, seed=1),
    "bias": Sampling(frequency_penalty=0.5, logit_bias={7: 3.0}),
}  # fmt: skip


def asked_for(sampling: str) -> GenerationOptions:
    return GenerationOptions(max_new_tokens=60, sampling=SAMPLINGS[sampling], top_logprobs=2)


@cache
def without_guesses(path: Path, sampling: str) -> Completion:
    return run(resolve(str(path)), PROMPT, asked_for(sampling))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("most", [1, 4, 16])
def test_guesses_change_no_token(
    checkpoint: Checkpoint, sampling: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, expected = asked_for(sampling), without_guesses(checkpoint.path, sampling)
    monkeypatch.setattr(Oracle, "text", [*PROMPT, *expected.token_ids])
    monkeypatch.setattr(generation, "Guesser", Oracle)
    session = LocalSession(checkpoint)
    found = run(checkpoint, PROMPT, replace(alone, speculate=most), session)
    assert found.token_ids == expected.token_ids
    assert (found.text, found.finish) == (expected.text, expected.finish)
    for mine, theirs in zip(found.pieces, expected.pieces, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]
    sent = [count for count, want in session.asked[1:] if want is Want.ALL]
    assert max(sent) == most + 1
    assert len(session.asked) <= 61 - len(sent) * min(most, 3) // 2
    assert session.position == len(PROMPT) + 59  # all but the last token, and no guess that was wrong
    assert session.remembered() == [*PROMPT, *expected.token_ids]


@pytest.mark.parametrize("eos", [True, False])
def test_an_end_among_guesses_ends_it_there(checkpoint: Checkpoint, eos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=40)).token_ids
    monkeypatch.setattr(Oracle, "text", [*PROMPT, *whole])
    monkeypatch.setattr(generation, "Guesser", Oracle)
    for at in range(8, 24):
        ends = frozenset([whole[at]]) if eos else frozenset()
        options = GenerationOptions(max_new_tokens=40 if eos else at + 1, eos_token_ids=ends)
        expected = run(checkpoint, PROMPT, options)
        session = LocalSession(checkpoint)
        found = run(checkpoint, PROMPT, replace(options, speculate=16), session)
        assert (found.token_ids, found.text, found.finish) == (expected.token_ids, expected.text, expected.finish)
        held = len(PROMPT) + len(found.token_ids)
        assert held - 1 <= session.position <= held  # an end that was guessed has been run


def test_guesses_that_cannot_be_are_refused() -> None:
    for wrong in (-1, 65):
        with pytest.raises(GenerationError, match=f"speculate is {wrong}, but must be a whole number from 0"):
            GenerationOptions(speculate=wrong)


def test_a_session_goes_on_where_it_stands(checkpoint: Checkpoint) -> None:
    whole = run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=12))
    session = LocalSession(checkpoint)
    begun = run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=5), session)
    rest = run(checkpoint, PROMPT + begun.token_ids, GenerationOptions(max_new_tokens=7), session)
    assert begun.token_ids + rest.token_ids == whole.token_ids
    assert session.asked[5:] == [(1, Want.LAST)] * 7


def test_what_the_hops_hold_of_the_prompt_is_not_embedded_again(checkpoint: Checkpoint) -> None:
    options = GenerationOptions(max_new_tokens=12)
    session = LocalSession(checkpoint, held=4)
    assert run(checkpoint, PROMPT, options, session).token_ids == run(checkpoint, PROMPT, options).token_ids
    assert session.asked == [(len(PROMPT) - 4, Want.LAST), *[(1, Want.LAST)] * 11]


def test_the_session_can_recall_every_input(checkpoint: Checkpoint) -> None:
    session = LocalSession(checkpoint)
    completion = run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=6), session)
    ids = PROMPT + completion.token_ids
    expected = load_ends(checkpoint, dtype=torch.float32).embed(torch.tensor(ids), torch.arange(len(ids)))
    assert session.recall is not None
    torch.testing.assert_close(session.recall(3, 11), expected[3:11], atol=0, rtol=0)


def test_an_end_token_ends_it_and_is_not_text(checkpoint: Checkpoint) -> None:
    free = run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=20))
    end = free.token_ids[9]
    first = free.token_ids.index(end)
    ended = run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=20, eos_token_ids=frozenset([end, 255])))
    assert (ended.finish, ended.token_ids) == ("eos", free.token_ids[: first + 1])
    assert ended.text == tokenizer_in(checkpoint.path).decode(free.token_ids[:first])


def test_a_stop_string_ends_it_before_it(checkpoint: Checkpoint) -> None:
    options = GenerationOptions(max_new_tokens=30, sampling=Sampling(temperature=1.2, seed=4))
    free = run(checkpoint, PROMPT, options)
    stop = next(free.text[n : n + 2] for n in range(8, 40) if free.text[n : n + 2].isascii())
    stopped = run(checkpoint, PROMPT, GenerationOptions(30, options.sampling, (stop,)))
    assert stopped.finish == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert len(stopped.token_ids) < 30


def test_the_context_is_filled_and_not_passed(folder: Path, checkpoint: Checkpoint) -> None:
    prompt = [n % 256 for n in range(CONTEXT - 3)]
    completion = run(checkpoint, prompt, GenerationOptions(max_new_tokens=50))
    assert (len(completion.token_ids), completion.finish) == (3, "length")
    assert completion.token_ids == theirs(folder, prompt, 3, do_sample=False)


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 10 * CONTEXT])
def test_a_prompt_longer_than_the_context_is_refused(checkpoint: Checkpoint, length: int) -> None:
    session = LocalSession(checkpoint)
    with pytest.raises(PromptTooLong, match=f"{length} tokens.*context of {CONTEXT}"):
        run(checkpoint, [1] * length, GenerationOptions(), session)
    assert not session.asked


@pytest.mark.parametrize(("prompt", "words"), [([], "empty"), ([1, VOCAB], "257 is not in"), ([-1], "-1 is not in")])
def test_a_prompt_that_is_none_is_refused(checkpoint: Checkpoint, prompt: list[int], words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        room(load_ends(checkpoint).spec, prompt, 1)


def test_a_session_that_holds_the_whole_prompt_is_refused(checkpoint: Checkpoint) -> None:
    session = LocalSession(checkpoint)
    session.position = len(PROMPT)
    with pytest.raises(GenerationError, match="already holds 7 tokens"):
        run(checkpoint, PROMPT, GenerationOptions(), session)


def test_broken_hidden_states_are_not_sampled_from(checkpoint: Checkpoint) -> None:
    class Broken(LocalSession):
        async def step(self, hidden: torch.Tensor, want: Want = Want.LAST) -> torch.Tensor:
            return (await super().step(hidden, want)) * float("nan")

    with pytest.raises(SamplingError, match="not numbers"):
        run(checkpoint, PROMPT, GenerationOptions(), Broken(checkpoint))


CITY = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"], "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_grammar_shapes_the_text_and_ends_it_without_a_further_step(
    checkpoint: Checkpoint, temperature: float
) -> None:
    grammars = Grammars(tokenizer_in(checkpoint.path), VOCAB, frozenset({EOS}))
    spaces = tokenizer_in(checkpoint.path)(" \n")["input_ids"]
    sampling = Sampling(temperature=temperature, seed=3, logit_bias=dict.fromkeys(spaces, -100.0))
    session = LocalSession(checkpoint)
    completion = run(checkpoint, PROMPT, GenerationOptions(90, sampling, grammar=grammars.json_schema(CITY)), session)
    city = json.loads(completion.text)
    assert type(city["n"]) is int
    assert type(city["ok"]) is bool
    assert completion.finish == "eos"
    assert completion.token_ids[-1] != EOS
    assert len(session.asked) == len(completion.pieces)


def test_a_stop_string_cuts_a_grammar_s_text(checkpoint: Checkpoint) -> None:
    grammar = Grammars(tokenizer_in(checkpoint.path), VOCAB, frozenset({EOS})).choice(["ab: cd"])
    completion = run(checkpoint, PROMPT, GenerationOptions(30, stops=(":",), grammar=grammar))
    assert (completion.text, completion.finish) == ("ab", "stop")


def test_each_piece_tells_the_most_probable_tokens(checkpoint: Checkpoint) -> None:
    completion = run(checkpoint, PROMPT, GenerationOptions(6, top_logprobs=3))
    for piece in completion.pieces:
        assert piece.top[0] == (piece.token_id, piece.logprob)
        assert len(piece.top) == 3


def test_a_bias_for_a_token_that_the_model_lacks_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(GenerationError, match="Token id 999"):
        run(checkpoint, PROMPT, GenerationOptions(sampling=Sampling(logit_bias={999: 1.0})))


@pytest.mark.parametrize("options", [{"top_logprobs": -1}, {"max_new_tokens": 0}, {"stops": ("",)}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(GenerationError, match="must"):
        GenerationOptions(**options)


@pytest.mark.parametrize(
    ("stored", "config", "expected"),
    [
        (None, {"eos_token_id": 2}, {2}),
        ({"eos_token_id": [1, 2]}, {"eos_token_id": 7}, {1, 2}),
        ({"eos_token_id": 0}, {"eos_token_id": 7}, {0}),
        ({}, {"text_config": {"eos_token_id": 9}}, {9}),
        ({}, {"eos_token_id": None}, set()),
    ],
)
def test_end_tokens_are_read_as_transformers_writes_them(
    tmp_path: Path, stored: dict[str, object] | None, config: dict[str, object], expected: set[int]
) -> None:
    if stored is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    assert eos_token_ids(tmp_path, config) == expected


def test_what_was_held_of_the_prompt_is_in_the_json(checkpoint: Checkpoint) -> None:
    completion = run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=3))
    answer = Answer(completion.started_at, completion.pieces, 0, (Hop("a", 0, 5),), repairs=2, cached_tokens=4)
    told = as_json(Outcome(PROMPT, answer))
    assert (told["cached_tokens"], told["repairs"], told["prompt_token_ids"]) == (4, 2, PROMPT)
    assert json.loads(json.dumps(told)) == told


def test_speed_counts_the_tokens_after_the_first(checkpoint: Checkpoint) -> None:
    completion = run(checkpoint, PROMPT, GenerationOptions(max_new_tokens=9))
    times = [piece.at for piece in completion.pieces]
    assert completion.ttft_s == times[0] - completion.started_at > 0
    assert completion.tokens_per_s == pytest.approx(8 / (times[-1] - times[0]))
    assert Completion(0.0).tokens_per_s == Completion(0.0, completion.pieces[:1]).tokens_per_s == 0.0
