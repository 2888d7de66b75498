"""The chosen chunk against a pipeline that is played through chunk by chunk, and against every other chunk."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_swarms import peer as announced
from shoal.routing.chunks import (
    LEAST_TOKENS,
    MOST_CHUNKS,
    NEARLY,
    Stage,
    choose_chunk,
    chunk_of,
    lines_hold_up,
    pipeline_s,
    stages_of,
)
from shoal.routing.cost import HOP_OVERHEAD_S
from shoal.routing.knowledge import Knowledge, Speed
from shoal.routing.route import Hop
from shoal.routing.view import View

FEW = settings(max_examples=200, deadline=None)
seconds = st.floats(0.0, 0.05)
stages = st.lists(st.builds(Stage, step_s=seconds, token_s=st.floats(0.0, 0.002)), min_size=1, max_size=7)


def played(stages, tokens: int, chunk: int) -> float:
    """When the last chunk leaves the last stage, if each stage takes one chunk at a time, in order."""
    sizes = [min(chunk, tokens - at) for at in range(0, tokens, chunk)]
    free = [0.0] * len(stages)
    for size in sizes:
        at = 0.0
        for i, stage in enumerate(stages):
            at = free[i] = max(at, free[i]) + stage.takes(size)
    return free[-1]


@FEW
@given(stages, st.integers(1, 64), st.integers(1, 40))
def test_the_formula_is_the_pipeline_played_through(stages, chunk, chunks):
    assert math.isclose(pipeline_s(stages, chunk * chunks, chunks), played(stages, chunk * chunks, chunk), abs_tol=1e-9)


@FEW
@given(stages, st.integers(1, 4000), st.integers(1, 2000))
def test_no_other_number_of_chunks_is_much_sooner_and_no_smaller_one_nearly_as_soon(stages, tokens, most_tokens):
    chunk = choose_chunk(tokens, stages, most_tokens)
    assert 1 <= chunk <= most_tokens
    fewest = math.ceil(tokens / most_tokens)
    allowed = range(fewest, max(fewest, min(MOST_CHUNKS, tokens // LEAST_TOKENS)) + 1)
    best = min(pipeline_s(stages, tokens, chunks) for chunks in allowed)
    taken = next(count for count in allowed if math.ceil(tokens / count) == chunk)
    assert pipeline_s(stages, tokens, taken) <= NEARLY * best
    assert all(pipeline_s(stages, tokens, fewer) > NEARLY * best for fewer in range(fewest, taken))
    # A last chunk that is not full brings the prompt through sooner than equal ones of the same size, never later.
    assert (
        played(stages, tokens, chunk)
        <= pipeline_s(stages, chunk * math.ceil(tokens / chunk), math.ceil(tokens / chunk)) + 1e-9
    )
    rounding = max(stage.token_s for stage in stages) * math.ceil(tokens / chunk) + sum(s.token_s for s in stages)
    assert played(stages, tokens, chunk) <= NEARLY * best + rounding + 1e-9


@pytest.mark.parametrize(
    ("stages", "chunks"),
    [
        ([Stage(0.01, 0.001)], 1),  # one stage alone gains nothing from being fed in pieces
        ([Stage(0.0, 0.001)] * 4, 26),  # pieces that cost nothing: MOST_CHUNKS take 1.09375, 26 1.11538
        ([Stage(0.0625, 0.001)] * 4, 6),  # sqrt((4 - 1) * 0.001 * 1024 / 0.0625) = 7.01: 7 take 2.088, 6 2.099, 5 2.138
    ],
)
def test_cases_that_can_be_worked_out_by_hand(stages, chunks):
    assert choose_chunk(1024, stages, 1 << 20) == math.ceil(1024 / chunks)


@pytest.mark.parametrize(("upload_bps", "slow"), [(1e9, False), (1e6, True)])
def test_a_line_is_compared_with_the_slowest_hop(upload_bps, slow):
    """A token of 8 KiB takes 8.2 ms at 1 MB/s; four blocks of 1 ms a token are sooner, of 10 ms they are not."""
    hops = (Hop("a", 0, 4), Hop("b", 4, 8))

    def found(prefill_s: float) -> bool:
        peers = [announced(name, i, i + 4, upload_bps=upload_bps) for name, i in (("a", 0), ("b", 4))]
        speeds = {name: Speed(0.01, prefill_s) for name in "ab"}
        return lines_hold_up(View(8, tuple(peers)).columns, Knowledge(speeds=speeds, upload_bps=1e9), hops, 8192)

    assert found(0.001) is slow
    assert not found(0.01)


def test_what_a_step_costs_once_is_not_in_what_a_token_costs():
    """A chunk of 128 takes 2 + 128 * 0.5 ms a block, a lone token 2: announced are 2 and 66 / 128."""
    view = View(4, (announced("a", 0, 4, 0.002, prefill_s=0.066 / 128),))
    hops = (Hop("a", 0, 4),)
    (_, stage) = stages_of(view.columns, Knowledge(), hops, 0)
    assert stage.takes(128) == pytest.approx(4 * 0.066 + HOP_OVERHEAD_S)
    assert stage.takes(512) == pytest.approx(4 * (0.002 + 512 * 0.0005) + HOP_OVERHEAD_S)
    assert chunk_of(view.columns, Knowledge(), hops, 1000, 0) == 1000
