"""Owns into how many chunks a prompt is cut: so many that its hops and lines work side by side, so few that what every
chunk costs once does not outweigh that. Pure; knows no session, no clock.

A route is a pipeline of stages, each a hop that computes or a line that carries. A chunk of k tokens keeps stage s for
t_s(k) = step_s + token_s * k seconds. c equal chunks of n tokens then take fill + (c - 1) more turns of the slowest:

    T(c) = sum_s t_s(n / c) + (c - 1) * max_s t_s(n / c)

With stage m the slowest, A = sum of step_s and B = sum of token_s that is A - a_m + b_m n + c a_m + (B - b_m) n / c: it
falls until c = sqrt((B - b_m) n / a_m), where what filling the other stages still saves is what one more turn costs.
The maximum over m of such curves is convex in c, so the search may stop where T begins to rise. The time that a line
takes whatever is sent only shifts T and plays no part.

Around its lowest point T is flat, and small chunks cost more than it knows: matrices are multiplied less well, others'
steps and lines are disturbed more often. So the fewest chunks are taken that are nearly as soon as the best number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from shoal.routing.cost import HOP_OVERHEAD_S, speeds
from shoal.routing.knowledge import CHUNK_MEASURED
from shoal.routing.legs import believed_byte_s, client_byte_s, sent_s
from shoal.routing.route import CHUNK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.routing.columns import Columns
    from shoal.routing.knowledge import Knowledge
    from shoal.routing.route import Hop

MOST_CHUNKS: Final = 32  # as many as a session has in flight
MOST_BYTES: Final = 8 * 1024 * 1024  # of one chunk: nobody else's token shall wait for more on a line
LEAST_TOKENS: Final = 16
NEARLY: Final = 1.02
LEAST_MORE: Final = 0.25  # of a chunk's time at least so much grows with its tokens


@dataclass(frozen=True, slots=True)
class Stage:
    """Seconds that a stage needs for a chunk: `step_s` for any, `token_s` for each of its tokens."""

    step_s: float
    token_s: float

    def takes(self, tokens: float) -> float:
        """Return the seconds for a chunk of so many tokens."""
        return self.step_s + self.token_s * tokens


def pipeline_s(stages: Sequence[Stage], tokens: int, chunks: int) -> float:
    """Return the seconds that a prompt takes in so many equal chunks, without what lines take for nothing."""
    times = [stage.takes(tokens / chunks) for stage in stages]
    return sum(times) + (chunks - 1) * max(times)


def choose_chunk(tokens: int, stages: Sequence[Stage], most_tokens: int) -> int:
    """Return the most tokens of a chunk (up to `most_tokens`) with which a prompt of `tokens` comes through `stages` in
    NEARLY the least time."""
    fewest = math.ceil(tokens / max(most_tokens, 1))
    most = max(fewest, min(MOST_CHUNKS, tokens // LEAST_TOKENS))
    best = fewest
    while best < most and pipeline_s(stages, tokens, best + 1) < pipeline_s(stages, tokens, best):
        best += 1
    enough_s = NEARLY * pipeline_s(stages, tokens, best)
    chunks = next(count for count in range(fewest, best + 1) if pipeline_s(stages, tokens, count) <= enough_s)
    return math.ceil(tokens / chunks)


def stages_of(columns: Columns, knowledge: Knowledge, hops: Sequence[Hop], token_bytes: int) -> list[Stage]:
    """Return the stages of a route: the client's line, the hops, the lines between them. One token comes back."""
    decode_s, prefill_s = speeds(columns, knowledge)
    line_s = believed_byte_s(columns)
    stages = [Stage(0.0, token_bytes * client_byte_s(knowledge, hops[0].peer_id))]
    for hop in hops:
        row, blocks = columns.index[hop.peer_id], hop.stop - hop.start
        step_s, each_s = float(decode_s[row]), float(prefill_s[row])
        more_s = max(each_s - step_s / CHUNK_MEASURED, LEAST_MORE * each_s)
        stages.append(Stage(HOP_OVERHEAD_S + blocks * step_s, blocks * more_s))
    for hop, after in pairwise(hops):
        way_s = sent_s(columns, hop.peer_id, after.peer_id, float(line_s[columns.index[hop.peer_id]]))
        through = (hop.peer_id, after.peer_id) in knowledge.via_client
        again_s = client_byte_s(knowledge, after.peer_id) if through else 0.0
        stages.append(Stage(0.0, token_bytes * (way_s + again_s)))
    return stages


def lines_hold_up(columns: Columns, knowledge: Knowledge, hops: Sequence[Hop], token_bytes: int) -> bool:
    """Return whether a chunk is longer on the slowest line of a route than in its slowest hop."""
    if any(hop.peer_id not in columns.index for hop in hops):
        return False
    stages = stages_of(columns, knowledge, hops, token_bytes)
    lines = [stage.token_s for stage in (stages[0], *stages[len(hops) + 1 :])]
    return max(lines) > max(stage.token_s for stage in stages[1 : len(hops) + 1])


def chunk_of(columns: Columns, knowledge: Knowledge, hops: Sequence[Hop], tokens: int, token_bytes: int) -> int:
    """Return the tokens of a chunk for a prompt of `tokens` over `hops`; a default where one of them is unknown."""
    most = max(1, MOST_BYTES // max(token_bytes, 1))
    if not hops or any(hop.peer_id not in columns.index for hop in hops):
        return min(CHUNK_TOKENS, most)
    return choose_chunk(tokens, stages_of(columns, knowledge, hops, token_bytes), most)
