"""From what a request wishes to what the client is asked: options of generation, prompts as token ids."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from shoal.client.api.errors import ApiError, refuse
from shoal.client.generation import GenerationOptions
from shoal.client.sampling_options import Sampling
from shoal.client.serving import Ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.api.options import ApiOptions
    from shoal.client.api.wishes import Wishes
    from shoal.client.grammar import Grammar
    from shoal.client.local import ClientModel

INLINE_CHARS = 1 << 14  # a longer text is cut into tokens off the event loop, which must not stall
FEWEST_CHARS = 64  # no tokenizer makes fewer tokens than one for so many characters, white space aside


def options_of(wishes: Wishes, grammar: Grammar | None, model: ClientModel, given: ApiOptions) -> GenerationOptions:
    """How the client is to generate; `given`: where the request sets no limit, and as the server is told. Errors:
    `ApiError`."""
    vocab = model.ends.spec.vocab_size
    for name, tokens in (("logit_bias", wishes.logit_bias), ("stop_token_ids", wishes.stop_token_ids)):
        if strangers := [token for token in tokens if token >= vocab]:
            refuse(name, f"`{name}` names token {strangers[0]}, but the vocabulary has {vocab}.")
    if wishes.stops and model.tokenizer is None:
        refuse("stop", "This model has no tokenizer, so its answers have no text to stop at; use `stop_token_ids`.")
    sampling = Sampling(
        temperature=wishes.temperature, top_k=wishes.top_k, top_p=wishes.top_p, min_p=wishes.min_p,
        repetition_penalty=wishes.repetition_penalty, seed=wishes.seed, logit_bias=wishes.logit_bias,
        presence_penalty=wishes.presence_penalty, frequency_penalty=wishes.frequency_penalty,
    )  # fmt: skip
    return GenerationOptions(
        wishes.max_tokens or given.default_tokens, sampling, wishes.stops, frozenset(wishes.stop_token_ids),
        top_logprobs=wishes.top_logprobs or 0, grammar=grammar, speculate=given.speculate,
    )  # fmt: skip


def ask_of(
    ids: Sequence[int], generation: GenerationOptions, n: int, wishes: Wishes, options: ApiOptions, user: str
) -> Ask:
    """What the client is asked for one prompt of `user`'s."""
    return Ask(
        tuple(ids), generation, n=n, priority=int(wishes.background), wait_s=options.wait_s,
        activations=options.activations, ignore_eos=wishes.ignore_eos, user=user,
    )  # fmt: skip


async def token_ids(model: ClientModel, prompt: str | Sequence[int], param: str, *, special: bool = True) -> list[int]:
    """A prompt's tokens. Errors: `ApiError` 400 for token ids outside the vocabulary, for an empty prompt, and for text
    where the model has no tokenizer."""
    ids = await _encode(model, prompt, param, special=special) if isinstance(prompt, str) else list(prompt)
    check_ids(model, ids, param)
    return ids


def check_ids(model: ClientModel, ids: Sequence[int], param: str) -> None:
    """Errors: `ApiError` 400 for what the model cannot be given."""
    spec = model.ends.spec
    if not ids:
        refuse(param, "The prompt is empty; give at least one token.")
    if strangers := [token for token in ids if not 0 <= token < spec.vocab_size]:
        refuse(param, f"Token id {strangers[0]} is not in the model's vocabulary of {spec.vocab_size}.")
    if len(ids) >= spec.max_position:
        text = (
            f"The prompt has {len(ids)} tokens; the model's context of {spec.max_position} must hold it and an answer."
        )
        raise ApiError(400, text, param=param, code="context_length_exceeded")


async def _encode(model: ClientModel, text: str, param: str, *, special: bool) -> list[int]:
    if model.tokenizer is None:
        refuse(param, "This model has no tokenizer; send token ids.")
    if len(text) > FEWEST_CHARS * model.ends.spec.max_position:
        message = (
            f"The prompt has {len(text)} characters; the model's context is {model.ends.spec.max_position} tokens."
        )
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    if len(text) <= INLINE_CHARS:
        return _ids(model.tokenizer, text, special=special)
    return await asyncio.to_thread(_ids, model.tokenizer, text, special=special)


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])
