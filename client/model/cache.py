"""A session as the cache of transformers' `generate`: rows, columns and their order; the keys are with the peers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache

if TYPE_CHECKING:
    from shoal.client.model.inference import InferenceSession


class SessionCache(Cache):  # type: ignore[misc]  # transformers has no types
    """`past_key_values` of a distributed model. It holds no tensors: `session` says what the peers hold."""

    def __init__(self, session: InferenceSession, *, expands: bool = False) -> None:
        super().__init__(layers=[])
        self.session = session
        self._expands = expands  # it holds one row where `generate` will ask for one row a beam

    def __repr__(self) -> str:
        return f"SessionCache({self.batch_size} x {self.get_seq_length()} tokens)"

    def update(self, *_: Any, **__: Any) -> Any:
        """Errors: `TypeError`: there is nothing here to put keys into."""
        raise TypeError("A SessionCache works with the distributed model that made it, not with a local one.")

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Columns so far, padding included."""
        return self.session.position

    def get_max_length(self, layer_idx: int | None = None) -> int:  # noqa: ARG002
        """Room of the session, -1 if it grows."""
        return self.session.max_length or -1

    def reset(self) -> None:
        """Forget everything."""
        self.session.position = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam i goes on from what beam `beam_idx[i]` was."""
        self.session.reorder(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` columns. Errors: `ValueError` for a number above 0."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the negative number of tokens to remove, not {tokens_to_remove}.")
        self.session.position = max(0, self.session.position + tokens_to_remove)

    def expand(self, beams: int) -> None:
        """`generate` begins, with so many rows for each text."""
        if self._expands and self.session.rows:
            self.batch_repeat_interleave(beams)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let every row be there `repeats` times."""
        self.session.reorder(torch.arange(len(self.session.rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        self.session.reorder(torch.arange(len(self.session.rows))[indices.to("cpu")])

    def activate_past_recording(self) -> None:
        """Nothing to do: every position can be gone back to."""

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first step."""
        return len(self.session.rows) or -1

    @property
    def is_compileable(self) -> bool:
        """No."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether it holds anything."""
        return self.session.position > 0

    @property
    def is_croppable(self) -> bool:
        """Yes."""
        return True
