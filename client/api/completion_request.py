"""A request to /v1/completions, read and checked. Pure: data in, data out; knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.client.api.errors import refuse
from shoal.client.api.fields import Fields, flag, text, whole
from shoal.client.api.wishes import MAX_N, MAX_TOKENS, MAX_TOP_LOGPROBS, Wishes, read_wishes

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PROMPTS = 256
DEFAULT_TOKENS = 16  # OpenAI's


@dataclass(frozen=True)
class CompletionRequest:
    """`prompts`: texts or token ids. Of each, `best_of` answers are made and the `n` most probable given. `max_tokens`
    may be 0 with `echo`: then the prompt alone is answered, with its logprobs if they are asked for."""

    prompts: tuple[str | tuple[int, ...], ...]
    wishes: Wishes
    best_of: int
    echo: bool
    special_tokens: bool


def read_completion(given: Mapping[str, Any]) -> CompletionRequest:
    """Check a request. Errors: `ApiError`."""
    fields = Fields(given)
    prompts = fields.need("prompt", prompts_of)
    echo = fields.take("echo", flag, default=False)
    tokens = fields.take("max_tokens", whole(0, MAX_TOKENS), DEFAULT_TOKENS)
    top_logprobs = fields.take("logprobs", whole(0, MAX_TOP_LOGPROBS), None)
    wishes = read_wishes(fields, tokens, top_logprobs)
    best_of = fields.take("best_of", whole(1, MAX_N), wishes.n)
    special_tokens = fields.take("add_special_tokens", flag, default=True)
    fields.cannot("only the end of a text is written here.", "suffix")
    fields.end()
    if not tokens and not echo:
        refuse("max_tokens", "`max_tokens` is 0, but must be at least 1 without `echo`.")
    if not tokens and wishes.stream:
        refuse("stream", "With `max_tokens` 0 there is nothing to stream.")
    if best_of < wishes.n:
        refuse("best_of", f"`best_of` is {best_of}, but must be at least `n`, which is {wishes.n}.")
    if wishes.stream and best_of > wishes.n:
        refuse("best_of", "`best_of` above `n` cannot be streamed: which answers are best is known at the end.")
    return CompletionRequest(prompts, wishes, best_of, echo, special_tokens)


def prompts_of(value: Any, name: str, most: int = MAX_PROMPTS) -> tuple[str | tuple[int, ...], ...]:
    """One or several texts, or one or several lists of token ids."""
    if isinstance(value, str):
        return (text()(value, name),)
    if not isinstance(value, list) or not value:
        refuse(name, f"`{name}` must be a string, a list of strings, a list of token ids or a list of such lists.")
    if _are_ids(value):
        return (tuple(value),)
    if len(value) > most:
        refuse(name, f"`{name}` has {len(value)} items; {most} are allowed in one request.")
    if all(isinstance(item, str) for item in value):
        return tuple(value)
    if not all(isinstance(item, list) and item and _are_ids(item) for item in value):
        refuse(name, f"`{name}` must hold strings, or token ids, or lists of token ids, and nothing else.")
    return tuple(map(tuple, value))


def _are_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)
