"""Looks at a swarm from this machine for `shoal doctor`: who answers, clocks, whether we can be reached, coverage.

Joins as a node of its own, opens no session and announces nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.client.cli.finding import Finding, State
from shoal.client.cli.status import view_of
from shoal.client.cli.terminal import short, spans

if TYPE_CHECKING:
    from shoal.dht.host import Host, HostConfig
    from shoal.dht.invite import Invite
    from shoal.dht.node import Node
    from shoal.routing.announcement import Announcement
    from shoal.routing.view import View

PEERS = 16  # so many are greeted
GREETING_S = 6.0


async def swarm(invite: Invite, config: HostConfig, n_blocks: int | None, revision: str | None) -> list[Finding]:
    """Everything about the swarm of `invite`, seen from a host as `config` says. The model's number of blocks and its
    revision, where they are known."""
    from shoal.dht.directory import DHTDirectory
    from shoal.dht.errors import DhtError
    from shoal.dht.host import open_host
    from shoal.dht.node import open_node

    config = replace(config, identity=config.resolve_identity(), bootstrap=invite.peers)
    found = []
    try:
        async with open_host(config) as host:
            found.append(await _bootstrap(host, invite))
            if found[0].state == "broken":
                return found
            async with open_node(host, invite.peers, guest=True) as node:
                found += [_clock(node), await _reach(host, config)]
                records = await DHTDirectory(node, host.identity, invite, "").lookup()
                view = view_of(records, n_blocks, revision, time.time())
                found += [_coverage(view), await _peers(host, view)]
    except DhtError as error:
        found.append(Finding("swarm", "broken", str(error), "run this again; if it stays, ask who gave you the invite"))
    return found


async def _bootstrap(host: Host, invite: Invite) -> Finding:
    from shoal.dht.host import dial_all
    from shoal.dht.reach import ids_of

    ids = ids_of(invite.peers)
    answered = await dial_all(host, invite.peers)
    text = f"{len(answered)} of {len(ids)} bootstrap nodes answer"
    if not answered:
        where = invite.peers[0].rpartition("/p2p/")[0]
        advice = f"see that you are online and that {where} is not blocked, or ask for a new invite"
        return Finding("bootstrap", "broken", text, advice)
    if len(answered) < len(ids):
        return Finding("bootstrap", "note", text, "the swarm works while one does; tell its founder")
    return Finding("bootstrap", "ok", text)


def _clock(node: Node) -> Finding:
    offset_s = node.clock_offset_s
    if offset_s:
        ahead = "behind" if offset_s > 0 else "ahead of"
        text = f"this clock is {abs(offset_s):.0f} s {ahead} the swarm's, which Shoal goes by"
        return Finding("clock", "note", text, "set this machine's clock, by NTP for example")
    return Finding("clock", "ok", "this clock and the swarm's agree")


async def _reach(host: Host, config: HostConfig) -> Finding:
    from shoal.dht.host import open_host
    from shoal.dht.reach import ask_reach, ids_of, port_of, reach_of

    found = reach_of(await ask_reach(host, ids_of(config.bootstrap)))
    if found == "open":
        return Finding("reach", "ok", "direct: others can begin a connection to this machine")
    if found == "unknown":
        return Finding("reach", "note", "unknown: no bootstrap node tells whether it can dial this machine")
    async with open_host(replace(config, identity=None, relayed=True, port=0)) as relayed:
        if relayed.reach == "relayed":
            text = "relayed: nothing from outside gets in, but a relay takes this machine"
            advice = f"it works as it is; faster for others: forward TCP port {config.port or 'N'} to this machine and "
            advice += "use --port" if not config.port else f"keep --port {config.port}"
            return Finding("reach", "note", text, advice)
    text = f"nothing from outside gets to port {port_of(host)}, and no bootstrap node relays"
    return Finding(
        "reach", "broken", text, "forward a TCP port to this machine (shoal peer --port), or ask the founder"
    )


def _coverage(view: View) -> Finding:
    if not view.n_blocks:
        return Finding("coverage", "broken", "nobody serves any block of the model", "start a peer: shoal peer --join")
    if gaps := view.missing():
        text = f"nobody serves blocks {spans(gaps)} of {view.n_blocks}: the model cannot run"
        return Finding("coverage", "broken", text, f"start a peer: shoal peer --join INVITE --num-blocks {len(gaps)}")
    if thin := [block for block, count in enumerate(view.coverage()) if count == 1]:
        text = f"all {view.n_blocks} blocks are served; {spans(thin)} by one peer only"
        return Finding("coverage", "note", text, "one more peer would make it safe")
    return Finding("coverage", "ok", f"all {view.n_blocks} blocks are served, by two peers or more")


async def _peers(host: Host, view: View) -> Finding:
    """Greet some peers: whether they can be reached from here and speak our version of the wire."""
    from shoal.peer.wire import VERSION

    some = view.peers[:PEERS]
    answers = await asyncio.gather(*(_greet(host, peer) for peer in some))
    if not some:
        return Finding("peers", "note", "there are no peers to greet")
    failures = {peer.peer_id: answer for peer, answer in zip(some, answers, strict=True) if answer}
    ways = ", ".join(f"{count} {reach}" for reach, count in Counter(peer.reach for peer in some).items())
    text = f"{len(some) - len(failures)} of {len(some)} peers ({ways}) answer in wire version {VERSION}"
    if not failures:
        return Finding("peers", "ok", text)
    peer_id, why = next(iter(failures.items()))
    state: State = "broken" if len(failures) == len(some) else "note"
    advice = "update Shoal here or there" if "version" in why else "others may reach them; if not, restart them"
    return Finding("peers", state, f"{text}; {short(peer_id)}: {why}", advice)


async def _greet(host: Host, peer: Announcement) -> str:
    """Exchange greetings; what went wrong, or nothing."""
    from shoal.peer.errors import HopClosed, ProtocolError
    from shoal.peer.link import Link, LinkState
    from shoal.peer.transport import P2PTransport

    try:
        async with asyncio.timeout(GREETING_S):
            stream = await P2PTransport(host).connect(peer.peer_id, peer.addrs)
            try:
                link = Link("shoal-doctor", time.perf_counter())
                stream.write(*link.outbox)
                while link.state is LinkState.HELLO and (data := await stream.read()):
                    link.receive(data, time.perf_counter())
            finally:
                stream.close()
    except TimeoutError:
        return f"no greeting within {GREETING_S:g} s"
    except (HopClosed, ProtocolError) as error:
        return str(error)
    return "" if link.state is LinkState.OPEN else "it closed the connection without a greeting"
