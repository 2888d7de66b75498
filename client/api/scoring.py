"""Log-probabilities of a prompt's own tokens, by the client's head over the last hidden states: one pass, exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from shoal.client.api.logprobs import Scored
from shoal.client.generation import off_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.client.serving import Serving

ROWS = 64  # of logits at a time: a row is as wide as the vocabulary


async def score(serving: Serving, ids: Sequence[int], top: int) -> list[Scored]:
    """Each token with its log-probability after those before it, and the `top` most probable ones in its place.

    Errors: those of `Serving.embed`.
    """
    hidden = (await serving.embed(ids)).hidden
    found = [Scored(ids[0], None)]
    for start in range(0, len(ids) - 1, ROWS):
        rows = hidden[start : min(start + ROWS, len(ids) - 1)]
        found += await off_loop(serving.model.ends, _scorer(serving, ids[start + 1 :], top), rows)
    return found


def _scorer(serving: Serving, tokens: Sequence[int], top: int) -> Callable[[torch.Tensor], list[Scored]]:
    """Scores the first of `tokens`, one for each row of hidden states."""

    def scores(hidden: torch.Tensor) -> list[Scored]:
        logprobs = serving.model.ends.head(hidden).log_softmax(-1).cpu()
        best = logprobs.topk(top)
        own = logprobs.gather(1, torch.tensor(tokens[: len(hidden)])[:, None])[:, 0].tolist()
        tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            Scored(token, logprob, tuple(zip(*pairs, strict=True)))
            for token, logprob, pairs in zip(tokens, own, tops, strict=False)
        ]

    return scores
