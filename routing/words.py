"""Owns the sentences that say why there is no route. Knows no costs, no search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shoal.routing.columns import Columns
    from shoal.routing.route import RouteRequest


def name_blocks(blocks: Sequence[int]) -> str:
    """Return ascending block numbers as people say them: "block 3", "blocks 8-11 and 14"."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    names = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"block{'' if len(blocks) == 1 else 's'} {listed}"


def why_missing(columns: Columns, request: RouteRequest, missing: Sequence[int], now: float) -> str:
    """Return one sentence: which blocks nobody can serve, what keeps their holders from it, what to do."""
    verb = "has" if len(missing) == 1 else "have"
    reasons = sorted(set(_reasons(columns, request, missing, now)))
    if not reasons:
        advice = f"start a peer that serves {'it' if len(missing) == 1 else 'them'}, or wait for one"
        return f"{name_blocks(missing).capitalize()} {verb} no holder: {advice}."
    return f"{name_blocks(missing).capitalize()} {verb} only holders that are {', '.join(reasons)}: try again soon."


def _reasons(columns: Columns, request: RouteRequest, missing: Sequence[int], now: float) -> Iterable[str]:
    blocks = np.array(missing)
    held = ((columns.start[:, None] <= blocks) & (blocks < columns.stop[:, None])).any(axis=1)
    for row in np.flatnonzero(held):
        if columns.expiry[row] <= now:
            yield "gone"
        elif not columns.online[row]:
            yield "still joining" if columns.joining[row] else "paused" if columns.paused[row] else "leaving"
        elif columns.free_tokens[row] < request.kv_tokens and columns.ids[row] not in request.ours:
            yield f"without free memory for {request.kv_tokens} tokens"
        elif columns.ids[row] in request.knowledge.banned:
            yield "failing"
        else:
            yield "to be avoided"
