"""The async shell of a session: performs what the core decides and turns tensors into bytes and back. Knows no routing
policy (it asks its `Backend`) and no sockets."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from shoal.client.actions import Apart, Blame, Deliver, GiveUp, Plan, Send, State, Work
from shoal.client.afterwards import Afterwards
from shoal.client.alone import alone
from shoal.client.inputs import Inputs
from shoal.client.moving import MovingSession
from shoal.client.pieces import cut, received
from shoal.peer.errors import NoRouteError, SessionClosed
from shoal.peer.wire import Leaving, Receipt, Refused, Want
from shoal.routing.planner import NoRoute
from shoal.routing.route import CHUNK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.client.actions import Action, SessionStats, SessionTerms
    from shoal.client.backend import Backend, Shape
    from shoal.peer.errors import ShoalError
    from shoal.peer.wire import Buffer, Message
    from shoal.routing.planner import Hop

RETRY_S = 0.25


class RemoteSession:
    """A generation through the swarm. `step` runs hidden states through all blocks; `position` counts tokens in the KV.

    Inputs are kept for replay unless `recall_with` names a way to make them again (from token ids, say).
    """

    def __init__(self, terms: SessionTerms, shape: Shape, backend: Backend) -> None:
        self._terms, self._shape, self._backend = terms, shape, backend
        self._dtype: torch.dtype = getattr(torch, shape.dtype)
        self._inputs = Inputs(terms.dtype, self._dtype)
        self._held: Callable[[], Sequence[int]] = tuple  # the tokens that the KV is of, if they are to be remembered
        self._waiting: dict[int, asyncio.Future[tuple[int, Buffer]]] = {}
        self._room, self._opened = asyncio.Event(), asyncio.Event()
        self._planning: asyncio.Task[None] | None = None
        self._seeking: asyncio.Task[None] | None = None
        self._tasks, self._loop = asyncio.TaskGroup(), asyncio.get_running_loop()
        self._afterwards = Afterwards(self._loop, partial(alone, self), self._ring, self._due)
        self._core = MovingSession(terms, self._inputs.again, self._afterwards.put_off)
        self._answered = False  # whoever waits has an answer, and has not gone on yet
        self._told = terms.prefix is None  # the caller counts on what hops hold from before, or gave its first inputs
        self._error: ShoalError | None = None
        self._stuck_since: float | None = None  # no answer since a plan was asked for then
        self._forgiven = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._perform(self._core.begin())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        alone(self, self._afterwards.catch_up)
        self.end(SessionClosed("the session was closed"))
        held = self._held()
        self._perform(self._core.close(held))
        self._backend.held(self._terms, held[: self._core.position], self.route)
        await self._tasks.__aexit__(None, None, None)

    @property
    def position(self) -> int:
        """Tokens in the KV; set it back to overwrite what came after. Errors: `ValueError`."""
        return self._core.position if self._told else 0

    @position.setter
    def position(self, position: int) -> None:
        self._core.rewind(position)
        self._told = True
        self._inputs.rewind(position)

    @property
    def stats(self) -> SessionStats:
        """Steps, repairs and each hop's times so far."""
        alone(self, self._afterwards.catch_up)
        return self._core.stats

    @property
    def route(self) -> tuple[Hop, ...]:
        """The hops in use now; empty before the first route stands."""
        return self._core.route()

    def recall_with(self, recall: Callable[[int, int], torch.Tensor]) -> None:
        """Make inputs of positions `[a, b)` again with `recall` ([b - a, hidden]) instead of keeping them."""
        self._inputs.recall_with(recall)

    def remember(self, tokens: Callable[[], Sequence[int]]) -> None:
        """Let later sessions find what the hops compute: `tokens` tells, whenever it is asked, which ones those are."""
        self._held = tokens

    async def ready(self, token_ids: Sequence[int]) -> None:
        """Wait until every hop is open, before inputs for `token_ids` are given. Of the prompt that the session was
        opened for, `position` then counts what all hops hold from before: inputs begin there, and what `recall_with`
        was given must know those before it. That is 0 without it, or where `token_ids` are of another prompt.

        Errors: `NoRouteError`, `SessionClosed`."""
        await self._wait_open()
        if self._told or self._terms.prefix is None:
            return
        self._told = True
        if not self._inputs.known or not self._terms.prefix.begins(token_ids, self.position):
            self._core.rewind(0)

    async def step(self, hidden: torch.Tensor, want: Want = Want.LAST, *, prompt: bool = True) -> torch.Tensor:
        """Run `hidden` [T, hidden] through all blocks, in chunks if T is large. Of a prompt that is given from its
        beginning only what no hop holds is run, if only the last states are wanted. `prompt` False: a few tokens more.

        Returns [1, hidden] for `Want.LAST`, [T, hidden] for `Want.ALL`, [0, hidden] for `Want.NONE`.
        Errors: `NoRouteError` (blocks that nobody serves), `SessionClosed`, `ValueError` past the agreed tokens.
        """
        if hidden.ndim != 2 or hidden.shape[1] != self._terms.width or not hidden.shape[0]:
            raise ValueError(f"expected hidden states [tokens, {self._terms.width}], got {list(hidden.shape)}")
        if self.position + hidden.shape[0] > self._terms.max_tokens:
            raise ValueError(f"the session was opened for {self._terms.max_tokens} tokens")
        hidden = hidden.detach().to("cpu", self._dtype).contiguous()
        if not self._told:
            hidden = await self._skip_cached(hidden, want)
        count = hidden.shape[0]
        length = self.position + count if prompt and count > 1 else 0
        chunks = cut(hidden, want, self._chunk_tokens(count)) if length else [(hidden, want)]
        answers = [await self._send_chunk(chunk, wanted, length) for chunk, wanted in chunks]
        # Whoever awaits one answer goes on a turn of the loop sooner than who awaits several.
        found = [await answers[0]] if len(answers) == 1 else await asyncio.gather(*answers)
        self._answered = False
        if length:
            self._backend.held(self._terms, self._held()[:length], self.route)
        parts = [received(*answer, self._terms, self._dtype) for answer in found]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def on_message(self, peer_id: str, message: Message) -> None:
        """A peer sent something for this session. A receipt that comes with an answer can wait; the answer cannot."""
        hear = partial(self._hear, peer_id, message, self._loop.time())
        self._afterwards.do(hear, later=self._answered and isinstance(message, Receipt))

    def on_lost(self, peer_id: str, why: str, *, late: bool = False) -> None:
        """The link to a peer ended. `late`: it may stand yet, and is given up if others can serve."""
        if late and isinstance(self._backend.plan(self._core.without(peer_id), self._work()), NoRoute):
            return
        self._afterwards.catch_up()
        self._count_on_nothing(peer_id)
        self._perform(self._core.on_late(peer_id) if late else self._core.on_closed(peer_id, why, self._loop.time()))
        self._room.set()

    def on_room(self) -> None:
        """A line that was clogged is not any more."""
        self._room.set()

    def _hear(self, peer_id: str, message: Message, now: float) -> None:
        if isinstance(message, Refused | Leaving):
            self._count_on_nothing(peer_id)
        self._perform(self._core.on_message(peer_id, message, now))

    def _count_on_nothing(self, peer_id: str) -> None:
        """A hop may have to be refilled before the caller has given any inputs: then all hops begin anew."""
        if not self._told and self._core.position and any(hop.peer_id == peer_id for hop in self.route):
            self._core.rewind(0)

    async def _wait_open(self) -> None:
        await self._opened.wait()
        if self._error is not None:
            raise self._error

    async def _skip_cached(self, hidden: torch.Tensor, want: Want) -> torch.Tensor:
        """What of a first step's rows is to be run."""
        await self._wait_open()
        self._told, cached = True, self._core.position
        if want is Want.ALL or cached >= len(hidden):
            self._core.rewind(0)
            return hidden
        self._inputs.keep(hidden[:cached])
        return hidden[cached:]

    def _ring(self) -> None:
        self._perform(self._core.on_timer(self._loop.time()))

    def _due(self) -> float | None:
        return self._core.deadline()

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._backend.send(action.peer_id, action.message)
            elif isinstance(action, Deliver):
                self._deliver(action)
            elif isinstance(action, Plan):
                self._plan(action)
            elif isinstance(action, Blame):
                self._backend.blame(action.error)
            elif isinstance(action, Apart):
                self._backend.apart(action.source, action.target)
            elif isinstance(action, GiveUp):
                self.end(SessionClosed(action.reason))
        if self._core.state is State.STREAMING:
            self._opened.set()
            if not self._waiting:
                self._stuck_since = None
        self._afterwards.soon()

    def _deliver(self, answer: Deliver) -> None:
        self._room.set()
        self._stuck_since = None
        future = self._waiting.pop(answer.step, None)
        if future is not None and not future.done():
            future.set_result((answer.rows, answer.payload))
            self._answered = True

    def _plan(self, plan: Plan) -> None:
        if plan.ahead:
            if self._seeking is not None:
                self._seeking.cancel()
            self._seeking = self._tasks.create_task(self._seek(plan))
            return
        if self._planning is not None:
            self._planning.cancel()
        self._planning = self._tasks.create_task(self._find(plan))

    async def _find(self, plan: Plan) -> None:
        """Plan until there is a route or the wait is over. Each failed peer is tried once more before giving up."""
        if self._stuck_since is None:
            self._stuck_since, self._forgiven = self._loop.time(), False
        while isinstance(found := self._backend.plan(plan, self._work()), NoRoute):
            if self._starts_over():
                return
            over = self._loop.time() >= self._stuck_since + self._shape.wait_s
            if over and self._forgiven and not self._core.avoided.chances:
                why = f"{found.reason} The last failure: {last}." if (last := self._core.last_error) else found.reason
                self.end(NoRouteError(why, found.missing))
                return
            await self._backend.refresh()
            plan, self._forgiven = self._core.forgive(), True
            await asyncio.sleep(RETRY_S)
        self._perform(self._core.on_route(found, self._loop.time()))

    async def _seek(self, plan: Plan) -> None:
        """Find hops in the place of one that still serves; without any, the route stays as it is."""
        found = self._backend.plan(plan, self._work())
        if isinstance(found, NoRoute) and plan.worth_s is None:
            await self._backend.refresh()
            found = self._backend.plan(plan, self._work())
            if isinstance(found, NoRoute) and self._core.must_move and self._starts_over():
                return
        self._perform(self._core.on_ahead(found, self._loop.time()))

    def _work(self) -> Work:
        """A prompt that is known counts before it is given; new tokens as many as were agreed on."""
        terms, prefix = self._terms, self._terms.prefix
        known, most = len(prefix.prompt.token_ids) if prefix is not None else 0, terms.max_tokens
        prompt = min(max(known, self._core.position), most)
        chunk, begins = self._shape.chunk_tokens or CHUNK_TOKENS, None if self._core.stats.steps else prefix
        return Work(prompt, most - prompt, most, chunk, terms.token_bytes, begins, self._core.ours)

    def _starts_over(self) -> bool:
        """Where the surviving hops stand in the way of a route, give them up (this plans anew)."""
        whole = self._core.whole_plan()
        if whole is None or isinstance(self._backend.plan(whole, self._work()), NoRoute):
            return False
        self._perform(self._core.start_over())
        return True

    def end(self, error: ShoalError) -> None:
        """No step will be answered any more."""
        self._error = self._error or error
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever was to await it may have been cancelled
        self._waiting.clear()
        self._room.set()
        self._opened.set()
        for task in (self._planning, self._seeking):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._afterwards.end()

    def _chunk_tokens(self, count: int) -> int:
        return self._shape.chunk_tokens or self._backend.chunk_tokens(self.route, count, self._terms.token_bytes)

    async def _send_chunk(self, chunk: torch.Tensor, want: Want, length: int) -> asyncio.Future[tuple[int, Buffer]]:
        # What the first hop does not take yet waits as tensors, not as bytes.
        while self._error is None and (self._core.full() or (chunk.shape[0] > 1 and self._backend.clogged(self.route))):
            self._room.clear()
            await self._room.wait()
        if self._error is not None:
            raise self._error
        self._inputs.keep(chunk)
        data = self._inputs.packed(chunk)
        number, actions = self._core.step(chunk.shape[0], want, data, self._loop.time(), length)
        future = self._waiting[number] = self._loop.create_future()
        self._perform(actions)
        return future
