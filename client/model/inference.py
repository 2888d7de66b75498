"""A batch of sequences whose KV is with the peers: `InferenceSession`, as Petals' users know it.

What a session holds is said by its rows' histories alone. The lanes are caches of them: rewinding, reordering beams or
losing a lane changes no result, only how many tokens are sent again.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Self

import torch
from shoal.client.model.background import background
from shoal.client.model.history import EMPTY, History
from shoal.client.model.lanes import Inputs, Lanes, RemoteBlocks
from shoal.peer.wire import Want

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.actions import SessionStats
    from shoal.client.model.lanes import Embed
    from shoal.routing.route import Hop


def refuse_gradients(hidden: torch.Tensor) -> None:
    """Errors: `NotImplementedError` if somebody wants gradients of `hidden` through remote blocks."""
    if torch.is_grad_enabled() and hidden.requires_grad:
        raise NotImplementedError(
            "Gradients do not pass through the swarm yet: run this under torch.no_grad(), or detach the inputs."
        )


class InferenceSession:
    """Sequences in the swarm, step by step. Used by one thread at a time, as `with model.inference_session(...)`.

    max_length: tokens that each sequence has room for; None lets it grow, which costs sending everything again now and
    then. `output_ids` `[B, T]`: all tokens of the `generate` calls so far.
    """

    def __init__(self, blocks: RemoteBlocks, max_length: int | None = None, *, embed: Embed | None = None) -> None:
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}, but a session must have room for at least one token.")
        self.blocks, self.max_length, self.embed = blocks, max_length, embed
        self.expected: int | None = None
        self.output_ids: torch.Tensor | None = None
        self.output_mask = torch.ones(0, 0, dtype=torch.bool)  # which of those are no padding
        self.rows: list[History] = []
        self.mask = torch.ones(0, 0, dtype=torch.bool)
        self._inputs = Inputs(embed)
        self._lanes = Lanes(blocks, self._inputs)
        self._closed = False
        self._abandoned = weakref.finalize(self, _abandon, self._lanes)
        self._abandoned.atexit = False  # the swarm is left then, which frees all

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def num_blocks(self) -> int:
        """How many blocks a step runs through."""
        return self.blocks.stop - self.blocks.start

    @property
    def position(self) -> int:
        """Columns of the batch so far: tokens of the longest row, and padding of the others. Set it back to go on from
        there. Errors: `ValueError` for a position that was not reached yet."""
        return self.mask.shape[1]

    @position.setter
    def position(self, position: int) -> None:
        if not 0 <= position <= self.position:
            raise ValueError(f"The position can be set to 0 to {self.position}, not to {position}.")
        if position == self.position:
            return
        counts = self.mask[:, :position].sum(dim=1).tolist()
        self.rows = [row.first(count) for row, count in zip(self.rows, counts, strict=True)]
        self.mask = self.mask[:, :position]
        if self.output_ids is not None:
            self.output_ids, self.output_mask = self.output_ids[:, :position], self.output_mask[:, :position]
        self._inputs.keep_only([*self.rows, *(lane.content for lane in self._lanes.open)])
        if not position:
            self.rows, self.output_ids = [], None

    @property
    def routes(self) -> list[tuple[Hop, ...]]:
        """The hops that each sequence goes through now."""
        return [lane.session.route for lane in self._lanes.open]

    @property
    def stats(self) -> list[SessionStats]:
        """What each sequence went through: steps, repairs, each hop's times."""
        return [lane.session.stats for lane in self._lanes.open]

    def step(
        self, inputs: torch.Tensor, prompts: torch.Tensor | None = None, hypo_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run hidden states `[B, T, width]` behind what the session holds; gives the last block's `[B, T, width]`.

        `hypo_ids` `[B]`: first let row i go on from row `hypo_ids[i]` (beam search). Errors: `NoRouteError` (blocks
        that nobody serves), `SessionClosed`, `ValueError` for shapes that do not fit or past `max_length`.
        """
        if prompts is not None and prompts.numel():
            raise NotImplementedError("Deep prompts are not served yet: leave `prompts` out.")
        refuse_gradients(inputs)
        if inputs.ndim != 3 or inputs.shape[2] != self.blocks.width or not inputs.shape[0] * inputs.shape[1]:
            raise ValueError(f"Expected hidden states [batch, tokens, {self.blocks.width}], got {list(inputs.shape)}.")
        if hypo_ids is not None and self.rows:
            self.reorder(hypo_ids)
        names = self.name(inputs).numpy()
        starts = [len(row) for row in self.rows] or [0]
        starts += starts[-1:] * (len(names) - len(starts))  # a batch of another size is refused below
        new = [History.of(keys, range(at, at + len(keys))) for keys, at in zip(names, starts, strict=False)]
        hidden = self.extend(new, torch.ones(inputs.shape[:2], dtype=torch.bool), Want.ALL)
        return torch.stack(hidden).to(inputs.device, inputs.dtype)

    def extend(self, new: Sequence[History], mask: torch.Tensor, want: Want) -> list[torch.Tensor]:
        """Run each row's `new` tokens, which stand where `mask` `[B, T]` is True; their hidden states `[n, width]`,
        `[0, width]` for a row without new tokens. Errors: those of `step`."""
        self._check_open()
        rows = self.rows or [EMPTY] * len(new)
        if len(rows) != len(new):
            raise ValueError(
                f"The session holds a batch of {len(rows)}; it cannot go on with one of {len(new)}. Open another "
                "session, or set this one's position to 0."
            )
        if self.max_length is not None and self.position + mask.shape[1] > self.max_length:
            raise ValueError(
                f"The session has room for {self.max_length} tokens: {self.position} are in it and {mask.shape[1]} "
                "more were given. Open it with a larger max_length."
            )
        going = [(row, more) for row, more in zip(rows, new, strict=True) if len(more)]
        room = self.max_length or self.expected
        answers = iter(background().run(self._lanes.run(going, room, want)) if going else [])
        hidden = [next(answers) if len(more) else torch.empty(0, self.blocks.width) for more in new]
        self.rows = [row + more for row, more in zip(rows, new, strict=True)]
        self.mask = torch.cat([self.mask if self.position else mask[:, :0], mask], dim=1)
        return hidden

    def name(self, hidden: torch.Tensor) -> torch.Tensor:
        """Keys `[B, T]` for hidden states `[B, T, width]`, which the session keeps under them."""
        return torch.tensor([self._inputs.name(row) for row in hidden.to(self.blocks.dtype)])

    def rebase(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """From here on the session holds these tokens `[B, T]`, padding left out; lanes that know them serve them."""
        self.rows = [History.of(row[real].numpy(), range(int(real.sum()))) for row, real in zip(ids, mask, strict=True)]
        self.mask = mask

    def reorder(self, parents: torch.Tensor) -> None:
        """Let row i go on from what is row `parents[i]` now; the batch may change its size."""
        self.rows = [self.rows[parent] for parent in parents.tolist()]
        self.mask = self.mask[parents.to("cpu")]

    def release(self) -> None:
        """Free the peers' leases. The histories stay: a further step sends them again."""
        background().run(self._lanes.close())

    def close(self) -> None:
        """Free the peers' leases for good."""
        if not self._closed:
            self._closed = True
            self.release()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("This session is closed: open another one.")


def _abandon(lanes: Lanes) -> None:
    """A session was forgotten without being closed."""
    if lanes.open:
        background().start(lanes.close())
