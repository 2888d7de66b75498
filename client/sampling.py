"""Which token comes next, given the model's scores; knows no session, no text and no clock.

Order and meaning of the filters are those of `transformers`' logits processors, so that one set of options gives one
distribution in both: repetition penalty, temperature, top-k, top-p, min-p. Behind the first come OpenAI's changes to
the scores: logit bias, presence and frequency penalty; and then what a grammar forbids.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from shoal.client.sampling_options import SamplingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.sampling_options import Sampling


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token and its log-probability under the model itself, before any filter (natural logarithm). `top`:
    the most probable tokens with theirs, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one completion; owns its random generator, so that no other one disturbs it."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        self._came: Counter[int] = Counter()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(
        self, logits: torch.Tensor, seen: Sequence[int], top: int = 0, allowed: torch.Tensor | None = None
    ) -> Choice:
        """One token from `logits` `[vocab]`; `seen` are the token ids of prompt and completion so far. `top`: how many
        of the most probable tokens to tell. `allowed` `[vocab]`, booleans: which may be chosen.

        Errors: `SamplingError` if the scores hold NaN or infinity where the best one should be.
        """
        scores = logits.detach().to("cpu", torch.float32)
        if not math.isfinite(scores.max().item()):
            raise SamplingError("The model's scores are not numbers; a peer sent a broken answer.")
        token_id = self._pick(scores, seen, allowed)
        self._came[token_id] += 1
        total = scores.logsumexp(0)
        best = scores.topk(min(top, scores.numel())) if top else None
        tops = () if best is None else zip(best.indices.tolist(), (best.values - total).tolist(), strict=True)
        return Choice(token_id, (scores[token_id] - total).item(), tuple(tops))

    def _pick(self, scores: torch.Tensor, seen: Sequence[int], allowed: torch.Tensor | None) -> int:
        if self.sampling.repetition_penalty != 1.0:
            scores = penalize(scores, torch.tensor(seen), self.sampling.repetition_penalty)
        if changes := self._changes():
            scores = scores.index_add(0, torch.tensor([*changes]), torch.tensor([*changes.values()]))
        if allowed is not None:
            scores = _drop(scores, ~allowed)
        if self.sampling.greedy:
            return int(scores.argmax())
        probabilities = filtered(scores, self.sampling).softmax(0)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def _changes(self) -> dict[int, float]:
        """What is added to which scores."""
        sampling = self.sampling
        changes = {token: float(bias) for token, bias in sampling.logit_bias.items()}
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token, times in self._came.items():
                less = sampling.presence_penalty + times * sampling.frequency_penalty
                changes[token] = changes.get(token, 0.0) - less
        return changes


def penalize(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """`scores` `[vocab]` with those of `seen` `[n]` divided by `penalty` if positive, else multiplied."""
    before = scores[seen]
    return scores.scatter(0, seen, torch.where(before < 0, before * penalty, before / penalty))


def filtered(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """`scores` `[vocab]` by temperature, with -inf for the tokens that top-k, top-p and min-p leave out."""
    scores = scores / sampling.temperature
    if sampling.top_k:
        scores = _drop(scores, scores < scores.topk(min(sampling.top_k, scores.numel())).values[-1])
    if sampling.top_p < 1.0:
        scores = _drop(scores, _outside_nucleus(scores, sampling.top_p))
    if sampling.min_p > 0.0:
        probabilities = scores.softmax(0)
        scores = _drop(scores, probabilities < sampling.min_p * probabilities.max())
    return scores


def _outside_nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    ascending, order = scores.sort()
    outside = ascending.softmax(0).cumsum(0) <= 1.0 - top_p
    outside[-1] = False
    return outside.scatter(0, order, outside)


def _drop(scores: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(left_out, -math.inf)
