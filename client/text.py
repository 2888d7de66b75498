"""Tokens to text while they come: whole characters only, and stop strings cut off; knows no model and no session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.client.spans import overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
UNFINISHED_CHARS = 3  # an unfinished UTF-8 character has at most 3 bytes, each of which may show as one replacement
CONTEXT_TOKENS = 16
WINDOW_TOKENS = 32


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that a tokenizer leaves out of texts: those with a part to play, and all others marked so in its files,
    which transformers' `all_special_ids` does not name."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}


class Detokenizer:
    """Text of a growing row of tokens, each part said once and as soon as later tokens cannot change it.

    `decode` turns token ids into text (a tokenizer's own, special tokens left out). A byte-level token may end inside a
    character; what is not finished is held back. Only a short window of tokens is decoded each time, with the
    prompt's last tokens as its first context, because a token's leading space depends on what stands before it.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window, self._whole = _from_whole(decode, list(prompt_ids[-CONTEXT_TOKENS:]))
        self._said = decode(self._window) if self._window else ""
        self._boundary = len(self._window)  # tokens of the window before its last part
        self._said_before = len(self._said)  # characters said of those

    def push(self, token_id: int) -> str:
        """The text that has become final with this token; often "" in the middle of a character."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if not text.startswith(self._said):  # the prompt ended inside a character
            whole = (said for said in (_finished(self._said), self._whole) if text.startswith(said))
            self._said = max(whole, key=len, default=self._said)
        if not text.startswith(self._said):
            text = self._restart()
        final = _finished(text)
        new = final[len(self._said) :]
        self._said = max(self._said, final, key=len)
        if new and final == text:
            self._shorten()
        if new:
            self._whole = self._said
        return new

    def finish(self) -> str:
        """What was held back: no more tokens will come, so an unfinished character stays a replacement character."""
        rest = self._decode(self._window)[len(self._said) :] if self._window else ""
        self._said += rest
        return rest

    def _restart(self) -> str:
        """Some decoders show a run of bytes otherwise when a wrong one follows. What was said stays said; the tokens
        after it are decoded by themselves."""
        del self._window[: self._boundary]
        text = self._decode(self._window)
        self._said = self._whole = text[: max(0, len(self._said) - self._said_before)]
        self._boundary = self._said_before = 0
        return text

    def _shorten(self) -> None:
        """All tokens so far make whole characters: forget the old ones, keep the last part as context."""
        if len(self._window) > WINDOW_TOKENS:
            del self._window[: self._boundary]
            self._said = self._decode(self._window)
        self._boundary, self._said_before = len(self._window), len(self._said)


def _from_whole(decode: Callable[[list[int]], str], ids: list[int]) -> tuple[list[int], str]:
    """`ids` from the first token on that begins no text within a character, if one of the first few does, and the text
    of their whole characters: some decoders show all of a run of bytes as replacements where its first character lacks
    its beginning, or its last one its end."""
    starts = range(min(UNFINISHED_CHARS + 1, len(ids)))
    for start in starts:
        for stop in range(len(ids), max(start, len(ids) - UNFINISHED_CHARS - 1), -1):
            text = decode(ids[start:stop])
            if not text.startswith(REPLACEMENT) and not text.endswith(REPLACEMENT):
                return ids[start:], text
    return ids[next((at for at in starts if not decode(ids[at:]).startswith(REPLACEMENT)), 0) :], ""


def _finished(text: str) -> str:
    """`text` without what may be an unfinished character at its end."""
    trailing = len(text) - len(text.rstrip(REPLACEMENT))
    return text[: len(text) - min(trailing, UNFINISHED_CHARS)]


class StopFilter:
    """Ends a text before the first stop string; holds back what may be the beginning of one.

    First is the stop string that is complete first; of two complete at the same character, the longer.
    Errors: `ValueError` on an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("A stop string must not be empty.")
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """The part of the text so far that is sure to stay; "" once `stopped`."""
        if self.stopped:
            return ""
        text = self._held + text
        if matches := [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]:
            self.stopped, self._held = True, ""
            return text[: min(matches)[1]]
        sure = len(text) - max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[sure:]
        return text[:sure]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest
