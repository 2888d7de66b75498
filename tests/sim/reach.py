"""What a client could have reached at any time: whether an error or a wait was right. Reads the world, changes nothing.

A span is within a client's reach if peers cover it that run, are not about to leave, hear the client and are heard by
it, and if each of them and the next one hear one another. A client has `RECOVER_S` from the moment when that is so.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sim.swarm import World
    from tests.sim.work import Job

RECOVER_S = 10.0


class Reach:
    """The history of what lay within each client's reach."""

    def __init__(self, it: World, jobs: tuple[Job, ...], now: float) -> None:
        self._it = it
        self._spans = {(job.client, job.start, job.stop): None for job in jobs}
        self._history: list[tuple[float, dict[tuple[str, int, int], frozenset[int] | None]]] = []
        self.unfit: Counter[str] = Counter()  # peers that are full or broken, by how many deeds
        self.blind = 0  # deeds that keep clients from learning of peers
        self.note(now)

    def note(self, now: float) -> None:
        """Something has changed."""
        self._history.append((now, {span: self._missing(*span) for span in self._spans}))

    def blip(self, names: Sequence[str], now: float) -> None:
        """Machines fail or are not reached for a moment only: who asks them then may be told so."""
        unfit = self.unfit
        self.unfit = unfit + Counter(names)
        self.note(now)
        self.unfit = unfit
        self.note(now)

    def waited_too_long(self, job: Job, since: float, until: float) -> bool:
        """Whether all was within reach for `RECOVER_S` in one piece while the job got nowhere."""
        whole_since = None
        for begin, end, missing in self._stretches(job, since, until):
            whole_since = (begin if whole_since is None else whole_since) if missing == frozenset() else None
            if whole_since is not None and end - whole_since > RECOVER_S:
                return True
        return False

    def explains(self, job: Job, blocks: tuple[int, ...], until: float) -> bool:
        """Whether an error that names these blocks may be raised: each of them was out of reach a while ago."""
        seen: set[int] = set()
        for _begin, _end, missing in self._stretches(job, until - RECOVER_S - job.wait_s, until):
            seen.update(range(job.start, job.stop) if missing is None else missing)
        return bool(blocks) and seen.issuperset(blocks)

    def _stretches(self, job: Job, since: float, until: float):
        """(begin, end, what was missing) within `[since, until]`."""
        span = job.client, job.start, job.stop
        ends = [at for at, _ in self._history[1:]] + [float("inf")]
        for (begin, missing), end in zip(self._history, ends, strict=True):
            if end >= since and begin <= until:
                yield max(begin, since), min(end, until), missing[span]

    def _missing(self, client: str, start: int, stop: int) -> frozenset[int] | None:
        """Blocks that nobody usable holds; None if all are held, but by peers that do not reach one another."""
        usable = {name: peer.engine for name, peer in sorted(self._it.peers.items()) if self._usable(client, name)}
        held = {block for engine in usable.values() for block in range(engine.start, engine.stop)}
        if missing := set(range(start, stop)) - held:
            return frozenset(missing)
        states = [(name, start) for name, engine in usable.items() if engine.start <= start < engine.stop]
        known = set(states)
        while states:
            name, block = states.pop()
            for end in range(block + 1, min(usable[name].stop, stop) + 1):
                if end == stop:
                    return frozenset()
                for other, engine in usable.items():
                    if engine.start <= end < engine.stop and (other, end) not in known and self._both(name, other):
                        known.add((other, end))
                        states.append((other, end))
        return None

    def _usable(self, client: str, name: str) -> bool:
        return (
            not self.blind and not self.unfit[name] and client not in self._it.net.offline and self._both(client, name)
        )

    def _both(self, one: str, other: str) -> bool:
        return self._it.net.reaches(one, other) and self._it.net.reaches(other, one)
