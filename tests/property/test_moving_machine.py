"""A session that also moves, against real leases: whoever leaves, slows down or falls silent, each step is answered
once, answers come in order, hops that were replaced hear of nothing but their end, and nobody keeps a lease.

The world is that of `test_session_machine`; here a route promises how long a token takes, some peers take far longer,
and hypothesis decides as well when those who want to go say so, and when what takes their place is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from shoal.client.moving import MovingSession
from shoal.client.session import State
from shoal.peer.wire import Close, Hidden, Leaving, Open, Opened, Receipt, Want
from shoal.routing.route import Hop, NoRoute, Route
from test_session_machine import CLIENT, MAX_TOKENS, MAX_TROUBLES, N_BLOCKS, S, World

if TYPE_CHECKING:
    from shoal.client.actions import Plan, Send

SLOW_S = 8.0  # a slow peer's token, where the whole route promised one in a second
NOWHERE = NoRoute((), "nobody else")


class MovingWorld(World):
    """The same world with a session that moves. `leased`: peers that were asked for a lease and not told that it ended,
    as long as their link stands, and under which epoch. `confirmed`: who confirmed which epoch. `ahead`: a plan that
    was asked for while the hops in question still serve. `attempts`: epochs under which others were opened for it."""

    kind, promise_s = MovingSession, 1.0

    def __init__(self):
        super().__init__()
        self.leased: dict[str, int] = {}
        self.confirmed: set[tuple[str, int]] = set()
        self.attempts: set[int] = set()
        self.newest, self.moves = 0, 0
        self.slow: set[str] = set()
        self.ahead: Plan | None = None

    # -- what the session does -----------------------------------------------------------------------------------------

    def act(self, actions):
        if self.session.stats.moves > self.moves:
            self.moves, epoch = self.session.stats.moves, self.session._chain.epoch
            self.attempts.remove(epoch)
            assert {(peer, epoch) for peer, opened in self.leased.items() if opened == epoch} <= self.confirmed
        super().act(actions)

    def sends(self, action: Send, in_route: set[str]):
        peer_id, message = action.peer_id, action.message
        if isinstance(message, Close):
            self.leased.pop(peer_id, None)
        elif isinstance(message, Open) and peer_id in self.fresh():
            assert message.epoch > self.newest
            self.attempts.add(message.epoch)
            self.leased[peer_id] = message.epoch
        else:
            assert peer_id in in_route
            assert message.epoch == self.session._chain.epoch >= self.epoch
            assert message.epoch not in self.attempts  # nobody may mistake for it what was opened for nothing
            self.epoch = message.epoch
            if isinstance(message, Open):
                self.leased[peer_id] = message.epoch
            assert peer_id in self.leased
            if isinstance(message, Hidden) and not message.replay:
                assert {(peer, message.epoch) for peer in in_route} <= self.confirmed

    def plans(self, plan: Plan):
        if plan.ahead:
            assert self.session.state is State.STREAMING
            self.ahead = plan
        else:
            self.plan = plan

    def fresh(self) -> set[str]:
        """Hops that are being opened beside those in use."""
        chain = self.session._handover.chain
        return set() if chain is None else {link.peer_id for link in chain.links if link.fresh}

    def in_use(self) -> list[str]:
        """Hops of the route that hold their leases."""
        return [hop.peer_id for hop in self.session.route() if hop.peer_id in self.held]

    def closed(self, peer_id: str):
        self.leased.pop(peer_id, None)
        self.act(self.session.on_closed(peer_id, "gone", self.now))

    def arrive(self, source: str, target: str, message):
        if target == CLIENT and source in self.slow and isinstance(message, Receipt):
            self.now += SLOW_S
        if target == CLIENT and isinstance(message, Opened):
            self.confirmed.add((source, message.epoch))
        super().arrive(source, target, message)

    # -- rules ---------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.troubles < MAX_TROUBLES and self.held)
    @rule(data=st.data())
    def wants_to_go(self, data):
        """Whoever holds a lease may ask to be replaced, before it is in use too."""
        peer_id = data.draw(st.sampled_from(sorted(self.held)))
        self.troubles += 1
        self.post(peer_id, CLIENT, Leaving(session=S, epoch=self.held[peer_id].lease.epoch))

    @precondition(lambda self: self.session.state is State.STREAMING and self.in_use())
    @rule(data=st.data(), flows=st.integers(0, 3))
    def is_replaced(self, data, flows):
        """A hop leaves and others are found at once; how far they get before something else happens is open."""
        self.replace(data.draw(st.sampled_from(self.in_use())), lambda choices: data.draw(st.sampled_from(choices)))
        for _ in range(flows):
            self.flow_once()

    @precondition(lambda self: self.troubles < MAX_TROUBLES and self.session.route())
    @rule(data=st.data(), tokens=st.integers(4, 9))
    def slows_down(self, data, tokens):
        """A hop takes long over lone tokens, until it is found slow, say."""
        self.troubles += 1
        self.slow = {data.draw(st.sampled_from(self.targets()))}
        for _ in range(tokens):
            while self.flow_once():
                pass
            if len(self.delivered) == len(self.expected) and self.session.position < MAX_TOKENS - 4:
                self.step(1, Want.LAST)
        while self.flow_once():
            pass
        self.slow = set()

    @precondition(lambda self: self.session.deadline() is not None and self.session.deadline() - self.now <= SLOW_S)
    @rule()
    def hush(self):
        """Nothing is heard for a while, or it is time to look again."""
        self.fire()

    @precondition(lambda self: self.ahead is not None)
    @rule(data=st.data(), found=st.booleans(), ready=st.booleans())
    def find_hops_ahead(self, data, found, ready):
        """`ready`: they open at once."""
        self.answer_ahead(lambda choices: data.draw(st.sampled_from(choices)), found=found)
        while ready and self.flow_once():
            pass

    @precondition(lambda self: self.troubles < MAX_TROUBLES and self.session.route())
    @rule(data=st.data())
    def late(self, data):
        """A link takes long to open, and others could serve."""
        peer_id = data.draw(st.sampled_from(self.targets()))
        if self.route_for(self.session.without(peer_id), lambda choices: choices[0]) is not None:
            self.troubles += 1
            self.act(self.session.on_late(peer_id))

    def replace(self, peer_id: str, choose):
        self.post(peer_id, CLIENT, Leaving(session=S, epoch=self.held[peer_id].lease.epoch))
        queue = self.links[peer_id, CLIENT]
        while queue:
            self.arrive(peer_id, CLIENT, queue.popleft())
        if self.ahead is not None:
            self.answer_ahead(choose, found=True)

    def answer_ahead(self, choose, *, found: bool):
        plan, self.ahead = self.ahead, None
        route = self.route_for(plan, choose) if found else None
        whole = self.session.whole_plan() if route is None and plan.worth_s is None else None
        if whole is not None and self.route_for(whole, choose) is not None:
            self.act(self.session.start_over())
            return
        self.newest = max(self.newest, self.epoch, *self.attempts, 0)
        self.act(self.session.on_ahead(route or NOWHERE, self.now))

    # -- in the end ----------------------------------------------------------------------------------------------------

    def teardown(self):
        if self.ahead is not None:
            self.answer_ahead(lambda choices: choices[self.salt % len(choices)], found=bool(self.salt % 3))
        super().teardown()

    def settled(self) -> bool:
        return self.delivered == self.expected and self.session.state is State.STREAMING

    def _close(self):
        """Also while hops are sought for, or opened beside those in use."""
        if self.salt % 2 and self.in_use():
            self.replace(self.in_use()[-1], lambda choices: choices[self.salt % len(choices)])
        super()._close()
        assert not self.leased
        assert self.session.on_ahead(Route((Hop("h", 0, N_BLOCKS),), 1.0, token_s=0.1), self.now) == []

    @invariant()
    def answers_come_in_order(self):
        """A step without one is done with its receipt: whoever ran it has run those before it."""
        answers = [step for step, payload in getattr(self, "delivered", {}).items() if payload]
        assert answers == sorted(answers)

    @invariant()
    def only_hops_in_use_or_to_come_are_open(self):
        if hasattr(self, "session"):
            assert self.leased.keys() == {hop.peer_id for hop in self.session.route()} | self.fresh()


TestMoving = MovingWorld.TestCase
TestMoving.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
