"""Remote caches of sequences: each lane is one session of the swarm and what its KV holds. Knows no batches' layout."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

import torch
from shoal.blocks.spec import check_length
from shoal.client.model.background import hold
from shoal.client.model.history import EMPTY, History, assign
from shoal.client.prefix import Prompt
from shoal.client.swarm import SessionOptions
from shoal.peer.wire import Want

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from shoal.client.actions import SessionStats
    from shoal.client.model.background import Held
    from shoal.routing.route import Hop

    Embed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LEAST_TOKENS = 256  # room of a lane whose final length nobody has said


class Session(Protocol):
    """One sequence through the swarm: `client.remote.RemoteSession` is one."""

    @property
    def position(self) -> int: ...

    @position.setter
    def position(self, position: int) -> None: ...

    @property
    def route(self) -> tuple[Hop, ...]: ...

    @property
    def stats(self) -> SessionStats: ...

    def recall_with(self, recall: Callable[[int, int], torch.Tensor]) -> None: ...

    def remember(self, tokens: Callable[[], Sequence[int]]) -> None: ...

    async def step(self, hidden: torch.Tensor, want: Want = ...) -> torch.Tensor: ...


class SessionSource(Protocol):
    """Where sessions come from: `client.swarm.Swarm` is one."""

    def session(self, options: SessionOptions) -> AbstractAsyncContextManager[Session]: ...


@dataclass(frozen=True)
class RemoteBlocks:
    """Blocks `[start, stop)` of a model in a swarm, and how sessions over them travel: see `SessionOptions`.

    `length_kind(tokens)`: what a prompt's keys depend on besides its tokens; `outgrown(made, tokens)`: whether those
    made for one length are to be made again for another (`ModelSpec`)."""

    swarm: SessionSource
    start: int
    stop: int
    width: int
    dtype: torch.dtype
    max_position: int
    length_kind: Callable[[int], int]
    outgrown: Callable[[int, int], bool]
    codec: str | None = None
    wait_s: float = 0.0
    priority: int = 0

    def options(self, max_tokens: int, begins: History) -> SessionOptions:
        """Of one lane; peers may hold what it `begins` with from before."""
        prompt = Prompt(tuple(begins.keys.tolist()), self.length_kind(len(begins))) if begins.is_text else None
        return SessionOptions(
            max_tokens, self.start, self.stop, dtype=str(self.dtype).removeprefix("torch."), codec=self.codec,
            wait_s=self.wait_s, priority=self.priority, prompt=prompt,
        )  # fmt: skip

    def text(self, content: History, kind: int) -> Sequence[int]:
        """Token ids by which later sessions may find what a KV holds; none if it is of no use to prompts of `kind`."""
        return content.keys.tolist() if content.is_text and self.length_kind(len(content)) == kind else ()


class Inputs:
    """Hidden states of histories' tokens, made again from token ids or kept under a name of their own."""

    def __init__(self, embed: Embed | None) -> None:
        self._embed = embed
        self._kept: dict[int, torch.Tensor] = {}

    def name(self, hidden: torch.Tensor) -> list[int]:
        """Keys for `hidden` `[n, width]`, which is kept; equal states get equal keys."""
        held = hidden.detach().to("cpu").contiguous()
        keys = []
        for row in held:
            digest = blake2b(row.view(torch.uint8).numpy().tobytes(), digest_size=8).digest()
            keys.append(-1 - (int.from_bytes(digest) >> 1))
            self._kept.setdefault(keys[-1], row)
        return keys

    def of(self, history: History, start: int, stop: int) -> torch.Tensor:
        """`[stop - start, width]`."""
        keys, positions = history.keys[start:stop], history.positions[start:stop]
        if self._embed is not None and bool((keys >= 0).all()):
            return self._embed(torch.from_numpy(keys), torch.from_numpy(positions))
        return torch.stack([self._one(int(key), int(at)) for key, at in zip(keys, positions, strict=True)])

    def keep_only(self, histories: Iterable[History]) -> None:
        """Forget the states that no history names."""
        if self._kept:
            named = {int(key) for history in histories for key in history.keys}
            self._kept = {key: hidden for key, hidden in self._kept.items() if key in named}

    def _one(self, key: int, position: int) -> torch.Tensor:
        if key < 0 or self._embed is None:
            return self._kept[key]
        return self._embed(torch.tensor([key]), torch.tensor([position]))[0]


