"""A distributed model as transformers sees models: ends here, blocks in the swarm. `DistributedModel` gives states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.ends import load_ends
from shoal.client.model.cache import SessionCache
from shoal.client.model.inference import InferenceSession, refuse_gradients
from shoal.client.model.layout import Layout, lay_out
from shoal.client.model.remote_sequential import RemoteSequential
from shoal.peer.wire import Want
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from shoal.blocks.ends import Ends
    from shoal.client.model.loading import Loaded


@dataclass(frozen=True)
class Batch:
    """One call of a model: `input_ids` `[B, T]` or `inputs_embeds` `[B, T, width]`, and what is said about them."""

    input_ids: torch.Tensor | None
    inputs_embeds: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    cache: SessionCache | None
    use_cache: bool | None

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and tokens. Errors: `ValueError` for what is no batch of tokens."""
        if (self.input_ids is None) == (self.inputs_embeds is None):
            raise ValueError("Give input_ids or inputs_embeds, and not both.")
        given, dims = (self.input_ids, 2) if self.input_ids is not None else (self.inputs_embeds, 3)
        if given is None or given.ndim != dims or not given.shape[0] * given.shape[1]:
            shown = None if given is None else list(given.shape)
            raise ValueError(
                f"The inputs have shape {shown}, but must be a batch of at least one token: [batch, tokens]."
            )
        return given.shape[0], given.shape[1]


