"""Which token comes next, given the model's scores; knows no session, no text and no clock.

Order and meaning of the filters are those of `transformers`' logits processors, so that one set of options gives one
distribution in both: repetition penalty, temperature, top-k, top-p, min-p. Behind the first come OpenAI's changes to
the scores: logit bias, presence and frequency penalty; and then what a grammar forbids.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_SEED = 1 << 63
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
GREEDY_BELOW = 1e-6  # scores divided by less are no numbers any more


class SamplingError(ValueError):
    """An option is out of range, or the scores are no numbers; the message is one sentence for the user."""


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. Errors: `SamplingError` names the first option that is out of range.

    temperature: 0 is greedy (the filters below are then without effect, the penalty is not). top_k: 0 is off.
    top_p: nucleus sampling (Holtzman et al. 2020), 1 is off. min_p: least probability relative to the most probable
    token's (Nguyen et al. 2024), 0 is off. repetition_penalty: over 1 discourages tokens seen before (Keskar et al.
    2019), 1 is off. seed: None draws a fresh one.

    As OpenAI's API defines them: logit_bias adds to the scores of tokens, -100 to 100 each. Of what was generated so
    far, a token's score is lessened by presence_penalty once and by frequency_penalty for every time that it came.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

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
            ("presence-penalty", self.presence_penalty, abs(self.presence_penalty) <= MAX_PENALTY, "from -2 to 2"),
            ("frequency-penalty", self.frequency_penalty, abs(self.frequency_penalty) <= MAX_PENALTY, "from -2 to 2"),
            *(
                (f"logit-bias of {i}", x, i >= 0 and abs(x) <= MAX_BIAS, "from -100 to 100, of a token id")
                for i, x in self.logit_bias.items()
            ),
            ("seed", self.seed, self.seed is None or 0 <= self.seed < MAX_SEED, "a whole number from 0 to 2^63 - 1"),
        ):
            if not valid:
                raise SamplingError(f"{name} is {value}, but must be {wanted}.")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token always wins."""
        return self.temperature < GREEDY_BELOW


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
