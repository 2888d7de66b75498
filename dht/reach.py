"""Whether others can begin a connection to us: nodes that we reach dial back the address that they see us at.

The question is a port; the answer says whether something listened there and at which address. A node dials nothing but
the address that the question came from, so that it cannot be made to knock on strangers' doors.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from shoal.dht.foreign import P2PDaemonError, P2PHandlerError, PeerID
from shoal.dht.host import open_host
from shoal.dht.keys import network_of
from shoal.dht.maddr import endpoint, is_loopback, is_relayed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from shoal.dht.host import Host, HostConfig, Reach

logger = logging.getLogger(__name__)

PROTOCOL = "/shoal/1/reach"
DIAL_S = 2.0
ANSWER_S = 5.0
MAX_BYTES = 256
MAX_AT_ONCE, MAX_EACH = 64, 16  # questions that are being answered, and those of one network
ENOUGH = 3  # nodes that are asked
RELAY_LOOK_S, RELAY_LOOKS = 20.0, 3
MAX_ADDRS = 8
MAX_ADDRS_CHARS = 700  # an announcement has 1,500 bytes for everything


# What reading a stranger's line may come to; the recursion is that of JSON nested without end.
NO_ANSWER = (OSError, ValueError, KeyError, TypeError, TimeoutError, RecursionError)


class DialBack(NamedTuple):
    """What a node found: whether it reached us, and at which IP address it sees us."""

    reached: bool
    seen_at: str


@asynccontextmanager
async def open_reachable(config: HostConfig) -> AsyncIterator[Host]:
    """A host that others can reach: as `config` says if a bootstrap node can dial it, or none tells; through the
    bootstrap nodes' relays if those that tell cannot and one relays. Whoever names addresses to `announce` knows.

    Errors: those of `open_host`.
    """
    config = replace(config, identity=config.resolve_identity())
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_host(config))
        answers = await ask_reach(host, ids_of(config.bootstrap))
        if reach_of(answers) == "closed" and not config.announce:
            logger.info("nothing from outside gets through to port %d; joining through relays", port_of(host))
            await stack.aclose()
            host = await stack.enter_async_context(open_host(replace(config, relayed=True)))
            if host.reach != "relayed":  # some may still get here directly, from the same local network say
                await stack.aclose()
                host = await stack.enter_async_context(open_host(config))
        note_answers(host, answers)
        yield host


class DialBackService:
    """Answers others' questions on a host; made by `serve_reach`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._busy: Counter[str | None] = Counter()  # by network; None: our own

    async def answer(self, info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question; no answer if it is none, or if too many are being answered."""
        network = network_of(str(info.addr))
        if self._busy.total() >= MAX_AT_ONCE or (network is not None and self._busy[network] >= MAX_EACH):
            writer.close()
            return
        self._busy[network] += 1
        try:
            async with asyncio.timeout(ANSWER_S):
                question = json.loads(await reader.readline())
                found = await self._dial_back(str(info.peer_id), question["port"])
                writer.write(json.dumps(found).encode() + b"\n")
                await writer.drain()
        except NO_ANSWER as error:
            logger.debug("no dial-back for %s: %s", info.peer_id, error)
        finally:
            self._busy[network] -= 1
            self._busy += Counter()  # forgets those that have none
            writer.close()

    async def _dial_back(self, peer_id: str, port: object) -> dict[str, object]:
        seen = await seen_at(self._host, peer_id)
        if seen is None or type(port) is not int or not 0 < port < 65536:
            return {}
        return {"reached": await listens(seen, port), "seen_at": seen}


async def serve_reach(host: Host) -> None:
    """Dial back whoever asks, as long as the host runs."""
    await host.p2p.add_binary_stream_handler(PROTOCOL, DialBackService(host).answer)


async def ask_reach(host: Host, nodes: Iterable[str], port: int = 0) -> list[DialBack]:
    """Ask nodes that we have a connection to, all at once, about a TCP port of ours: the host's own, if none is given.
    Returns the answers that came."""
    port = port or port_of(host)
    others = [node for node in dict.fromkeys(nodes) if node != host.peer_id][:ENOUGH]
    if not port or not others:
        return []
    answers = await asyncio.gather(*(_ask(host, node, port) for node in others))
    return [answer for answer in answers if answer is not None]


def reach_of(answers: Iterable[DialBack]) -> Literal["open", "closed", "unknown"]:
    """One node that got through is proof; otherwise all that answered must have failed."""
    found = [answer.reached for answer in answers]
    return "open" if any(found) else "closed" if found else "unknown"


async def find_reach(host: Host, nodes: Iterable[str]) -> tuple[Reach, tuple[str, ...]]:
    """How others get to a running host now, and the addresses to tell them: a machine may be given new ones meanwhile,
    and the host knows them from then on. Errors: `OSError` and `EOFError` if the daemon dies."""
    maddrs = await host.look()
    if host.relayed:
        host.reach = "relayed" if any(map(is_relayed, maddrs)) else "unknown"
    else:
        answers = await ask_reach(host, nodes)
        host.reach = "unknown"
        note_answers(host, answers)
    return host.reach, shareable(host.maddrs)


async def relays_lost(host: Host, nodes: Iterable[str]) -> None:
    """Return once no relay has carried a host that needs one for a minute, though nodes answer: a relay that was away
    does not know it any more, and libp2p asks again only after a long while. Of other hosts, never."""
    others, without = tuple(nodes), 0
    if not host.relayed:
        await asyncio.Event().wait()
    while without < RELAY_LOOKS:
        await asyncio.sleep(RELAY_LOOK_S)
        try:
            carried = any(map(is_relayed, await host.current_maddrs()))
        except (OSError, EOFError):
            continue  # the daemon is going; others notice that
        without = 0 if carried or not await ask_reach(host, others) else without + 1
    logger.warning("no relay has carried this peer for a minute, though the swarm's nodes answer")


def ids_of(maddrs: Iterable[str]) -> list[str]:
    """The peers that full addresses belong to."""
    return list(dict.fromkeys(maddr.rpartition("/p2p/")[2] for maddr in maddrs))


def port_of(host: Host) -> int:
    """The TCP port that others would dial; 0 if there is none."""
    return next((found[1] for found in map(endpoint, host.maddrs) if found), 0)


def shareable(maddrs: Sequence[str]) -> tuple[str, ...]:
    """As many addresses as an announcement has room for: ways through relays first, then those that were first. Those
    of this machine alone only if there are no others."""
    elsewhere = [maddr for maddr in maddrs if not is_loopback(maddr)] or maddrs
    kept: list[str] = []
    for maddr in sorted(elsewhere, key=lambda maddr: not is_relayed(maddr))[:MAX_ADDRS]:
        if sum(map(len, kept)) + len(maddr) <= MAX_ADDRS_CHARS:
            kept.append(maddr)
    return tuple(kept)


def note_answers(host: Host, answers: Sequence[DialBack]) -> None:
    """Let a host know what the answers prove; an address at which it was reached and that it did not know comes first,
    and stays as long as nobody gets here at another."""
    seen = next((answer.seen_at for answer in answers if answer.reached), None)
    if seen is None:
        return
    port, own = port_of(host), tuple(maddr for maddr in host.maddrs if maddr != host.outside)
    known = host.told or any(endpoint(maddr) == (seen, port) for maddr in own)
    host.outside = "" if known else f"/ip{6 if ':' in seen else 4}/{seen}/tcp/{port}/p2p/{host.peer_id}"
    host.maddrs, host.reach = (own if known else (host.outside, *own)), "direct"


async def seen_at(host: Host, peer_id: str) -> str | None:
    """The IP address from which a peer is connected to us; None if only through a relay."""
    for peer in await host.p2p.list_peers():
        if str(peer.peer_id) == peer_id:
            found = next(filter(None, (endpoint(str(maddr)) for maddr in peer.addrs)), None)
            if found is not None:
                return found[0]
    return None


async def listens(address: str, port: int, within_s: float = DIAL_S) -> bool:
    """Whether a TCP connection can be begun."""
    try:
        async with asyncio.timeout(within_s):
            _, writer = await asyncio.open_connection(address, port)
    except OSError:  # a timeout is one too
        return False
    writer.close()
    return True


async def _ask(host: Host, node: str, port: int) -> DialBack | None:
    try:
        async with asyncio.timeout(ANSWER_S):
            _, reader, writer = await host.p2p.call_binary_stream_handler(PeerID.from_base58(node), PROTOCOL)
            try:
                writer.write(json.dumps({"port": port}).encode() + b"\n")
                answer = json.loads(await reader.readline())
            finally:
                writer.close()
        return DialBack(bool(answer["reached"]), str(ip_address(answer["seen_at"])))
    except (*NO_ANSWER, EOFError, P2PDaemonError, P2PHandlerError) as error:
        logger.debug("%s does not dial back: %s", node, error)
        return None
