"""Guesses a text's next tokens from what followed the same tokens before, and how many are worth a try. Pure: no
session, no clock, no tensors.

Several tokens pass the blocks in hardly more time than one, above all where most of a step is the network's. So a step
may carry guesses behind the newest token; the model's own scores decide how many of them were right, and the rest is
overwritten (speculative decoding, Leviathan et al. 2023; guesses from the text itself, as in prompt lookup decoding).

Of k guesses, each right with probability p if those before it were, a step of t(k) = one_s + k more_s seconds gives
1 + p + ... + p^k tokens on average. k is the number with the most tokens a second by what was seen of p and t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST: Final = 64  # guesses of one step that may be asked for
LENGTHS: Final = (4, 3, 2)  # tokens that must be the same as before; the longest match counts
REACH: Final = 1 << 15  # tokens back
FOLLOWS: Final = 0.2  # how far an estimate follows what is seen
FIRST_RIGHT: Final = 0.5  # before anything is seen
FIRST_MORE: Final = 0.05  # of a step is what a guess costs, until that is seen
FORGETS: Final = 0.995  # of what a guess is said to cost remains after each step without any: it is tried again
OUTLIER: Final = 4.0  # times as long as a step of one token is the most that a step counts for


class Guesser:
    """Guesses of one text, at most `most` at a time; 0: none, ever."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._behind: dict[tuple[int, ...], int] = {}  # these tokens -> where that begins which followed them last
        self._learnt = 0  # tokens of the text that are known by `_behind`
        self._right = FIRST_RIGHT
        self._one_s = self._more_s = 0.0  # of a step of one token, and what each guess adds
        self._kept: tuple[int, int] | None = None  # a position, and the guess for it that was not sent

    def guess(self, ids: Sequence[int], room: int) -> list[int]:
        """What may follow `ids`, which begin with those of the last call: at most `room` tokens, often none."""
        if not self._most:
            return []
        if self._kept is not None and self._kept[0] < len(ids):
            self._note(right=ids[self._kept[0]] == self._kept[1])
        self._learn(ids)
        start = next((at for n in LENGTHS if (at := self._behind.get(tuple(ids[-n:])))), None)
        if start is None:
            self._kept = None
            return []
        found: list[int] = []
        count = min(self._worth(), room)
        for at in range(start, start + max(1, count)):
            # Behind the end of the text it goes on as the guesses do.
            found.append(ids[at] if at < len(ids) else found[at - len(ids)])
        self._kept = None if count > 0 else (len(ids), found[0])
        return found[:count]

    def judged(self, offered: int, right: int) -> None:
        """Of so many guesses the first `right` were; the next one, if there is one, was not."""
        for _ in range(right):
            self._note(right=True)
        if right < offered:
            self._note(right=False)

    def took(self, guesses: int, seconds: float) -> None:
        """A step of one token and so many guesses took so long."""
        if not self._one_s:
            self._one_s, self._more_s = seconds / (1.0 + guesses * FIRST_MORE), seconds * FIRST_MORE
            return
        seconds = min(seconds, OUTLIER * self._one_s)
        if guesses:
            self._more_s += FOLLOWS * (max(0.0, seconds - self._one_s) / guesses - self._more_s)
        else:
            self._one_s += FOLLOWS * (seconds - self._one_s)
            self._more_s *= FORGETS

    def _note(self, *, right: bool) -> None:
        self._right += FOLLOWS * (right - self._right)

    def _worth(self) -> int:
        """How many guesses give the most tokens a second."""
        step_s, more_s = (self._one_s, self._more_s) if self._one_s else (1.0, FIRST_MORE)
        best, best_rate, tokens = 0, 1.0 / step_s, 1.0
        for count in range(1, self._most + 1):
            tokens += self._right**count
            if (rate := tokens / (step_s + count * more_s)) > best_rate:
                best, best_rate = count, rate
        return best

    def _learn(self, ids: Sequence[int]) -> None:
        """What all tokens but the newest follow."""
        for end in range(max(self._learnt, len(ids) - REACH) + 1, len(ids)):
            for n in LENGTHS:
                if end >= n:
                    self._behind[tuple(ids[end - n : end])] = end
        self._learnt = max(self._learnt, len(ids) - 1)
