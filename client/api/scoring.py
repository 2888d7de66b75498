"""Log-probabilities of a prompt's own tokens, by the client's head over the last hidden states: one pass, exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.client.api.logprobs import Scored
from shoal.client.generation import off_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from shoal.client.serving import Serving

ROWS = 64  # of logits at a time: a row is as wide as the vocabulary


async def score(serving: Serving, ids: Sequence[int], top: int) -> list[Scored]:
    """Each token with its log-probability after those before it, and the `top` most probable ones in its place.

    Errors: those of `Serving.embed`.
    """
    hidden = await serving.embed(ids)
    found = [Scored(ids[0], None)]
    for start in range(0, len(ids) - 1, ROWS):
        rows = hidden[start : min(start + ROWS, len(ids) - 1)]
        logprobs = await off_loop(serving.model.ends, _log_softmax(serving), rows)
        for row, token in zip(logprobs, ids[start + 1 : start + 1 + len(rows)], strict=True):
            best = row.topk(top)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            found.append(Scored(token, row[token].item(), tuple(pairs)))
    return found


def _log_softmax(serving: Serving) -> Callable[[torch.Tensor], torch.Tensor]:
    def logprobs(hidden: torch.Tensor) -> torch.Tensor:
        return serving.model.ends.head(hidden).log_softmax(-1).cpu()

    return logprobs
