"""What may be asked of the choice of a token, and in which ranges; chooses none, and is loaded without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

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
