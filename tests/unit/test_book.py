"""The book of leases: who may open, what is set aside, who is forgotten when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from shoal.peer.book import BUSY_RETRY_S, LeaseBook, Limits, Offer
from shoal.peer.errors import Reason
from shoal.peer.lease import Lease
from shoal.peer.wire import Open, Refused, session_name

NS = b"n" * 32
OPEN = Open(
    session=b"s" * 16, epoch=1, namespace=NS, revision="r1", start=2, stop=4, max_tokens=10, next_step=0,
    dtype="float32", prev="", next="", next_addrs=(), final=True, forward_replay=False, proof=b"",
)  # fmt: skip


def book(n_pages: int = 8, limits: Limits = Limits(), proof: bytes = b"", context: int = 1 << 20) -> LeaseBook:
    offer = Offer(NS, "r1", 2, 6, 4, n_pages, 4, lambda given, client, session: given == proof, context)
    return LeaseBook(offer, limits)


def request(number: int = 0, of: str = "c", **changes) -> Open:
    return replace(OPEN, session=session_name(of, number.to_bytes(8, "big")), **changes)


def reason(answer: Lease | Refused) -> Reason:
    assert isinstance(answer, Refused)
    return answer.reason


def test_room_is_promised_when_a_lease_is_opened_and_pages_come_with_the_tokens():
    it = book()
    lease = it.open(request(max_tokens=9), "c")
    assert isinstance(lease, Lease)
    assert it.find(request().session) is lease
    assert (lease.owner, lease.terms.width) == ("c", 4)
    assert (lease.holding.max_pages, lease.holding.pages) == (3, ())  # rounded up
    assert (it.free_tokens, it.pages.free) == (20, 8)
    it.residency.begin(0.0)
    assert it.residency.prepare(lease.holding, 0, 5)
    assert (len(lease.holding.pages), it.pages.free) == (2, 6)
    it.detach(lease)
    it.free(lease)
    assert (it.free_tokens, it.pages.free) == (32, 8)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"namespace": b"x" * 32}, Reason.WRONG_MODEL),
        ({"revision": "r2"}, Reason.WRONG_MODEL),
        ({"proof": b"p" * 32}, Reason.FORBIDDEN),
        ({"start": 1}, Reason.NO_SUCH_BLOCKS),
        ({"stop": 7}, Reason.NO_SUCH_BLOCKS),
        ({"max_tokens": 33}, Reason.LIMIT),
        ({"max_tokens": 31}, Reason.LIMIT),  # the context has 30
    ],
)
def test_what_this_peer_does_not_offer_is_refused(changes, why):
    it = book(context=30)
    answer = it.open(request(**changes), "c")
    assert reason(answer) is why
    assert (answer.session, answer.epoch, answer.retry_s) == (request().session, 1, 0.0)
    assert it.free_tokens == 32


def test_the_proof_is_asked_for_this_client_and_session():
    asked = []
    offer = Offer(NS, "r1", 2, 6, 4, 8, 4, lambda *given: asked.append(given) or True)
    LeaseBook(offer).open(request(proof=b"p" * 32), "c")
    assert asked == [(b"p" * 32, "c", request().session)]


def test_a_secret_is_needed_before_anything_is_told():
    it = book(proof=b"q" * 32)
    it.draining = True
    assert reason(it.open(request(start=0), "c")) is Reason.FORBIDDEN
    assert reason(it.open(request(proof=b"q" * 32), "c")) is Reason.DRAINING


def test_a_paused_peer_takes_nobody_until_it_is_resumed():
    it = book()
    it.paused = True
    assert reason(it.open(request(), "c")) is Reason.DRAINING
    it.paused = False
    assert it.open(request(), "c") is it.leases[request().session]
    assert it.opened == 1


def test_the_whole_kv_can_be_leased_and_then_it_is_busy():
    it = book()
    lease = it.open(request(0, "a", max_tokens=32), "a")
    answer = it.open(request(1, "b", max_tokens=1), "b")
    assert (reason(answer), answer.retry_s) == (Reason.BUSY, BUSY_RETRY_S)
    it.detach(lease)
    assert isinstance(it.open(request(1, "b", max_tokens=1), "b"), Lease)


def test_a_session_that_is_opened_anew_has_the_room_that_it_had_while_something_still_runs_on_its_pages():
    it = book()
    old = it.open(request(max_tokens=32), "c")
    it.residency.begin(0.0)
    assert it.residency.prepare(old.holding, 0, 32)
    it.detach(old)
    assert it.pages.free == 0, "a step may run on them"
    new = it.open(request(max_tokens=32, epoch=2), "c")
    assert isinstance(new, Lease)
    assert reason(it.open(request(1, max_tokens=1), "c")) is Reason.BUSY, "it is promised once"
    it.free(old)
    it.residency.begin(1.0)
    assert it.residency.prepare(new.holding, 0, 32)
    it.detach(new)
    it.free(new)
    assert (it.residency.committed, it.pages.free) == (0, 8)


def test_host_memory_lets_more_leases_in_but_none_that_the_device_cannot_hold():
    it = book(limits=Limits(swap_pages=8))
    for number in range(2):
        assert isinstance(it.open(request(number, "a", max_tokens=32), "a"), Lease)
    answer = it.open(request(2, "b", max_tokens=1), "b")
    assert reason(answer) is Reason.BUSY
    assert answer.text == "0 of 1 tokens are free, in 0 pages"
    assert reason(it.open(request(3, "b", max_tokens=33), "b")) is Reason.LIMIT


def test_leases_are_bounded_per_client_and_in_all():
    it = book(limits=Limits(leases=3, leases_per_client=2))
    for number in range(2):
        assert isinstance(it.open(request(number, "a", max_tokens=1), "a"), Lease)
    assert reason(it.open(request(2, "a", max_tokens=1), "a")) is Reason.BUSY
    assert isinstance(it.open(request(3, "b", max_tokens=1), "b"), Lease)
    assert reason(it.open(request(4, max_tokens=1), "c")) is Reason.BUSY
    assert it.clients() == {"a", "b"}


@pytest.mark.parametrize("client", ["a", "b"])
def test_a_session_is_opened_once(client):
    it = book()
    lease = it.open(request(of="a"), "a")
    assert reason(it.open(request(of="a"), client)) is Reason.FORBIDDEN
    assert it.find(request(of="a").session) is lease


def test_nobody_takes_a_sessions_name_before_its_client():
    """A hop learns the name with the first message, and other hops may hear of the session only later."""
    it = book()
    stolen = it.open(request(of="a"), "hop")
    assert isinstance(stolen, Refused)
    assert "name" in stolen.text
    assert isinstance(it.open(request(of="a"), "a"), Lease)


def test_another_clients_lease_is_not_found():
    it = book()
    it.open(request(of="a"), "a")
    assert it.find(request(of="a").session, "b") is None
    assert it.find(request(of="a").session, "a") is not None
    assert it.find(b"x" * 16) is None


def test_a_lost_links_leases_end_after_the_grace():
    it = book(limits=Limits(grace_s=5.0))
    mine, other = it.open(request(0, "a"), "a", 1), it.open(request(1, "b"), "b", 2)
    it.link_lost(1, 100.0)
    assert it.sweep(104.9) == []
    assert it.sweep(105.0) == [mine]
    it.detach(mine)
    assert it.sweep(1000.0) == []
    assert it.find(other.session) is other


def test_a_client_that_comes_back_keeps_no_lease_of_its_lost_link():
    """A client takes a hop for lost with its link, and never comes back to that lease: it must not stay for ever."""
    it = book(limits=Limits(grace_s=5.0))
    old = it.open(request(0, "a"), "a", 1)
    it.link_lost(1, 100.0)
    new = it.open(request(1, "a"), "a", 2)
    assert it.sweep(106.0) == [old]
    assert it.find(new.session) is new


class Book(RuleBasedStateMachine):
    """Random opens, ends, losses: pages are free, held by one lease, or detached, and never two of these."""

    def __init__(self):
        super().__init__()
        self.book = book(n_pages=12, limits=Limits(leases=5, leases_per_client=3, grace_s=2.0))
        self.detached: list[Lease] = []
        self.now = 0.0
        self.number = 0

    @rule(client=st.sampled_from("abc"), tokens=st.integers(1, 60), link=st.integers(0, 4))
    def open(self, client, tokens, link):
        self.number += 1
        held, free = len(self.book.leases), 48 - 4 * sum(each.holding.max_pages for each in self.book.leases.values())
        assert self.book.free_tokens == free
        mine = sum(lease.owner == client for lease in self.book.leases.values())
        answer = self.book.open(request(self.number, client, max_tokens=tokens), client, link)
        pages = -(-tokens // 4)
        if tokens > 48:
            assert reason(answer) is Reason.LIMIT
        elif held >= 5 or mine >= 3 or pages * 4 > free:
            assert reason(answer) is Reason.BUSY
        else:
            assert answer.holding.max_pages == pages

    @precondition(lambda self: self.book.leases)
    @rule(data=st.data())
    def end(self, data):
        self._detach(data.draw(st.sampled_from(sorted(self.book.leases.values(), key=lambda lease: lease.session))))

    @precondition(lambda self: self.book.leases and not self.detached)
    @rule(data=st.data())
    def grow(self, data):
        """For a step, before which the pages of all that ended were given back."""
        lease = data.draw(st.sampled_from(sorted(self.book.leases.values(), key=lambda lease: lease.session)))
        self.book.residency.begin(self.now)
        assert self.book.residency.prepare(lease.holding, 0, data.draw(st.integers(1, lease.max_tokens)))

    @precondition(lambda self: self.detached)
    @rule()
    def free(self):
        self.book.free(self.detached.pop())

    @rule(link=st.integers(0, 4))
    def lose(self, link):
        self.book.link_lost(link, self.now)

    @rule(passed_s=st.floats(0.0, 3.0))
    def sweep(self, passed_s):
        self.now += passed_s
        for lease in self.book.sweep(self.now):
            self._detach(lease)

    def _detach(self, lease):
        self.book.detach(lease)
        self.detached.append(lease)

    @invariant()
    def pages_are_conserved(self):
        self.book.pages.check()
        held = [page for lease in [*self.book.leases.values(), *self.detached] for page in lease.holding.pages]
        assert len(held) == len(set(held))
        assert len(held) + self.book.pages.free == 12

    def teardown(self):
        for link in range(5):
            self.book.link_lost(link, self.now)
        for lease in self.book.sweep(self.now + 2.0):
            self._detach(lease)
        assert not self.book.leases
        while self.detached:
            self.free()
        assert self.book.free_tokens == 48


TestBook = Book.TestCase
TestBook.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_what_one_client_wrote_another_one_with_the_same_keys_does_not_find():
    """The keys are all that a client sends of its prompt: equal ones alone must not do."""
    offer = Offer(NS, "r1", 2, 6, 4, 16, 16, lambda given, client, session: True)
    it, keys = LeaseBook(offer), (b"k" * 16, b"l" * 16)

    def run(number: int, client: str, start: int = 2) -> int:
        """Positions that the client's lease finds; it writes a prompt of two chunks, and ends."""
        lease = it.open(request(number, client, max_tokens=128, start=start, prefix=keys), client)
        found = lease.holding.end
        it.residency.begin(float(number))
        assert it.residency.prepare(lease.holding, found, 128 - found) or found == 128
        it.residency.written(lease.holding)
        it.detach(lease)
        it.free(lease)
        return found

    assert [run(0, "one"), run(1, "other"), run(2, "one"), run(3, "one", start=3)] == [0, 0, 128, 0]
