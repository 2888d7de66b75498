"""Kept outputs: tiling from position 0, the budget, rewinding and cutting. Bytes only."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from shoal.peer.kept import ALWAYS_KEPT, Kept, KeptBudget, KeptOutputs
from shoal.peer.wire import Want

ROW = 4


def rows(position: int, count: int, version: int = 0) -> bytes:
    """Bytes that say which position and which writing of it they are."""
    return b"".join(bytes([version, (position + i) >> 8, (position + i) & 255, 0]) for i in range(count))


def output(step: int, position: int, count: int, version: int = 0) -> Kept:
    return Kept(step, position, count, Want.ALL, count, rows(position, count, version))


def filled(*counts: int, budget: int = 1 << 30) -> KeptOutputs:
    kept, position = KeptOutputs(budget), 0
    for step, count in enumerate(counts):
        kept.add(output(step, position, count))
        position += count
    return kept


def joined(pieces) -> bytes:
    return b"".join(piece.payload for piece in pieces)


def test_steps_are_answered_by_number():
    kept = filled(3, 1, 1)
    assert kept.answer(1) == output(1, 3, 1)
    assert kept.answer(3) is None


@pytest.mark.parametrize("stop", range(8))
@pytest.mark.parametrize("max_rows", [1, 2, 3, 100])
def test_a_replay_tiles_everything_before_its_stop(stop, max_rows):
    pieces = filled(3, 1, 1, 2).replay(stop, max_rows)
    assert joined(pieces) == rows(0, stop)
    end = 0
    for piece in pieces:
        assert (piece.step, piece.position, len(piece.payload)) == (-1, end, piece.count * ROW)
        assert piece.count <= max(max_rows, 3)  # an output is never split, only joined
        end += piece.count


def test_a_replay_past_the_end_is_not_kept():
    assert filled(3, 1).replay(5, 100) is None


def test_outputs_of_prompts_of_different_length_are_not_joined():
    kept = KeptOutputs(1 << 20)
    for step, length in enumerate([8, 8, 0, 0]):
        kept.add(replace(output(step, 2 * step, 2), length=length))
    assert [(piece.count, piece.length) for piece in kept.replay(8, 100)] == [(4, 8), (4, 0)]


def test_nothing_to_replay_is_no_failure():
    assert KeptOutputs(0).replay(0, 100) == []


def test_a_rewound_position_is_overwritten():
    kept = filled(4, 1, 1)
    kept.add(output(3, 2, 3, version=1))
    assert joined(kept.replay(5, 100)) == rows(0, 2) + rows(2, 3, version=1)
    assert kept.bytes == 5 * ROW
    assert kept.answer(3) == output(3, 2, 3, version=1)
    assert [kept.answer(step) for step in range(3)] == [None] * 3


def test_an_output_cut_by_rewinding_answers_no_step():
    kept = filled(4)
    kept.truncate(2)
    assert kept.answer(0) is None
    assert joined(kept.replay(2, 100)) == rows(0, 2)
    assert kept.bytes == 2 * ROW


def test_the_budget_takes_the_oldest_and_the_newest_stay():
    kept = filled(*[1] * (ALWAYS_KEPT + 10), budget=ALWAYS_KEPT * ROW)
    assert kept.bytes == ALWAYS_KEPT * ROW
    assert not kept.whole
    assert kept.replay(5, 100) is None
    assert kept.replay(ALWAYS_KEPT + 10, 100) is None
    assert kept.answer(9) is None
    assert kept.answer(10) == output(10, 10, 1)


def test_the_newest_stay_whatever_the_budget():
    kept = filled(*[1] * ALWAYS_KEPT, budget=0)
    assert kept.whole
    assert joined(kept.replay(ALWAYS_KEPT, 7)) == rows(0, ALWAYS_KEPT)


def test_what_begins_behind_a_cached_prompt_is_not_whole_until_it_is_rewound_to_the_start():
    kept = KeptOutputs(1 << 20)
    for step in range(2):
        kept.add(output(step, 64 + step, 1))
    assert not kept.whole
    assert kept.replay(66, 100) is None
    assert kept.answer(1) == output(1, 65, 1)
    kept.add(output(2, 0, 3, version=1))
    assert joined(kept.replay(3, 100)) == rows(0, 3, version=1)


def test_outputs_cut_down_for_the_client_cannot_be_replayed():
    kept = KeptOutputs(1 << 20)
    kept.add(Kept(0, 0, 4, Want.LAST, 1, rows(3, 1)))
    kept.add(Kept(1, 4, 2, Want.NONE, 0, b""))
    assert kept.replay(6, 100) is None
    assert kept.answer(1).rows == 0
    kept.truncate(2)  # the last row alone says nothing about the first two
    assert kept.answer(0) is None
    assert kept.bytes == 0


@pytest.mark.parametrize("seed", range(20))
def test_random_writes_and_rewinds_equal_a_plain_list(seed):
    rng, kept, plain = random.Random(seed), KeptOutputs(1 << 20), []
    for step in range(60):
        position = rng.choice([len(plain)] * 4 + [rng.randint(0, len(plain))])
        count = rng.randint(1, 5)
        kept.add(output(step, position, count, version=step))
        plain[position:] = [rows(position + i, 1, step) for i in range(count)]
        stop = rng.randint(0, len(plain))
        assert joined(kept.replay(stop, rng.randint(1, 9))) == b"".join(plain[:stop])
        assert kept.bytes == len(plain) * ROW
        assert kept.answer(step).payload == b"".join(plain[position:])


def test_leases_share_one_budget_and_give_it_back():
    shared = KeptBudget(limit_bytes=100 * ROW)
    first, second = KeptOutputs(1 << 30, shared), KeptOutputs(1 << 30, shared)
    for step in range(80):
        first.add(output(step, step, 1))
    assert first.whole
    for step in range(80):
        second.add(output(step, step, 1))
    assert not second.whole  # it is the one that went over; what the other has stays
    assert first.replay(80, 100) is not None
    assert shared.used_bytes == first.bytes + second.bytes
    first.clear()
    second.clear()
    assert shared.used_bytes == 0


def test_a_long_prompt_stays_within_the_budget_and_the_newest_outputs_can_be_given_again():
    """Messages of a prompt are large: 64 of them would be a GiB of some models."""
    kept = filled(*[50] * 40, budget=200 * ROW)
    assert kept.bytes == 200 * ROW
    assert [kept.answer(step) is not None for step in (35, 36, 39)] == [False, True, True]
    assert kept.replay(2000, 512) is None
