"""Which idle leases give way to a client that finds no room, and to whom: the book of a peer with 12 pages."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.peer.book import LeaseBook, Limits, Offer
from shoal.peer.errors import Reason
from shoal.peer.giving import IDLE_S
from shoal.peer.lease import Lease, Send
from shoal.peer.wire import Hidden, Open, Refused, Want, session_name

NS = b"n" * 32
N_PAGES = 12
OPEN = Open(
    session=b"s" * 16, epoch=1, namespace=NS, revision="r1", start=2, stop=4, max_tokens=4, next_step=0,
    dtype="float32", prev="", next="", next_addrs=(), final=True, forward_replay=False, proof=b"",
)  # fmt: skip
HIDDEN = Hidden(
    session=b"s" * 16, epoch=1, step=0, position=0, count=1, want=Want.LAST, replay=False, rows=1, width=4,
    dtype="float32", payload=bytes(16),
)  # fmt: skip
LATE = 1000.0  # by then all that was opened is idle


class Peer:
    """A book, and what its node does with it. networks: those of clients, where they count."""

    def __init__(self, limits: Limits = Limits(), **networks: str) -> None:
        offer = Offer(NS, "r1", 2, 6, 4, N_PAGES, 4, lambda given, client, session: True)
        self.book, self.networks = LeaseBook(offer, limits), networks
        self._numbers = itertools.count()

    def open(self, client: str, pages: int = 1, now: float = 0.0) -> Lease | Refused:
        """A new session's lease of so many pages; nobody gives way to it."""
        name = session_name(client, next(self._numbers).to_bytes(8, "big"))
        request = replace(OPEN, session=name, max_tokens=4 * pages)
        return self.book.open(request, client, 0, self.networks.get(client), now)

    def hold(self, client: str, *pages: int, now: float = 0.0) -> list[Lease]:
        """Leases of so many pages each, there being room."""
        leases = [self.open(client, count, now) for count in pages]
        assert all(isinstance(lease, Lease) for lease in leases)
        return leases

    def want(self, client: str, pages: int = 1, now: float = LATE) -> list[Lease]:
        """A refused session's: which leases gave way to it. It has its own then."""
        name = session_name(client, next(self._numbers).to_bytes(8, "big"))
        request, network = replace(OPEN, session=name, max_tokens=4 * pages), self.networks.get(client)
        answer = self.book.open(request, client, 0, network, now)
        assert isinstance(answer, Refused)
        assert answer.reason is Reason.BUSY
        giving = self.book.giving_way(request, client, network, now)
        for lease in giving:
            self.book.detach(lease)
            self.book.free(lease)
            self.book.gave_way(lease)
        assert isinstance(self.book.open(request, client, 0, network, now), Lease) == bool(giving)
        return giving

    def room(self, now: float = LATE) -> int:
        """Pages that somebody new could get."""
        return self.book.room_tokens(now) // 4


def test_one_idle_lease_of_everything_gives_way_and_one_in_use_does_not():
    peer = Peer()
    (all_of_it,) = peer.hold("hoarder", N_PAGES, now=100.0)
    assert peer.want("other", 3, now=100.0 + IDLE_S - 0.1) == [], "it was opened a moment ago"
    all_of_it.holding.jobs = 1
    assert peer.want("other", 3) == [], "a step of it waits"
    all_of_it.holding.jobs, all_of_it.holding.idle_since = 0, LATE - IDLE_S + 0.1
    assert peer.want("other", 3) == [], "its step has just ended"
    all_of_it.holding.idle_since, all_of_it.heard = 0.0, LATE - IDLE_S + 0.1
    assert peer.want("other", 3) == [], "something for it has just come"
    all_of_it.heard = 0.0
    assert peer.want("other", 3) == [all_of_it]


def test_a_lease_that_gave_way_tells_its_owner_when_it_goes_on_and_nobody_before():
    peer = Peer()
    (lease,) = peer.hold("hoarder", N_PAGES)
    assert peer.want("other", 3) == [lease]
    step = replace(HIDDEN, session=lease.session)
    assert peer.book.find(lease.session) is None
    known = peer.book.addressed(lease.session)
    assert known is lease
    assert known.accept(step, "stranger") == known.accept(replace(step, epoch=2), "hoarder") == []
    (told,) = known.accept(step, "hoarder")
    assert isinstance(told, Send)
    assert (told.to, told.message.reason) == ("hoarder", Reason.UNKNOWN_LEASE)


def test_what_is_known_of_leases_that_gave_way_is_bounded_and_ends_when_they_are_opened_anew():
    peer = Peer(Limits(leases=N_PAGES))
    gone = []
    for number in range(3):
        peer.hold("hoarder", *[1] * N_PAGES)
        for client in range(5):
            gone += peer.want(f"guest {number} {client}")
        for lease in list(peer.book.leases.values()):
            peer.book.detach(lease)
            peer.book.free(lease)
    assert len(gone) == 15
    assert [peer.book.addressed(lease.session) is not None for lease in gone] == [False] * 3 + [True] * N_PAGES
    again = replace(OPEN, session=gone[-1].session, epoch=2)
    lease = peer.book.open(again, "hoarder", 0, None, LATE)
    assert peer.book.addressed(lease.session) is lease
    peer.book.detach(lease)
    assert peer.book.addressed(lease.session) is None


def test_the_longest_idle_go_first_and_no_more_of_them_than_it_takes():
    peer = Peer()
    leases = peer.hold("hoarder", 1, 2, 4, 3, 2)
    for lease, heard in zip(leases, (30.0, 20.0, 40.0, 50.0, 10.0), strict=True):
        lease.heard = heard
    assert peer.want("other", 3) == [leases[4], leases[1]]
    peer = Peer()
    _small, large = peer.hold("hoarder", 2, 10)
    large.heard = 1.0
    assert peer.want("other", 5) == [large], "the small one would not do, and is spared"


