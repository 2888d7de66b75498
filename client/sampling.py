"""Which token comes next, given the model's scores; knows no session, no text and no clock.

Order and meaning of the filters are those of `transformers`' logits processors, so that one set of options gives one
distribution in both: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_SEED = 1 << 63


class SamplingError(ValueError):
    """An option is out of range, or the scores are no numbers; the message is one sentence for the user."""


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. Errors: `SamplingError` names the first option that is out of range.

    temperature: 0 is greedy (the filters below are then without effect, the penalty is not). top_k: 0 is off.
    top_p: nucleus sampling (Holtzman et al. 2020), 1 is off. min_p: least probability relative to the most probable
    token's (Nguyen et al. 2024), 0 is off. repetition_penalty: over 1 discourages tokens seen before (Keskar et al.
    2019), 1 is off. seed: None draws a fresh one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, valid, wanted in (
            ("temperature", self.temperature, 0.0 <= self.temperature < math.inf, "a number from 0 (greedy) up"),
            ("top-k", self.top_k, self.top_k >= 0, "a whole number from 0 (off) up"),
            ("top-p", self.top_p, 0.0 < self.top_p <= 1.0, "over 0 and at most 1 (off)"),
            ("min-p", self.min_p, 0.0 <= self.min_p <= 1.0, "from 0 (off) to 1"),
            (
                "repetition-penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty < math.inf,
                "over 0 (1 is off)",
            ),
            ("seed", self.seed, self.seed is None or 0 <= self.seed < MAX_SEED, "a whole number from 0 to 2^63 - 1"),
        ):
            if not valid:
                raise SamplingError(f"{name} is {value}, but must be {wanted}.")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token always wins."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token and its log-probability under the model itself, before any filter (natural logarithm)."""

    token_id: int
    logprob: float


class Sampler:
    """Chooses the tokens of one sequence; owns its random generator, so that no other sequence disturbs it."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor, seen: Sequence[int]) -> Choice:
        """One token from `logits` `[vocab]`; `seen` are the token ids of prompt and completion so far.

        Errors: `SamplingError` if the scores hold NaN or infinity where the best one should be.
        """
        scores = logits.detach().to("cpu", torch.float32)
        if not math.isfinite(scores.max().item()):
            raise SamplingError("The model's scores are not numbers; a peer sent a broken answer.")
        token_id = self._pick(scores, seen)
        return Choice(token_id, (scores[token_id] - scores.logsumexp(0)).item())

    def _pick(self, scores: torch.Tensor, seen: Sequence[int]) -> int:
        if self.sampling.repetition_penalty != 1.0:
            scores = penalize(scores, torch.tensor(seen), self.sampling.repetition_penalty)
        if self.sampling.greedy:
            return int(scores.argmax())
        probabilities = filtered(scores, self.sampling).softmax(0)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


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
