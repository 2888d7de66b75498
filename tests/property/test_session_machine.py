"""A session against real leases: whatever is lost, refused, late or silent, each step is answered once, and rightly.

The world around it is pure: peers are named numbers with a lease each, a link is a queue per pair of peers, and
hypothesis decides what moves next. Peers may hold the prompt's beginning from before, each more or less of it. No
sockets, no event loop, no clock.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import permutations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shoal.client.actions import Apart, Blame, Deliver, GiveUp, Plan, Send, SessionTerms
from shoal.client.prefix import Prefix, Prompt
from shoal.client.session import Session, State
from shoal.peer.errors import Reason
from shoal.peer.holding import Holding
from shoal.peer.lease import Lease, Run, Terms
from shoal.peer.wire import PREFIX_TOKENS, Close, Hidden, Open, Opened, Refused, Reroute, Want
from shoal.routing.route import Hop, Route

N_BLOCKS = 4
PRIME = 1_000_003
PROMPT = tuple(31 * i % 997 for i in range(150))
MAX_TOKENS = len(PROMPT) + 60
PREFIX = Prefix(Prompt(PROMPT), b"secret", (), lambda peer_id: "none")
S = b"s" * 16
CLIENT = "client"
SPANS = {"a": (0, 2), "b": (0, 1), "c": (1, 2), "d": (2, 4), "e": (2, 3), "f": (3, 4), "g": (1, 3), "h": (0, 4)}
WORD = struct.Struct("<f")  # whole numbers below PRIME, which float32 holds exactly
MAX_TROUBLES = 10  # fewer than the repairs after which a session gives up
Deeds = (Send, Plan, Deliver, Blame, Apart, GiveUp)
PAIRS = sorted(permutations(SPANS, 2))


def pack(numbers) -> bytes:
    return b"".join(WORD.pack(float(number)) for number in numbers)


def unpack(payload) -> list[int]:
    return [int(x) for (x,) in WORD.iter_unpack(bytes(payload))]


def forward(kv: dict[int, list[int]], blocks, position: int, numbers) -> list[int]:
    """Toy blocks whose output depends on every position before; writing at a position forgets what came after."""
    out = []
    for offset, x in enumerate(numbers):
        for block in blocks:
            del kv[block][position + offset :]
            kv[block].append(x)
            x = (3 * x + sum((i + 1) * v for i, v in enumerate(kv[block])) + 7 * block + 1) % PRIME
        out.append(x)
    return out


@cache
def prompt_kv() -> dict[int, list[int]]:
    """What every block holds once the prompt has passed."""
    kv = defaultdict(list)
    forward(kv, range(N_BLOCKS), 0, PROMPT)
    return kv


def kv_of(cached: int) -> dict[int, list[int]]:
    """All blocks' KV of the prompt's first tokens."""
    return defaultdict(list, {block: held[:cached] for block, held in prompt_kv().items()})


@dataclass
class Held:
    """A lease at a peer, its KV, and the runs that wait for the peer's device. `begins`: where its kept outputs do."""

    lease: Lease
    kv: dict[int, list[int]]
    begins: int
    jobs: deque = field(default_factory=deque)


