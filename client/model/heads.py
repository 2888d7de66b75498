"""Distributed models with a head: text generation by transformers' own `generate`, and sequence classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.errors import CheckpointError
from shoal.client.model.cache import SessionCache
from shoal.client.model.inference import InferenceSession
from shoal.client.model.modeling import Batch, Distributed, DistributedModel, _Part, check_others
from shoal.client.model.resuming import Resumed
from torch.nn.functional import linear
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast

if TYPE_CHECKING:
    from shoal.client.model.loading import Loaded
    from shoal.client.model.remote_sequential import RemoteSequential
    from torch import nn


class WithHead(Distributed):
    """A `DistributedModel` and something behind it."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self.transformer = DistributedModel(loaded)

    @property
    def model(self) -> DistributedModel:
        """The model without its head, by Llama's name; `transformer` by BLOOM's."""
        inner: DistributedModel = self.transformer
        return inner

    @property
    def blocks(self) -> RemoteSequential:
        """The blocks in the swarm."""
        return self.model.h

    def get_input_embeddings(self) -> nn.Module:
        """Token ids to what goes into the first block."""
        return self.model.get_input_embeddings()


class DistributedModelForCausalLM(WithHead, GenerationMixin):  # type: ignore[misc]  # transformers has no types
    """Logits and `generate`."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self.lm_head = _Part(lambda hidden: self.loaded.ends.head(hidden).clone())
        path = loaded.checkpoint.path
        if (path / "generation_config.json").is_file():
            try:
                self.generation_config = GenerationConfig.from_pretrained(str(path), local_files_only=True)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"generation_config.json in {path} cannot be read: {error}") from error

    def get_output_embeddings(self) -> nn.Module:
        """What the final norm gives to logits."""
        head: nn.Module = self.lm_head
        return head

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: SessionCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """`logits` `[B, T, vocabulary]` in float32, zeros at padding; `loss` (no gradients) if there are `labels`. Else
        as `DistributedModel.forward`."""
        check_others(others)
        batch = Batch(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values, use_cache)
        last = isinstance(logits_to_keep, int) and logits_to_keep == 1
        states = self.model.run(batch, last=last)
        logits = states.spread(self.loaded.ends.logits)
        if not last:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep.to(logits.device)
            logits = logits[:, keep]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels.to(logits.device), vocab_size=logits.shape[-1])
        return self.as_asked(CausalLMOutputWithPast(loss, logits, states.cache), others)

    def generate(
        self, inputs: torch.Tensor | None = None, *args: Any, session: InferenceSession | None = None, **options: Any
    ) -> Any:
        """transformers' `generate`, with all its options. In a session, given or active, it goes on behind the tokens
        of the calls before and returns what is new; `inputs` may then be None. Errors: as `forward`, and `ValueError`
        for `guidance_scale` while a session is active."""
        given = inputs if inputs is not None else options.pop("input_ids", None)
        if options.get("max_length", 0) is None:  # Petals' way to say that max_new_tokens counts
            del options["max_length"]
        session = session or self.active_session
        if session is not None:
            if self.active_session is not None:
                self._check_unguided(args, options)
            resumed = Resumed(self.blocks, session, given, options)
            return resumed.result(super().generate(resumed.input_ids, *args, **options, **resumed.options))
        if options.get("past_key_values") is not None:
            return super().generate(given, *args, **options)
        alone = InferenceSession(self.blocks.blocks, embed=self.blocks.embed)
        try:
            return super().generate(given, *args, **options, past_key_values=SessionCache(alone))
        finally:
            alone.release()

    def _check_unguided(self, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """transformers runs a second text beside a guided one, by calls of its own: they would go on in the session."""
        config = (args[0] if args else options.get("generation_config")) or self.generation_config
        if options.get("guidance_scale", config.guidance_scale) not in (None, 1):
            raise ValueError(
                "guidance_scale runs a second text, which the active session has no place for: call generate outside "
                "the session's `with`, or with session=... inside model.use_session(None)."
            )

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *others: Any
    ) -> Any:
        """transformers asks here for a cache, when it knows how long the text may get and how many beams there are."""
        cache = model_kwargs.get("past_key_values")
        if isinstance(cache, SessionCache):
            if generation_config.use_cache is False:
                model_kwargs["past_key_values"] = None
            else:
                cache.session.expected = generation_config.max_length
                cache.expand(max(generation_config.num_beams, generation_config.num_return_sequences))
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *others)


class DistributedModelForSequenceClassification(WithHead):
    """Scores of labels, by the checkpoint's own score head."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self.num_labels = self.config.num_labels
        self.score = _Part(self._score)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: SessionCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> SequenceClassifierOutputWithPast:
        """`logits` `[B, labels]` at each row's last token that is not the pad token, as transformers chooses it."""
        check_others(others)
        batch = Batch(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values, use_cache)
        pad, rows = self.config.pad_token_id, batch.shape[0]
        if pad is None and rows > 1:
            raise ValueError("The model has no pad token, so a batch of several texts cannot be classified: give one.")
        states = self.model.run(batch)
        every = states.spread(lambda hidden: self._score(self.loaded.ends.normed(hidden)))
        last = torch.full((rows,), -1)
        if pad is not None and input_ids is not None:
            last = ((input_ids.to("cpu") != pad) * torch.arange(input_ids.shape[1])).argmax(dim=1)
        logits = every[torch.arange(rows), last.to(every.device)]
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=every, labels=labels.to(every.device), pooled_logits=logits, config=self.config
            )
        return self.as_asked(SequenceClassifierOutputWithPast(loss, logits, states.cache), others)

    def _score(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self.loaded.score
        if weight is None:
            raise ValueError("this model was loaded without its score head")
        return linear(hidden, weight)