@dataclass(eq=False)
class Lane:
    """One session of the swarm; its KV holds `content` and has room for `capacity` tokens. `made`: how many tokens the
    text had when it was last run."""

    held: Held[Session]
    capacity: int
    content: History = field(default=EMPTY)
    made: int = 0

    @property
    def session(self) -> Session:
        """What to step."""
        return self.held.value


class Lanes:
    """As many lanes as there are sequences. All of it runs on the background loop."""

    def __init__(self, blocks: RemoteBlocks, inputs: Inputs) -> None:
        self.blocks, self.inputs = blocks, inputs
        self.open: list[Lane] = []

    async def run(self, rows: Sequence[tuple[History, History]], room: int | None, want: Want) -> list[torch.Tensor]:
        """For each `(before, new)` the hidden states of `new` that are wanted. What a lane lacks of `before` is sent
        again. `room`: tokens that a sequence will have at most, if that is known.

        Errors: `NoRouteError`, `SessionClosed`; lanes that were interrupted are closed, and opened anew when needed.
        """
        used = await self._assigned(rows, room)
        try:
            steps = zip(rows, used, strict=True)
            return list(await asyncio.gather(*(self._step(lane, *row, kept, want) for row, (lane, kept) in steps)))
        except BaseException:
            await self._drop([lane for lane, _ in used])
            raise

    async def close(self) -> None:
        """Free every lease."""
        await self._drop(self.open)

    async def _assigned(self, rows: Sequence[tuple[History, History]], room: int | None) -> list[tuple[Lane, int]]:
        """A lane for each row, rewound to what stays of it, and how much that is."""
        longest = max(len(before) + len(new) for before, new in rows)
        check_length(longest, self.blocks.max_position)
        await self._drop([lane for lane in self.open if lane.capacity < longest])
        found = assign([before for before, _ in rows], [lane.content for lane in self.open])
        taken = list(self.open)
        used = []
        for (before, new), (index, kept) in zip(rows, found, strict=True):
            lane = await self._new(self._capacity(longest, room), before + new) if index is None else taken[index]
            if self.blocks.outgrown(lane.made, len(before) + len(new)):
                kept = 0
            if kept < len(lane.content):
                lane.session.position, lane.content = kept, lane.content.first(kept)
            used.append((lane, kept))
        return used

    def _capacity(self, tokens: int, room: int | None) -> int:
        return max(tokens, min(room or max(2 * tokens, LEAST_TOKENS), self.blocks.max_position))

    async def _new(self, capacity: int, begins: History) -> Lane:
        options = self.blocks.options(capacity, begins)
        lane = Lane(await hold(self.blocks.swarm.session(options)), capacity)
        inputs = self.inputs  # and not self: sessions outlive those who forget to close them
        lane.session.recall_with(lambda start, stop: inputs.of(lane.content, start, stop))
        if (prompt := options.prompt) is not None:
            blocks = self.blocks
            lane.session.remember(lambda: blocks.text(lane.content, prompt.kind))
        self.open.append(lane)
        return lane

    async def _step(self, lane: Lane, before: History, new: History, kept: int, want: Want) -> torch.Tensor:
        lane.content = before + new  # before it is sent: a failing hop is refilled from it
        lane.made = len(lane.content)
        hidden = await lane.session.step(self.inputs.of(lane.content, kept, len(lane.content)), want)
        return hidden[-len(new) :] if want is Want.ALL else hidden

    async def _drop(self, lanes: Sequence[Lane]) -> None:
        gone = list(lanes)
        self.open[:] = [lane for lane in self.open if lane not in gone]
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*(lane.held.close() for lane in gone))