class World(RuleBasedStateMachine):
    """Session, peers and links. `promise_s`: what its routes promise a token to take, if anything."""

    kind, promise_s = Session, 0.0

    @initialize(
        held=st.lists(st.sampled_from([1, 2, 1, 2, 1, 2, 0]), min_size=len(SPANS), max_size=len(SPANS)),
        begin=st.sampled_from(["waits", "waits", "waits", "named", "unnamed"]), salt=st.integers(0, 5),
        apart=st.sets(st.sampled_from(PAIRS), max_size=25), known=st.integers(0, 2),
    )  # fmt: skip
    def begin(self, held, begin, salt, apart, known):
        self.apart = apart  # pairs of peers of which one cannot reach the other
        self.groups = dict(zip(SPANS, held, strict=True))  # of the prompt, in each peer's cache
        self.inputs: list[int] = []
        self.reference = defaultdict(list)
        self.expected: dict[int, bytes] = {}
        self.delivered: dict[int, bytes] = {}
        self.held: dict[str, Held] = {}
        self.dead: set[str] = set()
        self.cut: set[str] = set()  # peers whose link with the client is broken, unknown to the client
        self.links: dict[tuple[str, str], deque] = defaultdict(deque)
        self.plan: Plan | None = None
        self.now, self.epoch, self.troubles, self.gave_up = 0.0, 0, 0, False
        self.salt = 1
        terms = SessionTerms(
            session=S, namespace=b"n" * 32, revision="r", start=0, stop=N_BLOCKS, max_tokens=MAX_TOKENS, width=1,
            dtype="float32", prove=lambda peer_id: b"", addrs=lambda peer_id: (f"/{peer_id}",),
            prefix=None if begin == "unnamed" else PREFIX, apart=lambda a, b: known > 1 and (a, b) in apart,
        )  # fmt: skip
        self.session = self.kind(terms, lambda a, b: pack(self.inputs[a:b]))
        self.act(self.session.begin())
        if begin == "waits":  # for all hops to say what they hold
            self.answer_plan(lambda choices: choices[salt % len(choices)])
            while self.flow_once():
                pass

    # -- what the session does -----------------------------------------------------------------------------------------

    def act(self, actions):
        if not self.expected and self.session.position:  # every hop is open and holds so much
            self.inputs = list(PROMPT[: self.session.position])
            self.reference = kv_of(self.session.position)
        in_route = {hop.peer_id for hop in self.session.route()}
        for action in actions:
            assert isinstance(action, Deeds)
            if isinstance(action, Send):
                self.sends(action, in_route)
                self.post(CLIENT, action.peer_id, action.message)
            elif isinstance(action, Plan):
                assert not action.avoid.isdisjoint(SPANS) or not self.session.route()
                assert in_route <= action.avoid  # no peer serves twice
                self.plans(action)
            elif isinstance(action, Deliver):
                assert action.step not in self.delivered
                assert bytes(action.payload) == self.expected[action.step]
                self.delivered[action.step] = bytes(action.payload)
            elif isinstance(action, Apart):
                assert {action.source, action.target} <= in_route
            elif isinstance(action, GiveUp):
                self.gave_up = True

    def sends(self, action: Send, in_route: set[str]):
        assert isinstance(action.message, Close) or action.peer_id in in_route
        assert action.message.epoch >= self.epoch
        self.epoch = action.message.epoch

    def plans(self, plan: Plan):
        self.plan = plan

    def post(self, source: str, target: str, message):
        """A message enters a link; the sender learns later that nobody is there."""
        if source == CLIENT and (target in self.cut or target in self.dead):
            self.cut_off(target)
        elif target not in self.dead and (source, target) not in self.apart:
            self.links[source, target].append(message)
        elif source in self.held:
            refusal = self.held[source].lease.refuse(Reason.NEXT_HOP_LOST, f"{target} is gone")
            self.perform(source, self.held[source], refusal)

    def cut_off(self, peer_id: str):
        """The client's link to a peer breaks: what it sends is lost until it has noticed."""
        if peer_id not in self.cut:
            self.cut.add(peer_id)
            self.links[peer_id, CLIENT].append("lost")

    # -- what peers do -------------------------------------------------------------------------------------------------

    def arrive(self, source: str, target: str, message):
        if target == CLIENT:
            if message == "lost":
                self.cut.discard(source)
                self.closed(source)
            else:
                self.act(self.session.on_message(source, message, self.now))
            return
        held = self.held.get(target)
        if isinstance(message, Open):
            self.open(target, message, held)
        elif isinstance(message, Close):
            if held and message.epoch >= held.lease.epoch:
                del self.held[target]
        elif held is None:
            if isinstance(message, Hidden | Reroute):  # or two peers without leases would refuse each other for ever
                refused = Refused(session=S, epoch=message.epoch, reason=Reason.UNKNOWN_LEASE, text="", retry_s=0.0)
                self.post(target, source, refused)
        elif isinstance(message, Reroute):
            assert not message.replay_to or not held.begins  # the client knows who cannot refill
            self.perform(target, held, held.lease.reroute(message, self.now))
        elif isinstance(message, Hidden):
            self.perform(target, held, held.lease.accept(message, source))

    def closed(self, peer_id: str):
        self.act(self.session.on_closed(peer_id, "gone"))

    def open(self, peer_id: str, request: Open, held: Held | None):
        if held is not None and request.epoch <= held.lease.epoch:
            answer = Refused(session=S, epoch=request.epoch, reason=Reason.FORBIDDEN, text="", retry_s=0.0)
        else:
            cached = PREFIX_TOKENS * self.groups[peer_id] if request.prefix else 0
            lease = Lease(request, Terms(CLIENT, Holding(end=cached), 1, 1 << 20))
            self.held[peer_id] = Held(lease, kv_of(cached), cached)
            answer = Opened(session=S, epoch=request.epoch, cached=cached)
        self.post(peer_id, CLIENT, answer)

    def perform(self, peer_id: str, held: Held, actions):
        for action in actions:
            if isinstance(action, Run):
                held.jobs.append(action)
            elif action.to != peer_id:
                self.post(peer_id, action.to, action.message)

    def compute(self, peer_id: str):
        held = self.held[peer_id]
        run = held.jobs.popleft()
        hidden = run.hidden
        blocks = range(held.lease.start, held.lease.stop)
        held.begins = min(held.begins, hidden.position)
        out = forward(held.kv, blocks, hidden.position, unpack(hidden.payload))
        kept = out[len(out) - run.keep_rows :]
        self.perform(peer_id, held, held.lease.finish(hidden, pack(kept), len(kept), (0.0, 0.0)))

    # -- rules ---------------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.session.full() and self.session.position < MAX_TOKENS - 4)
    @rule(count=st.integers(1, 4), want=st.sampled_from(Want))
    def step(self, count, want):
        if self.gave_up:
            return
        position = self.session.position
        self.salt += 1
        new = [(self.salt * 31 + i) % 1000 for i in range(count)]
        self.inputs[position:] = new
        out = forward(self.reference, range(N_BLOCKS), position, new)
        number, actions = self.session.step(count, want, pack(new), self.now)
        self.expected[number] = pack({Want.NONE: [], Want.LAST: out[-1:], Want.ALL: out}[want])
        self.act(actions)

    @precondition(lambda self: len(self.delivered) == len(self.expected) and self.session.position)
    @rule(data=st.data())
    def rewind(self, data):
        self.session.rewind(data.draw(st.integers(0, self.session.position)))

    @precondition(lambda self: any(self.links.values()))
    @rule(data=st.data(), count=st.integers(1, 6))
    def deliver(self, data, count):
        pair = data.draw(st.sampled_from(sorted(pair for pair, queue in self.links.items() if queue)))
        for _ in range(min(count, len(self.links[pair]))):
            if self.links[pair]:
                self.arrive(*pair, self.links[pair].popleft())

    @precondition(lambda self: any(held.jobs for held in self.held.values()))
    @rule(data=st.data())
    def run_one(self, data):
        self.compute(data.draw(st.sampled_from(sorted(peer for peer, held in self.held.items() if held.jobs))))

    @rule(rounds=st.integers(1, 8))
    def let_it_flow(self, rounds):
        for _ in range(rounds):
            self.flow_once()

    @precondition(lambda self: self.plan is not None)
    @rule(data=st.data())
    def find_route(self, data):
        self.answer_plan(lambda choices: data.draw(st.sampled_from(choices)))

    @precondition(lambda self: self.troubles < MAX_TROUBLES)
    @rule(data=st.data(), known=st.booleans())
    def lose_peer(self, data, known):
        """A peer dies with its leases; the client hears of it now or later."""
        self.lose(data.draw(st.sampled_from(self.targets())), known)

    @precondition(lambda self: self.troubles < MAX_TROUBLES and self.session.state is State.STREAMING)
    @rule(data=st.data())
    def lose_peer_and_mend(self, data):
        """A hop dies, and all that follows from it happens at once."""
        self.lose(data.draw(st.sampled_from(self.targets()[-2:])), known=True)
        while self.plan is not None:
            self.answer_plan(lambda choices: data.draw(st.sampled_from(choices)))
        while self.flow_once():
            pass

    def lose(self, peer_id, known):
        self.troubles += 1
        self.held.pop(peer_id, None)
        self.dead.add(peer_id)
        for pair, queue in self.links.items():
            if pair[1] == peer_id:
                queue.clear()
        self.cut_off(peer_id)
        if known:
            queue = self.links[peer_id, CLIENT]
            while queue:
                self.arrive(peer_id, CLIENT, queue.popleft())

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def come_back(self, data):
        self.dead.discard(data.draw(st.sampled_from(sorted(self.dead))))

    @precondition(lambda self: self.troubles < MAX_TROUBLES and self.held)
    @rule(data=st.data(), reason=st.sampled_from([Reason.FAULT, Reason.BAD_OUTPUT]))
    def fault(self, data, reason):
        """A peer's device fails: it says so and ends the lease."""
        peer_id = data.draw(st.sampled_from(sorted(self.held)))
        self.troubles += 1
        held = self.held.pop(peer_id)
        self.perform(peer_id, held, held.lease.refuse(reason, "fault"))

    @precondition(lambda self: self.troubles < MAX_TROUBLES and self.session.route())
    @rule(data=st.data(), reason=st.sampled_from(Reason))
    def refuse(self, data, reason):
        """Any hop may say no for any reason at any time."""
        peer_id = data.draw(st.sampled_from([hop.peer_id for hop in self.session.route()]))
        self.troubles += 1
        text = Refused(session=S, epoch=self.session._chain.epoch, reason=reason, text="no", retry_s=0.0)
        self.act(self.session.on_message(peer_id, text, self.now))

    @precondition(lambda self: self.troubles < MAX_TROUBLES and self.session.deadline() is not None)
    @rule()
    def time_out(self):
        self.troubles += 1
        self.fire()

    @precondition(lambda self: self.session.deadline() is not None)
    @rule(part=st.floats(0.0, 0.9))
    def wait(self, part):
        self.now += part * max(0.0, self.session.deadline() - self.now)
        self.act(self.session.on_timer(self.now))

    # -- in the end ----------------------------------------------------------------------------------------------------

    def targets(self) -> list[str]:
        return [hop.peer_id for hop in self.session.route()] or sorted(SPANS)

    def fire(self):
        self.now = max(self.now, self.session.deadline())
        self.act(self.session.on_timer(self.now))
        deadline = self.session.deadline()
        assert deadline is None or deadline > self.now  # or the shell would spin

    def answer_plan(self, choose) -> None:
        """Any route over peers that are alive, as a planner with an old view might find: one may be dead as well."""
        plan = self.plan
        route = self.route_for(plan, choose)
        if route is None:
            self.plan = self.session.forgive() if plan.avoid & self.failed() else None
            if self.plan is None:
                self.act(self.session.start_over())
            return
        self.plan = None
        self.act(self.session.on_route(route, self.now))

    def route_for(self, plan: Plan, choose) -> Route | None:
        """Hops that tile what a plan asks for; None if the peers that are left do not."""
        at, hops = plan.start, []
        usable = {peer: span for peer, span in SPANS.items() if peer not in plan.avoid}
        while at < plan.stop:
            used = {hop.peer_id for hop in hops}
            choices = sorted(
                peer for peer, (start, stop) in usable.items() if start <= at < stop and peer not in used
            )  # fmt: skip
            if not choices:
                return None
            peer = choose(choices)
            stop = min(usable[peer][1], plan.stop)
            hops.append(Hop(peer, at, stop))
            at = stop
        return Route(tuple(hops), 1.0, token_s=self.promise_s)

    def failed(self) -> set[str]:
        return self.session.avoided.peers

    def flow_once(self) -> bool:
        """Every link delivers what it holds, every device runs what waits."""
        moved = False
        for pair in sorted(self.links):
            for _ in range(len(self.links[pair])):
                if self.links[pair]:
                    self.arrive(*pair, self.links[pair].popleft())
                    moved = True
        for peer_id in sorted(self.held):
            while peer_id in self.held and self.held[peer_id].jobs:
                self.compute(peer_id)
                moved = True
        return moved

    def teardown(self):
        if not hasattr(self, "session"):
            return
        self.dead.clear()
        for _ in range(400):
            moved = self.flow_once()
            if self.plan is not None and not self.gave_up:
                self.answer_plan(lambda choices: choices[self.salt % len(choices)])
            elif not moved and self.session.deadline() is not None and not self.settled():
                self.fire()
            elif not moved:
                break
        assert not self.gave_up
        assert self.delivered == self.expected
        assert self.session.state is State.STREAMING
        self._close()

    def settled(self) -> bool:
        """Whether only new steps could bring anything more."""
        return False

    def _close(self):
        self.act(self.session.close())
        for _ in range(20):
            self.flow_once()
        assert not self.held  # no peer keeps a lease that nobody will use
        assert self.session.state is State.CLOSED
        late = Opened(session=S, epoch=self.session._chain.epoch)
        for hop in self.session.route():
            assert self.session.on_message(hop.peer_id, late, self.now) == []
            assert self.session.on_message(hop.peer_id, replace(late, epoch=late.epoch + 1), self.now) == []
            assert self.session.on_closed(hop.peer_id, "gone") == []
        assert self.session.on_timer(self.now + 1e6) == []
        assert self.session.on_route(Route((Hop("h", 0, N_BLOCKS),), 1.0), self.now) == []
        assert self.session.state is State.CLOSED
        assert self.session.deadline() is None

    @invariant()
    def the_route_tiles(self):
        if not hasattr(self, "session") or self.gave_up:
            return
        hops = self.session.route()
        assert len({hop.peer_id for hop in hops}) == len(hops)
        if self.session.state is not State.PLANNING:
            assert [hop.start for hop in hops] == [0, *(hop.stop for hop in hops[:-1])]
            assert hops[-1].stop == N_BLOCKS


TestSession = World.TestCase
TestSession.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