@dataclass(frozen=True)
class States:
    """The last block's hidden states of each row's real tokens, where they stand in the batch, and the cache."""

    rows: list[torch.Tensor]
    layout: Layout
    cache: SessionCache | None

    def spread(self, through: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """`[B, T, ...]` of what `through` makes of the states; zeros at padding."""
        out = through(torch.cat(self.rows))
        ends = torch.tensor([len(row) for row in self.rows]).cumsum(0).tolist()
        return self.layout.spread([out[stop - len(row) : stop] for row, stop in zip(self.rows, ends, strict=True)])


class _Part(nn.Module):
    """A function of the ends under the name of a module."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._function(*inputs)


class Distributed(PreTrainedModel):  # type: ignore[misc]  # transformers has no types
    """What all distributed models share. They own the connection: `close`, or leave a `with`, when done."""

    main_input_name = "input_ids"
    base_model_prefix = "transformer"
    _is_stateful = False

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded.config)
        self.loaded = loaded

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the swarm; leases at the peers are freed."""
        self.loaded.connection.close()

    @property
    def device(self) -> torch.device:
        """Of the ends."""
        return self.loaded.ends.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the ends and of hidden states."""
        return self.loaded.blocks.dtype

    # -- sessions, as `RemoteSequential` has them --------------------------------------------------------------------

    @property
    def active_session(self) -> InferenceSession | None:
        """The session of the `with` around this call, in this thread or task."""
        active: InferenceSession | None = self.blocks.active_session
        return active

    def use_session(self, session: InferenceSession | None) -> AbstractContextManager[InferenceSession | None]:
        """Let calls inside go on in `session`; None: in none."""
        within: AbstractContextManager[InferenceSession | None] = self.blocks.use_session(session)
        return within

    def inference_session(self, *, max_length: int | None = None) -> AbstractContextManager[InferenceSession]:
        """A new session with room for `max_length` tokens of each sequence (None: it grows): calls inside, several of
        `generate` too, go on where the last one ended."""
        within: AbstractContextManager[InferenceSession] = self.blocks.inference_session(max_length=max_length)
        return within

    def as_asked(self, output: Any, others: dict[str, Any]) -> Any:
        """`output`, or a tuple of what it has, where `return_dict` of a call's `others`, or else of the config, is
        False."""
        asked = others.get("return_dict")
        return output if (self.config.return_dict if asked is None else asked) else output.to_tuple()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """`to`, `cuda`, `cpu`: the ends are read anew for another device. Errors: `ValueError` for another dtype."""
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if moved.dtype != self.dtype:
            raise ValueError("The dtype is chosen when the model is loaded: from_pretrained(..., dtype=...).")
        if moved.device != self.device:
            head = self.loaded.score is None
            self.loaded.ends = load_ends(self.loaded.checkpoint, str(moved.device), self.dtype, head=head)
            self.loaded.score = None if self.loaded.score is None else fn(self.loaded.score)
        return super()._apply(fn, recurse)


class DistributedModel(Distributed):
    """Token ids to the hidden states that the head sees."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self.h = RemoteSequential(self.config, loaded.blocks, embed=self._embed_row)
        self.word_embeddings = _Part(self._embed)
        self.ln_f = _Part(lambda hidden: self.ends.normed(hidden).clone())

    @property
    def ends(self) -> Ends:
        """Embedding, norm and head."""
        return self.loaded.ends

    @property
    def blocks(self) -> RemoteSequential:
        """The blocks in the swarm."""
        return self.h

    @property
    def layers(self) -> RemoteSequential:
        """The blocks, by Llama's name; `h` by BLOOM's."""
        return self.h

    @property
    def embed_tokens(self) -> nn.Module:
        """Token ids `[B, T]` to what goes into the first block, `[B, T, width]`; positions, if they matter, second."""
        return self.word_embeddings

    @property
    def norm(self) -> nn.Module:
        """The last block's hidden states to what the head sees."""
        return self.ln_f

    def get_input_embeddings(self) -> nn.Module:
        """See `embed_tokens`."""
        return self.word_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: SessionCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """`last_hidden_state` `[B, T, width]`, zeros at padding. Arguments as in transformers, but that `inputs_embeds`
        go into the first block as they are, and that keys are kept only on `use_cache=True`. A tuple on
        `return_dict=False`.

        Errors: `NoRouteError`, `SessionClosed`, `ValueError`, `NotImplementedError` for gradients.
        """
        check_others(others)
        batch = Batch(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values, use_cache)
        states = self.run(batch)
        return self.as_asked(BaseModelOutputWithPast(states.spread(self.ends.normed), states.cache), others)

    def run(self, batch: Batch, *, last: bool = False) -> States:
        """The last block's states of all new tokens, or of each row's `last` alone."""
        shape = batch.shape
        session, cache, passing = self._session(batch)
        try:
            layout = lay_out(
                self.ends.spec, shape, (session.rows, session.mask), batch.attention_mask, batch.position_ids
            )
            if last and not layout.mask[:, -1].all():
                raise ValueError(
                    "The last token of a row is padding: pad on the left (tokenizer.padding_side = 'left')."
                )
            new = layout.rows(self._keys(session, batch))
            rows = session.extend(new, layout.mask, Want.LAST if last else Want.ALL)
        finally:
            if passing:
                session.close()
        if last:
            layout = Layout(layout.mask[:, -1:], layout.positions[:, -1:])
        return States(rows, layout, cache)

    def _session(self, batch: Batch) -> tuple[InferenceSession, SessionCache | None, bool]:
        """Whose histories the batch goes on from, and whether that is over with it."""
        if batch.cache is not None:
            if not hasattr(batch.cache, "session"):
                kind = type(batch.cache).__name__
                raise TypeError(
                    f"past_key_values is a {kind}; a distributed model needs the SessionCache that it gave."
                )
            return batch.cache.session, batch.cache, False
        if (active := self.h.active_session) is not None and batch.use_cache is not False:
            return active, SessionCache(active), False
        session = InferenceSession(self.h.blocks, None if batch.use_cache else batch.shape[1], embed=self.h.embed)
        return session, SessionCache(session) if batch.use_cache else None, not batch.use_cache

    def _keys(self, session: InferenceSession, batch: Batch) -> torch.Tensor:
        if batch.inputs_embeds is not None:
            refuse_gradients(batch.inputs_embeds)
            return session.name(batch.inputs_embeds)
        ids = batch.input_ids.to("cpu").long() if batch.input_ids is not None else torch.empty(0)
        if strange := ids[(ids < 0) | (ids >= self.ends.spec.vocab_size)].tolist():
            raise ValueError(f"Token id {strange[0]} is not in the model's vocabulary of {self.ends.spec.vocab_size}.")
        return ids

    def _embed_row(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.ends.embed(ids, positions)

    def _embed(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        positions = torch.arange(input_ids.shape[-1]) if position_ids is None else position_ids
        flat = self.ends.embed(input_ids.reshape(-1), positions.expand_as(input_ids).reshape(-1))
        return flat.clone().view(*input_ids.shape, -1)


def check_others(others: dict[str, Any]) -> None:
    """Errors: `ValueError` for what only a local model can give; what is None or False was not asked for."""
    for name in ("output_attentions", "output_hidden_states"):
        if others.get(name):
            raise ValueError(f"{name}: what happens inside the blocks stays with the peers.")
    known = {"output_attentions", "output_hidden_states", "return_dict", "cache_position", "token_type_ids"}
    if unknown := [name for name in others if name not in known]:
        raise TypeError(f"forward has no argument {unknown[0]!r}.")
