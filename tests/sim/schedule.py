"""One seed's plan: which peers there are, what clients do, and what befalls them when. Data only, no event loop."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from shoal.peer.wire import PREFIX_TOKENS

from tests.sim import toy
from tests.sim.swarm import N_BLOCKS
from tests.sim.work import STYLES, Job

# What may befall, how often, and for how long at most (0: it is over at once).
KINDS = {
    "kill": (10, 4.0),  # kill -9; a new process under the same name later
    "kill two": (4, 4.0),  # two hops of a route together
    "kill the new one": (4, 4.0),  # and whoever takes its place, too
    "hang": (8, 6.0),  # SIGSTOP, SIGCONT
    "drain": (7, 3.0),
    "fault": (6, 0.0),  # one engine step fails
    "break": (3, 3.0),  # the device is lost for good
    "not finite": (2, 0.0),
    "slow": (5, 3.0),  # an engine 10 times slower
    "part": (5, 8.0),  # a client or peer and a peer, both ways
    "one way": (5, 8.0),
    "split": (3, 6.0),  # half of the peers from all others
    "far": (4, 2.0),  # 200 ms more to and from one peer
    "jitter": (4, 2.0),  # up to 200 ms more everywhere
    "stall": (6, 3.0),  # packets lost on all ways of one peer
    "tear": (6, 0.0),  # links reset in the middle of the next frame
    "reset": (5, 0.0),  # links reset
    "daemon": (4, 1.5),  # all of the client's links at once, and no new ones
    "lose block": (4, 5.0),  # every holder of one block
    "ghosts": (3, 0.0),
    "full": (4, 2.0),  # somebody else takes all KV of a peer
    "die": (2, 0.0),  # a client vanishes
    "leave": (2, 0.0),  # a client stops in mid-step
}
SHORT_WAIT_S = (0.0, 0.5, 2.0)


@dataclass(frozen=True)
class Deed:
    """`after_s` the one before. `aim` picks the victim: among hops in use if `in_use`, else among all peers.

    `at`: not before the `nth` message of that kind leaves (or a while has passed without one), and `lag_s` after it;
    the victim is then its "source", its "target" or an "other" hop, as `whom` says.
    """

    kind: str
    after_s: float
    for_s: float
    aim: float
    in_use: bool
    at: str = ""
    nth: int = 1
    lag_s: float = 0.0
    whom: str = ""


@dataclass(frozen=True)
class Schedule:
    """Peers p0, p1, ... with `spans`, `pages` of KV and `swap_pages` of host memory, `kept_bytes` of outputs a lease.
    `step_s`: an engine step. `liar`: the peer that says it is 100 times faster than it is. `step_pages`: as many
    come back from host memory before one step. `kept_in_all`: bytes of outputs that all leases of a peer keep;
    `delay_s`: one way between machines; `wide`: its deeds are of the larger space (`tests/sim/wide.py`)."""

    seed: int
    spans: tuple[tuple[int, int], ...]
    jobs: tuple[Job, ...]
    deeds: tuple[Deed, ...]
    pages: int
    swap_pages: int
    kept_bytes: int
    step_s: float
    liar: int | None
    step_pages: int
    kept_in_all: int = 1 << 30
    delay_s: float = 0.005
    wide: bool = False

    @property
    def tight(self) -> bool:
        """Whether sessions may have to wait for one another's KV."""
        return self._claims() > self.pages + self.swap_pages

    @property
    def crowded(self) -> bool:
        """Whether a session may find no room beside others' leases and its own, which it has given up."""
        return 2 * self._claims() > self.pages + self.swap_pages

    def _claims(self) -> int:
        return sum(-(-job.max_tokens // toy.PAGE_TOKENS) for job in self.jobs)


def schedule(seed: int) -> Schedule:
    """The plan of a seed; the same everywhere and always."""
    rng = random.Random(f"schedule {seed}")
    spans = _spans(rng)
    jobs = _jobs(rng)
    longest = max(-(-job.max_tokens // toy.PAGE_TOKENS) for job in jobs)
    return Schedule(
        seed=seed, spans=spans, jobs=jobs, deeds=tuple(_deed(rng) for _ in range(rng.randint(2, 7))),
        pages=max(longest, rng.choice([24, 64, 64, 128])), swap_pages=rng.choice([0, 0, 64]),
        kept_bytes=rng.choice([64, 400, 1 << 20, 1 << 20, 1 << 20]), step_s=rng.choice([0.001, 0.004, 0.004, 0.02]),
        liar=rng.randrange(len(spans)) if rng.random() < 0.15 else None,
        step_pages=rng.choice([1, 3, 1 << 62]),
    )  # fmt: skip


def _spans(rng: random.Random) -> tuple[tuple[int, int], ...]:
    """Every block once, twice or three times, each time cut elsewhere."""
    spans = []
    for _ in range(rng.choice([1, 2, 2, 2, 3])):
        cuts = [0, *sorted(rng.sample(range(1, N_BLOCKS), rng.randint(0, 3))), N_BLOCKS]
        spans += list(itertools.pairwise(cuts))
    return tuple(spans)


def _jobs(rng: random.Random) -> tuple[Job, ...]:
    patient = rng.random() < 0.7
    named = rng.random() < 0.12
    jobs = []
    for number in range(rng.choice([1, 2, 2, 3, 4])):
        job = _job(rng, f"c{rng.randrange(2)}", 60.0 if patient else rng.choice(SHORT_WAIT_S), named=named)
        if named and number:  # the same prompt comes again
            job = Job(
                jobs[0].client, jobs[0].prompt, job.count, named=True, begin_s=1.5 * number, wait_s=job.wait_s,
                chunk_tokens=job.chunk_tokens,
            )  # fmt: skip
        jobs.append(job)
    return tuple(jobs)


def _job(rng: random.Random, client: str, wait_s: float, *, named: bool) -> Job:
    length = PREFIX_TOKENS + rng.randint(2, 8) if named else rng.choice([1, 2, 5, 12, 24, 40])
    count = rng.randint(4, 14)
    start, stop = (0, N_BLOCKS) if named or rng.random() < 0.8 else sorted(rng.sample(range(N_BLOCKS + 1), 2))
    turn = rng.randrange(count)
    return Job(
        client, tuple(rng.randrange(toy.VOCAB) for _ in range(length)), count,
        style="greedy" if named or length < 2 else rng.choice(STYLES), start=start, stop=stop, turn=turn,
        back=rng.randrange(length + turn), named=named, priority=int(rng.random() < 0.15),
        chunk_tokens=rng.choice([3, 8, 64]), wait_s=wait_s, begin_s=rng.choice([0.0, 0.0, 0.05, 0.3]),
    )  # fmt: skip


def _deed(rng: random.Random) -> Deed:
    kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    after_s = rng.uniform(0.0, 0.05) if rng.random() < 0.45 else rng.uniform(0.05, 0.4)
    longest_s = KINDS[kind][1]
    return Deed(kind, after_s, longest_s * rng.choice([0.02, 0.1, 0.3, 0.6, 1.0]), rng.random(), rng.random() < 0.75)
