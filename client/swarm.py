"""A client's place in a swarm: the latest view, links to peers, what it has measured, and the sessions over them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

from shoal.blocks.formats import row_bytes
from shoal.client.acquaintance import Acquaintance
from shoal.client.actions import Plan, SessionTerms, Work
from shoal.client.alone import alone
from shoal.client.backend import Shape
from shoal.client.familiar import Familiar, choose, familiar_route
from shoal.client.lookout import WAIT, Lookout
from shoal.client.measured import Measured
from shoal.client.options import Model, SessionOptions
from shoal.client.place import Place, SwarmOptions
from shoal.client.prefix import Prefix
from shoal.client.presence import Presence
from shoal.client.remote import RemoteSession
from shoal.peer.errors import NoRouteError
from shoal.peer.link import IMPATIENT
from shoal.peer.pool import ChannelPool, PoolConfig
from shoal.peer.wire import SESSION_BYTES, session_name
from shoal.routing.chunks import chunk_of, lines_hold_up
from shoal.routing.health import Health
from shoal.routing.planner import NoRoute, Route, RouteRequest, plan_route
from shoal.routing.route import CHUNK_TOKENS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from shoal.dht.invite import Invite
    from shoal.dht.record import Record
    from shoal.peer.channel import Channel
    from shoal.peer.errors import HopError
    from shoal.peer.wire import Message
    from shoal.routing.knowledge import Knowledge
    from shoal.routing.route import Hop
    from shoal.routing.view import View

__all__ = ["Model", "Place", "SessionOptions", "Swarm", "SwarmOptions", "join_swarm"]

SECRET_BYTES = 32
FIRST_LOOK_S = 0.05  # who joins begins with what the first node said, and is verified by then


class Swarm:
    """Use through `join_swarm`, or as `async with Swarm(place, model)`."""

    def __init__(self, place: Place, model: Model) -> None:
        self.model = model
        self._place = place
        self._lookout = Lookout(model)
        self._measured, self._familiar = Measured(), Familiar()
        self._secret = place.random_bytes(SECRET_BYTES)  # of the names that prompts get
        self._sessions: dict[bytes, RemoteSession] = {}
        config = PoolConfig("shoal-client", IMPATIENT, clock=place.clock, on_room=self._on_room, on_late=self._on_late)
        self._pool = ChannelPool(place.transport, config, self._on_message, self._on_lost, self._on_open)
        self._met = Acquaintance(self._pool, place.clock, place.rng)
        self.presence = Presence(self._pool, place.clock)
        self._tasks = asyncio.TaskGroup()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        await self._pool.__aenter__()
        try:
            if (await self.refresh(FIRST_LOOK_S)).missing():
                await self.refresh()
        except BaseException:
            await self.__aexit__()
            raise
        self._watching = self._tasks.create_task(self._watch())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await self._pool.__aexit__(*exc_info)
        await self._tasks.__aexit__(None, None, None)

    @property
    def view(self) -> View:
        """The latest snapshot of the swarm."""
        return self._lookout.view

    @property
    def other_revisions(self) -> dict[str, str]:
        """Peers that serve another revision of the model, which is why they are not in the view."""
        return dict(self._lookout.other_revisions)

    async def refresh(self, within_s: float | None = None) -> View:
        """Look the swarm up now. `within_s`: see `Directory.lookup`."""
        return self._seen(await self._place.directory.lookup(within_s), more=within_s is not None)

    def _seen(self, records: Sequence[Record], *, more: bool = False) -> View:
        """Take what the directory gave; `more` is to come."""
        view = self._lookout.take(records, self._place.wall())
        self._met.greet(view, self._place.directory.nodes(), more=more)
        self.presence.refreshed(view)
        return view

    async def wait_covered(self, timeout_s: float, on_view: Callable[[View], None] | None = None) -> View:
        """The view once every block has a holder. Errors: `NoRouteError` naming the missing blocks."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while self.view.missing():
            if loop.time() >= end:
                raise NoRouteError(self._lookout.why_missing(), tuple(self.view.missing()))
            await asyncio.sleep(min(0.5, max(0.0, end - loop.time())))
            await self.refresh()
            if on_view is not None:
                on_view(self.view)
        return self.view

    @asynccontextmanager
    async def session(self, options: SessionOptions) -> AsyncIterator[RemoteSession]:
        """A generation over a route of its own. Errors show in its first `step`."""
        terms = self._terms(options)
        await self._met.settle(terms.start, terms.stop)
        remote = RemoteSession(terms, Shape(options.chunk_tokens, options.wait_s, options.dtype), self)
        self._sessions[terms.session] = remote
        try:
            async with remote:
                yield remote
        finally:
            now = self._place.clock()
            self._measured.learn(remote.stats.take_news(), now)
            self._measured.served(remote.stats.hops.keys() & {hop.peer_id for hop in remote.route}, now)
            del self._sessions[terms.session]

    # -- what sessions ask of their swarm -------------------------------------------------------------------------

    def send(self, peer_id: str, message: Message) -> None:
        """Queue a message to a peer."""
        self._pool.send(peer_id, self.addrs(peer_id), message)

    def clogged(self, hops: Sequence[Hop]) -> bool:
        """Whether so much waits for the first hop that more should not be made yet."""
        return bool(hops) and self._pool.clogged(hops[0].peer_id)

    def addrs(self, peer_id: str) -> tuple[str, ...]:
        """Where a peer says that it can be reached; empty if it is not in the view."""
        found = self.view.by_id.get(peer_id)
        return () if found is None else found.addrs

    def plan(self, plan: Plan, work: Work) -> Route | NoRoute:
        """Hops for a lost span, from the latest view and what was measured."""
        now, knowledge = self._place.wall(), self.knowledge()
        request = RouteRequest(
            plan.start, plan.stop, prompt_tokens=work.prompt_tokens, new_tokens=work.new_tokens,
            kv_tokens=work.max_tokens, avoid=plan.avoid, knowledge=knowledge, upstream=plan.upstream,
            downstream=plan.downstream, chunk_tokens=work.chunk_tokens, token_bytes=work.token_bytes, ours=work.ours,
        )  # fmt: skip
        found: Route | NoRoute = NoRoute((), "")
        for ask in _ever_less_choosy(request, self._met.strangers(self.view)):
            found = plan_route(self.view, ask, now, self._place.rng)
            if isinstance(found, Route):
                break
        if isinstance(found, NoRoute):
            advice = "" if self.view.missing() else f"{WAIT.capitalize()} "  # what misses a holder is told with it
            return replace(found, reason=f"{found.reason} {advice}{self._lookout.revision_hint()}".rstrip())
        if plan.here:
            return found if self._met.here(self.view, found.hops) else NoRoute((), "nobody else has let us in yet")
        begins = work.begins
        if begins is None or (known := self._familiar.find(begins.groups)) is None:
            return found
        familiar = familiar_route(self.view, request, known, now, self._place.rng)
        return choose(found, familiar, awaited=begins.prompt.awaited)

    def held(self, terms: SessionTerms, token_ids: Sequence[int], hops: tuple[Hop, ...]) -> None:
        """Remember who holds what a session began with."""
        if terms.prefix is not None and token_ids:
            self._familiar.note(terms.prefix.after(token_ids).groups, hops)

    def chunk_tokens(self, hops: Sequence[Hop], tokens: int, token_bytes: int) -> int:
        """In which pieces a prompt passes a route soonest."""
        return chunk_of(self.view.columns, self.knowledge(), hops, tokens, token_bytes)

    def blame(self, error: HopError) -> None:
        """Remember a failure."""
        self._measured.failed(error, self._place.clock())

    def apart(self, source: str, target: str) -> None:
        """Remember that one peer does not reach another."""
        self._measured.apart.note(source, target, self._place.clock())

    def pardon(self) -> None:
        """It was our own network that failed: nobody is to blame for it."""
        self._measured.health = Health()

    # -- keeping up -----------------------------------------------------------------------------------------------

    def knowledge(self) -> Knowledge:
        """All that was measured so far, by sessions that still run too."""
        now = self._place.clock()
        for session in self._sessions.values():
            self._measured.learn(session.stats.take_news(), now)
        line = self._pool.upload(), self._pool.rates()
        return self._measured.knowledge(self.view.columns, self._pool.rtts(), now, *line)

    def _terms(self, options: SessionOptions) -> SessionTerms:
        invite, me = self._place.invite, self._place.transport.peer_id
        session, codec = session_name(me, self._place.random_bytes(SESSION_BYTES // 2)), self._form(options)
        form, prompt = (codec, options.start), options.prompt
        return SessionTerms(
            session=session, namespace=invite.namespace, revision=self.model.revision, start=options.start,
            stop=self.model.n_blocks if options.stop is None else options.stop, max_tokens=options.max_tokens,
            width=self.model.width, dtype=codec, addrs=self.addrs,
            prove=lambda peer_id: invite.prove(me, peer_id, session), priority=options.priority,
            apart=lambda source, target: (source, target) in self._measured.apart.pairs(self._place.clock()),
            prefix=None if prompt is None else Prefix(prompt, self._secret, form, self._precision),
        )  # fmt: skip

    def _form(self, options: SessionOptions) -> str:
        """In which form a session's hidden states travel. float32 is asked for by who wants exactness."""
        if options.codec != "auto" or options.dtype == "float32":
            return options.dtype if options.codec in (None, "auto") else str(options.codec)
        stop, token_bytes = options.stop or self.model.n_blocks, row_bytes(options.dtype, self.model.width)
        work = Work(0, 1, options.max_tokens, CHUNK_TOKENS, token_bytes)
        found = self.plan(Plan(options.start, stop, frozenset(), None, None), work)
        slow = isinstance(found, Route) and lines_hold_up(self.view.columns, self.knowledge(), found.hops, token_bytes)
        return "int8" if slow else options.dtype

    def _precision(self, peer_id: str) -> str:
        """How a peer computes, as it announces: its outputs depend on it."""
        found = self.view.by_id.get(peer_id)
        return "" if found is None else f"{found.quantization} {found.dtype}"

    async def _watch(self) -> None:
        self._seen(await self._place.directory.rest())
        while True:
            await asyncio.sleep(self._place.refresh_s)
            await self.refresh()
            needed = {hop.peer_id for session in self._sessions.values() for hop in session.route}
            self._met.tidy(needed | self.presence.watched)

    def _on_message(self, channel: Channel, message: Message) -> None:
        session = self._sessions.get(getattr(message, "session", b""))
        if session is not None:
            alone(session, partial(session.on_message, channel.remote, message))

    def _on_room(self, _peer_id: str) -> None:
        for session in self._sessions.values():
            session.on_room()

    def _on_open(self, peer_id: str) -> None:
        self._met.opened(peer_id)
        self.presence.opened(peer_id)

    def _on_late(self, peer_id: str, why: str) -> None:
        self._met.late(peer_id)
        for session in [one for one in self._sessions.values() if any(hop.peer_id == peer_id for hop in one.route)]:
            alone(session, partial(session.on_lost, peer_id, f"{peer_id} {why}", late=True))

    def _on_lost(self, peer_id: str, why: str) -> None:
        self._met.lost(peer_id)
        self.presence.lost(peer_id)
        for session in list(self._sessions.values()):
            alone(session, partial(session.on_lost, peer_id, f"{peer_id} {why}"))


def _ever_less_choosy(request: RouteRequest, strangers: frozenset[str]) -> Iterator[RouteRequest]:
    """Peers that have let us in come first; a doubtful one is better than none, too. Nothing is asked twice."""
    if strangers - request.avoid:
        yield replace(request, avoid=request.avoid | strangers)
    yield request
    if request.knowledge.banned:
        yield replace(request, knowledge=replace(request.knowledge, banned=frozenset()))


@asynccontextmanager
async def join_swarm(invite: Invite, model: Model, options: SwarmOptions = SwarmOptions()) -> AsyncIterator[Swarm]:
    """Join over libp2p. Errors: `HostError` (no daemon, port taken), `JoinError` (nobody of the invite answers)."""
    from shoal.client.network import open_network
    from shoal.dht.host import HostConfig, listen_for

    listen = options.listen or listen_for(invite.peers)
    config = HostConfig(identity=options.identity, listen=listen, port=options.port, bootstrap=invite.peers)
    async with (
        open_network(config, invite, model.revision) as network,
        Swarm(Place(network, network, invite, options.refresh_s), model) as swarm,
    ):
        network.on_lost = swarm.pardon
        yield swarm
