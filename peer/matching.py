"""Whether what a peer is to serve is what its swarm serves: clients use only peers of their own model and revision.

Says so to the volunteer; changes nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.dht.errors import DhtError
from shoal.peer.config import PeerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.dht.directory import Directory
    from shoal.peer.config import PeerConfig

logger = logging.getLogger("shoal.peer")


def check_invited(config: PeerConfig) -> None:
    """PeerError if the invite names one model and the volunteer surely another: whoever joins with that invite looks
    for the first. What a directory holds is not looked at."""
    ours, invited = config.model, config.invite.model
    if _is_name(ours) and _is_name(invited) and ours.casefold() != invited.casefold():
        raise PeerError(
            f"this invite is for {invited}, so nobody who joins with it would find {ours} here: leave --model out, or "
            f"make an invite for {ours} (shoal invite --model {ours} --peers MADDR)"
        )


async def warn_of_others(directory: Directory, me: str, config: PeerConfig, revision: str) -> None:
    """Look once who else is there, and tell the volunteer if they serve another revision than this peer."""
    try:
        records = await directory.lookup()
    except DhtError as error:
        logger.debug("could not look which revision others serve: %s", error)
        return
    others = [record.revision for record in records if record.peer_id != me]
    if said := mismatch(config, revision, others):
        logger.warning("%s", said)


def mismatch(config: PeerConfig, ours: str, others: Sequence[str]) -> str:
    """What to tell a volunteer who serves revision `ours` among peers that serve `others`; "" if nothing, since some
    serve the same and no other revision has more peers."""
    # Strangers may announce anything: what cannot be a revision is not shown.
    counts = Counter(revision for revision in others if revision.isascii() and revision.isalnum())
    alike = counts.pop(ours, 0)
    if not counts:
        return ""
    theirs, count = max(counts.items(), key=lambda item: (item[1], item[0]))
    if alike and count <= alike + 1:
        return ""
    serve = f"{count} peers of this swarm serve" if count > 1 else "1 peer of this swarm serves"
    mine = f"this one and {alike} more" if alike else "this one alone"
    return f"{serve} revision {theirs}, {mine} {ours}: their clients do not use it. {_advice(config, ours, theirs)}"


def _advice(config: PeerConfig, ours: str, theirs: str) -> str:
    from shoal.blocks.checkpoint import DEMO
    from shoal.blocks.hub_cache import is_commit

    invited = config.invite.model
    if is_commit(theirs):
        same = config.model == invited and is_commit(ours)
        model = "" if same else f"--model {invited if _is_name(invited) else 'NAME'} "
        return f"To serve what they do, start it with {model}--revision {theirs}."
    if invited == DEMO != config.model:
        return "To serve what they do, start it without --model."
    return "To serve what they do, give --model a copy of their directory."


def _is_name(model: str) -> bool:
    """Whether a name means the same model everywhere: `demo`, or one of the hub with its owner."""
    from shoal.blocks.checkpoint import DEMO
    from shoal.blocks.hub_listing import is_repo_id

    return model == DEMO or ("/" in model and is_repo_id(model) and not Path(model).expanduser().exists())
