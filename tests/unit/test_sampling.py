"""Sampling: the same distribution as transformers' logits processors, reproducible, and clear about bad options."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.client.sampling import Sampler, filtered, penalize
from shoal.client.sampling_options import Sampling, SamplingError
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB = 97


def scores_of(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def theirs(sampling: Sampling) -> LogitsProcessorList:
    """transformers' chain for these options, in the order in which its `generate` builds it."""
    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain


samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 4.0),
    top_k=st.integers(0, VOCAB + 20),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.3, 3.0)),
)


@given(samplings, st.integers(0, 2**32), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
def test_filters_equal_transformers(sampling: Sampling, seed: int, seen: list[int]) -> None:
    scores, ids = scores_of(seed), torch.tensor(seen)
    expected = theirs(sampling)(ids[None], scores.clone()[None])[0]
    penalized = penalize(scores, ids, sampling.repetition_penalty) if sampling.repetition_penalty != 1.0 else scores
    torch.testing.assert_close(filtered(penalized, sampling), expected, rtol=0, atol=0)


@given(samplings, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_chosen_token_is_never_filtered_out(sampling: Sampling, seed: int) -> None:
    scores, seen = scores_of(seed), [1, 2, 3]
    allowed = theirs(sampling)(torch.tensor([seen]), scores.clone()[None])[0] > -math.inf
    assert allowed[Sampler(sampling).choose(scores, seen).token_id]


def test_greedy_takes_the_best_and_reports_its_probability() -> None:
    scores = scores_of(5)
    choice = Sampler(Sampling()).choose(scores, [0])
    assert choice.token_id == int(scores.argmax())
    assert choice.logprob == pytest.approx(scores.log_softmax(0).max().item(), abs=1e-5)


def test_penalty_changes_the_greedy_choice() -> None:
    scores = torch.tensor([1.0, 3.0, 2.9])
    assert Sampler(Sampling()).choose(scores, [1]).token_id == 1
    assert Sampler(Sampling(repetition_penalty=1.5)).choose(scores, [1]).token_id == 2


def draws(sampling: Sampling, count: int = 40) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.choose(scores_of(n), [0]).token_id for n in range(count)]


def test_a_seed_repeats_whatever_else_draws_random_numbers() -> None:
    first = draws(Sampling(temperature=1.5, seed=7))
    torch.manual_seed(0)
    torch.rand(100)
    assert draws(Sampling(temperature=1.5, seed=7)) == first
    assert draws(Sampling(temperature=1.5, seed=8)) != first
    assert draws(Sampling(temperature=1.5)) != draws(Sampling(temperature=1.5))


def test_frequencies_follow_the_softmax() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0])
    sampler, counts = Sampler(Sampling(temperature=1.0, seed=1)), [0, 0, 0]
    for _ in range(3000):
        counts[sampler.choose(scores, [0]).token_id] += 1
    expected = scores.softmax(0)
    for count, share in zip(counts, expected.tolist(), strict=True):
        assert abs(count / 3000 - share) < 4 * math.sqrt(share * (1 - share) / 3000)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.01}, "top-p"),
        ({"min_p": 1.5}, "min-p"),
        ({"min_p": math.nan}, "min-p"),
        ({"repetition_penalty": 0.0}, "repetition-penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 63}, "seed"),
        ({"presence_penalty": 2.1}, "presence-penalty"),
        ({"frequency_penalty": math.nan}, "frequency-penalty"),
        ({"logit_bias": {5: -101.0}}, "logit-bias of 5"),
        ({"logit_bias": {-1: 0.0}}, "logit-bias of -1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float], name: str) -> None:
    with pytest.raises(SamplingError, match=name):
        Sampling(**options)


biases = st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=5)


@given(st.integers(0, 2**32), biases, st.floats(-2, 2), st.floats(-2, 2))
@settings(max_examples=60, deadline=None)
def test_bias_and_penalties_are_openai_s(seed: int, bias: dict[int, float], presence: float, frequency: float) -> None:
    """mu[j] + bias[j] - c[j] * frequency - (c[j] > 0) * presence, c counting the completion's own tokens alone."""
    sampling = Sampling(logit_bias=bias, presence_penalty=presence, frequency_penalty=frequency)
    sampler, prompt, came = Sampler(sampling), [1, 2, 2, 3], []
    for step in range(6):
        scores = scores_of(seed + step)
        expected = scores.clone()
        for token in range(VOCAB):
            count = came.count(token)
            expected[token] += bias.get(token, 0.0) - count * frequency - (count > 0) * presence
        choice = sampler.choose(scores, [*prompt, *came])
        assert expected[choice.token_id] >= expected.max() - 1e-4
        assert choice.logprob == pytest.approx(scores.log_softmax(0)[choice.token_id].item(), abs=1e-4)
        came.append(choice.token_id)


def test_a_bias_forbids_and_forces() -> None:
    scores = scores_of(3)
    best = int(scores.argmax())
    assert Sampler(Sampling(logit_bias={best: -100})).choose(scores, []).token_id != best
    forced = Sampling(temperature=1.0, logit_bias={7: 100}, seed=1)
    assert [Sampler(forced).choose(scores, []).token_id for _ in range(20)] == [7] * 20


def test_the_most_probable_tokens_are_told_as_the_model_saw_them() -> None:
    scores = scores_of(9)
    logprobs = scores.log_softmax(0)
    choice = Sampler(Sampling(temperature=0.7, top_k=2, seed=1, logit_bias={0: 50})).choose(scores, [], top=5)
    assert [token for token, _ in choice.top] == scores.argsort(descending=True)[:5].tolist()
    assert [logprob for _, logprob in choice.top] == pytest.approx(logprobs.topk(5).values.tolist(), abs=1e-5)
    assert len(Sampler(Sampling()).choose(scores, [], top=500).top) == VOCAB
    assert Sampler(Sampling()).choose(scores, []).top == ()


@given(samplings, st.integers(0, 2**32), st.sets(st.integers(0, VOCAB - 1), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_only_what_is_allowed_is_chosen_whatever_the_options(sampling: Sampling, seed: int, few: set[int]) -> None:
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[list(few)] = True
    biased = replace(sampling, logit_bias={n: 100.0 for n in range(VOCAB) if n not in few})
    assert Sampler(biased).choose(scores_of(seed), [1], allowed=allowed).token_id in few


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_scores_are_refused(bad: float) -> None:
    scores = scores_of(1)
    scores[11] = bad
    with pytest.raises(SamplingError, match="not numbers"):
        Sampler(Sampling()).choose(scores, [0])
