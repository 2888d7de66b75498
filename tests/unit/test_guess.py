"""Guesses come from what followed the same tokens before, and as many are sent as pay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.client.guess import Guesser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def test_what_followed_the_longest_same_tokens_last_is_guessed() -> None:
    ids = [1, 2, 3, 9, 5, 2, 3, 7, 7, 1, 2, 3]
    assert Guesser(2).guess(ids, 2) == [9, 5]
    assert Guesser(2).guess([0, *ids[1:], 8, 2, 3], 2) == [8, 2]


def test_a_repetition_goes_on_beyond_the_text_s_end() -> None:
    guesser = Guesser(7)
    guesser.judged(20, 20)
    assert guesser.guess([4, 5, 6, 4, 5, 6, 4, 5], 7) == [6, 4, 5, 6, 4, 5, 6]


@pytest.mark.parametrize(
    ("ids", "most", "room"), [([1, 2, 3, 4], 8, 8), ([1, 2, 1, 2], 0, 8), ([1, 2, 1, 2], 8, 0), ([1], 8, 8)]
)
def test_without_a_match_a_wish_or_room_nothing_is_guessed(ids: list[int], most: int, room: int) -> None:
    assert Guesser(most).guess(ids, room) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 9))
def test_guesses_follow_an_earlier_place_of_the_newest_tokens(ids: list[int], most: int, room: int) -> None:
    grown = Guesser(most)
    for end in range(1, len(ids)):
        grown.guess(ids[:end], room)
    for guesser in (Guesser(most), grown):
        found = guesser.guess(ids, room)
        assert len(found) <= min(most, room)
        text = [*ids, *found]
        ends = [at for at in range(2, len(ids)) if ids[at - 2 : at] == ids[-2:]]
        assert not found or any(text[at : at + len(found)] == found for at in ends)


def speed(step_s: Callable[[int], float], text: Sequence[int], most: int, begin: int) -> tuple[float, float]:
    """Tokens a second of a generation that will be `text` from `begin` on, and the guesses of a step on average."""
    guesser, at, seconds, sent, steps = Guesser(most), begin, 0.0, 0, 0
    while at < len(text):
        guesses = guesser.guess(text[:at], len(text) - at - 1)
        took_s = step_s(len(guesses))
        guesser.took(len(guesses), took_s)
        right = next((n for n, token in enumerate(guesses) if token != text[at + n]), len(guesses))
        guesser.judged(len(guesses), right)
        at, seconds, sent, steps = at + right + 1, seconds + took_s, sent + len(guesses), steps + 1
    return (len(text) - begin) / seconds, sent / steps


SAME = [*range(40)] * 10
HALF = [value for n in range(200) for value in (1, 2, 3, n % 7, 4, 5, 100 + n, 6)]


def test_far_peers_and_a_text_that_repeats_itself_give_many_tokens_a_step() -> None:
    alone, _ = speed(lambda _: 0.2, SAME, 0, 80)
    with_guesses, _ = speed(lambda count: 0.2 + 0.002 * count, SAME, 8, 80)
    assert with_guesses > 6 * alone


def test_where_half_is_wrong_some_are_sent_and_it_is_no_slower() -> None:
    alone, _ = speed(lambda _: 0.2, HALF, 0, 80)
    with_guesses, sent = speed(lambda count: 0.2 + 0.02 * count, HALF, 16, 80)
    assert with_guesses > 1.3 * alone
    assert sent < 8


def test_where_each_guess_costs_a_step_hardly_any_is_sent() -> None:
    alone, _ = speed(lambda _: 0.01, HALF, 0, 80)
    with_guesses, sent = speed(lambda count: 0.01 + 0.01 * count, HALF, 16, 80)
    assert with_guesses > 0.9 * alone
    assert sent < 1


def test_what_is_guessed_wrong_is_hardly_sent_and_what_becomes_right_is_again() -> None:
    wrong = [value for n in range(100) for value in (1, 2, 100 + n)]
    _, sent = speed(lambda count: 0.1 + 0.01 * count, wrong, 8, 30)
    assert sent < 0.5
    _, sent = speed(lambda count: 0.1 + 0.01 * count, [*wrong, *SAME], 8, len(wrong) + 80)
    assert sent > 4


def test_one_step_that_was_held_up_changes_little() -> None:
    guesser = Guesser(8)
    for _ in range(20):
        guesser.took(0, 0.1)
    guesser.judged(40, 40)
    guesser.took(8, 60.0)
    assert len(guesser.guess(SAME[:120], 8)) >= 4
