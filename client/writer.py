"""A generation's tokens become text, piece by piece, up to where it ends. Knows no session and no scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from shoal.client.text import Detokenizer, special_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.client.generation import GenerationOptions


class Stops(Protocol):
    """Cuts a text off at its stop strings: `client.text.StopFilter` is one."""

    @property
    def stopped(self) -> bool: ...

    def push(self, text: str) -> str: ...

    def finish(self) -> str: ...


class Writer:
    """Turns tokens into final text and says when to end."""

    def __init__(self, tokenizer: Any | None, prompt_ids: Sequence[int], options: GenerationOptions) -> None:
        self._eos = options.eos_token_ids
        self._detokenizer = (
            Detokenizer(_decoder(tokenizer, options.shown), prompt_ids) if tokenizer is not None else None
        )
        self._stop_filter = options.stops_by(options.stops)

    def write(self, token_id: int, *, ended: bool, last: bool) -> tuple[str, str]:
        """Final text of one more token, and why it is the last one, if it is; `ended`: no text may follow."""
        is_end = token_id in self._eos
        text = self._stop_filter.push("" if is_end else self._push(token_id))
        ended = ended or is_end
        if (ended or last) and not self._stop_filter.stopped:
            text += self._stop_filter.push(self._detokenizer.finish() if self._detokenizer else "")
            text += self._stop_filter.finish()
        if self._stop_filter.stopped:
            return text, "stop"
        return text, "eos" if ended else "length" if last else ""

    def _push(self, token_id: int) -> str:
        return self._detokenizer.push(token_id) if self._detokenizer else ""


def _decoder(tokenizer: Any, shown: frozenset[int]) -> Callable[[list[int]], str]:
    """Token ids to text, without special tokens but those to be shown."""
    hidden = special_ids(tokenizer) - shown if shown else frozenset()

    def decode(ids: list[int]) -> str:
        ids = [token for token in ids if token not in hidden] if shown else ids
        text: str = tokenizer.decode(ids, skip_special_tokens=not shown, clean_up_tokenization_spaces=False)
        return text

    return decode
