"""Log-probabilities in OpenAI's two shapes: one for chat, an older one for completions. Pure: data in, data out."""

from __future__ import annotations

from codecs import getincrementaldecoder
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.client.api.tokens import TokenTexts
    from shoal.client.generation import Piece


@dataclass(frozen=True, slots=True)
class Scored:
    """A token and what the model thought of it; `logprob` None for a prompt's first token, which follows nothing."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def scored(pieces: Iterable[Piece]) -> list[Scored]:
    """What pieces say."""
    return [Scored(piece.token_id, piece.logprob, piece.top) for piece in pieces]


def chat_logprobs(texts: TokenTexts, tokens: Iterable[Scored]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""
    content = [
        {**_entry(texts, token.token_id, token.logprob), "top_logprobs": [_entry(texts, *pair) for pair in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(texts: TokenTexts, token_id: int, logprob: float | None) -> dict[str, Any]:
    text, data = texts.of(token_id)
    return {"token": text, "logprob": logprob, "bytes": list(data)}


class Places:
    """Where tokens begin in an answer's text, in characters: bytes of one character that are tokens count together."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts, self._at = texts, 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def take(self, token_id: int) -> int:
        """Where the next token begins."""
        at = self._at
        if not self._texts.is_special(token_id):
            self._at += len(self._decoder.decode(bytes(self._texts.of(token_id)[1])))
        return at


def completion_logprobs(texts: TokenTexts, tokens: Iterable[Scored], places: Places) -> dict[str, Any]:
    """`choices[].logprobs` of a completion or of its next piece; `places`: of the whole."""
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        text, _ = texts.of(token.token_id)
        found["tokens"].append(text)
        found["token_logprobs"].append(token.logprob)
        # Tokens that look alike share a key: the most probable of them counts, the chosen one before all.
        top = {texts.of(token_id)[0]: logprob for token_id, logprob in reversed(token.top)}
        found["top_logprobs"].append({**top, text: token.logprob} if token.logprob is not None else None)
        found["text_offset"].append(places.take(token.token_id))
    return found