def test_nobody_gives_way_who_has_a_fair_share_or_less():
    peer = Peer()
    for client in "abc":
        peer.hold(client, 1, 1, 1, 1)
    assert peer.want("a") == peer.want("b", 2) == [], "a third each"
    assert len(peer.want("d", 1)) == 1, "a third is more than a quarter"
    peer = Peer()
    peer.hold("a", 6)
    busy, *idle = peer.hold("b", 5, 1)
    busy.holding.jobs = 1
    assert [lease.owner for lease in peer.want("c", 4)] == ["a"], "no more than four may go of either"
    assert idle[0] in peer.book.leases.values()
    peer = Peer()
    for lease in peer.hold("hoarder", 5, 5):
        lease.holding.jobs = 1
    peer.hold("modest", 2)
    assert peer.want("other") == [], "who has most is at work"


def test_who_would_have_no_less_than_the_other_had_gets_nothing():
    peer = Peer()
    peer.hold("hoarder", N_PAGES)
    assert peer.want("other", N_PAGES) == []
    assert len(peer.want("other", N_PAGES - 1)) == 1
    assert peer.want("hoarder", N_PAGES, now=2 * LATE) == [], "and it does not get back what it gave"


def test_a_client_s_own_idle_leases_are_not_taken_by_its_next():
    peer = Peer()
    peer.hold("hoarder", *[1] * N_PAGES)
    assert peer.want("hoarder") == []


def test_identities_of_one_network_have_one_network_s_share():
    many = [f"sybil {number}" for number in range(N_PAGES)]
    peer = Peer(**dict.fromkeys([*many, "neighbour"], "198.51.100.0/24"))
    for client in many:
        peer.hold(client, 1)
    assert peer.want("neighbour") == [], "each of them has as little as it would"
    assert len(peer.want("other", 4)) == 4
    assert len(peer.want("other", 2)) == 2
    assert peer.want("other", 1) == [], "half of it now"
    alone = Peer()
    for client in many:
        alone.hold(client, 1)
    assert alone.want("other", 4) == [], "who stands for itself, as in a private network, has its share alone"


def test_within_a_network_whoever_has_most_gives_way_first():
    names = dict.fromkeys(["hoarder", "modest", "newcomer"], "198.51.100.0/24")
    peer = Peer(**names)
    peer.hold("modest", 1, 1)
    many = peer.hold("hoarder", *[2] * 5, now=5.0)
    assert peer.want("newcomer", 2) == [many[0]]
    peer = Peer(**names)
    (modest,) = peer.hold("modest", 2)
    for lease in peer.hold("hoarder", *[2] * 5):
        lease.holding.jobs = 1
    assert peer.want("other", 2) == peer.want("newcomer") == []
    assert modest in peer.book.leases.values()


def test_where_there_are_as_many_leases_as_may_be_those_of_who_has_most_give_way():
    peer = Peer(Limits(leases=6, leases_per_client=4))
    peer.hold("modest", 1, 1)
    many = peer.hold("hoarder", *[1] * 4, now=5.0)
    assert peer.want("hoarder") == [], "it may not have more"
    assert peer.want("other") == [many[0]]
    assert peer.want("another") == [many[1]]


def test_nobody_gives_way_to_a_client_that_may_not_have_more_leases():
    peer = Peer(Limits(leases_per_client=2))
    peer.hold("hoarder", 5, 5)
    peer.hold("modest", 1, 1)
    assert peer.want("modest") == []


def test_what_is_told_of_the_room_is_what_somebody_new_can_get():
    peer = Peer()
    assert peer.room() == N_PAGES
    peer.hold("a", 2, 2, 2)
    assert peer.room() == 6
    peer.hold("a", 2, 2, 2)
    assert peer.room(now=IDLE_S - 0.1) == 0
    assert peer.room() == 6, "a half"
    assert len(peer.want("b", 4)) == 2
    assert (peer.room(), peer.book.free_tokens) == (4, 0)


@settings(max_examples=200, deadline=None)
@given(
    held=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, N_PAGES), st.booleans()), max_size=8),
    networks=st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["x", "y"])),
)
def test_who_asks_for_the_room_that_was_told_gets_it(held, networks):
    peer = Peer(**networks)
    for client, pages, idle in held:
        if isinstance(lease := peer.open(client, pages), Lease):
            lease.holding.jobs = not idle
    room, free = peer.room(), peer.book.free_tokens // 4
    assert room >= free
    if room > free:
        assert peer.want("somebody new", room)


@settings(max_examples=200, deadline=None)
@given(
    wishes=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, N_PAGES)), max_size=8),
    near=st.booleans(),
)
def test_two_that_want_everything_come_to_rest(wishes, near):
    """Both open what they were refused or lost again and again, and none of it is ever used."""
    networks = dict.fromkeys("ab", "x") if near else {}
    peer, now = Peer(**networks), LATE
    for _round in range(12):
        given = 0
        for number, (client, pages) in enumerate(wishes):
            request = replace(OPEN, session=session_name(client, bytes([number] * 8)), max_tokens=4 * pages)
            now += 2 * IDLE_S
            if request.session in peer.book.leases:
                continue
            asked = client, networks.get(client), now
            if isinstance(peer.book.open(request, client, 0, *asked[1:]), Lease):
                continue
            for lease in peer.book.giving_way(request, *asked):
                peer.book.detach(lease)
                peer.book.free(lease)
                given += 1
            peer.book.open(request, client, 0, *asked[1:])
    assert not given
