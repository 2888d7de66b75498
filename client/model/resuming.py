"""A `generate` call in a session: which tokens it begins with, what it tells transformers, what it gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from shoal.client.model.cache import SessionCache

if TYPE_CHECKING:
    from shoal.client.model.inference import InferenceSession
    from shoal.client.model.remote_sequential import RemoteSequential


class Resumed:
    """`input_ids` `[B, T]` (the calls before and what is `given`; None: transformers' default) and further `options`.

    Takes the attention mask out of `asked`. Errors: `ValueError` for a session or for inputs that do not fit.
    """

    def __init__(
        self, blocks: RemoteSequential, session: InferenceSession, given: torch.Tensor | None, asked: dict[str, Any]
    ) -> None:
        if (session.blocks.start, session.blocks.stop, session.embed) != (
            blocks.blocks.start,
            blocks.blocks.stop,
            blocks.embed,
        ):
            raise ValueError(
                "generate needs a session of this model over all of its blocks: model.inference_session()."
            )
        if asked.get("past_key_values") is not None or asked.get("inputs_embeds") is not None:
            raise ValueError("In a session, give generate tokens: neither past_key_values nor inputs_embeds.")
        if session.output_ids is None and session.position:
            raise ValueError(
                "The session holds hidden states whose tokens generate does not know: use another session."
            )
        self._session, self._before = session, 0
        self.input_ids = given
        self.options: dict[str, Any] = {"past_key_values": SessionCache(session, expands=True)}
        if session.output_ids is not None:
            self._go_on(session.output_ids, given, asked)

    def result(self, found: Any) -> Any:
        """Remember what `generate` found, and give back what is new of it."""
        session, bare = self._session, isinstance(found, torch.Tensor)
        sequences = found if bare else found.sequences
        given = 1 if self.input_ids is None else self.input_ids.shape[1]  # transformers begins with one token, BOS
        texts = 1 if self.input_ids is None else len(self.input_ids)
        rows, told = max(1, len(session.rows) // texts), max(1, len(sequences) // texts)  # of each text
        known = session.mask[[index // told * rows for index in range(len(sequences))], :given].to("cpu")
        more = torch.ones(len(sequences), sequences.shape[1] - known.shape[1], dtype=torch.bool)
        session.output_ids, session.output_mask = sequences.clone(), torch.cat([known, more], dim=1)
        new = sequences[:, self._before :].clone()
        if bare:
            return new
        found.sequences = new
        return found

    def _go_on(self, before: torch.Tensor, given: torch.Tensor | None, asked: dict[str, Any]) -> None:
        if given is not None and len(given) != len(before):
            raise ValueError(f"The session holds {len(before)} texts; {len(given)} were given to go on with.")
        self._before = before.shape[1]
        ids = before if given is None else torch.cat([before, given.to(before.device)], dim=1)
        mask = self._mask(ids, asked.pop("attention_mask", None))
        held = min(self._session.position, ids.shape[1] - 1)  # the last token is run again if it was run before
        self._session.rebase(ids[:, :held].to("cpu"), mask[:, :held])
        self.input_ids = ids
        self.options["attention_mask"] = mask.long().to(ids.device)

    def _mask(self, ids: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        """Of all tokens; that of the new ones may be given, or that of all."""
        known = self._session.output_mask
        rest = torch.ones(len(ids), ids.shape[1] - known.shape[1], dtype=torch.bool)
        if given is not None and given.shape[1] in (rest.shape[1], ids.shape[1]):
            rest = given[:, given.shape[1] - rest.shape[1] :].to("cpu").bool()
        elif given is not None:
            raise ValueError(f"attention_mask has {given.shape[1]} columns; the new tokens have {rest.shape[1]}.")
        return torch.cat([known, rest], dim=1)
