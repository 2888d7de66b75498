"""A larger space of schedules than `schedule`: faults that strike at a step of the protocol, machines that stop and go
on, paused peers, a directory that tells nothing, sessions that rewind, pause and chat. Data only, no event loop."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from shoal.peer.wire import PREFIX_TOKENS

from tests.sim import toy
from tests.sim.schedule import KINDS, Deed, Schedule, _spans
from tests.sim.swarm import N_BLOCKS
from tests.sim.work import STYLES, Job

if TYPE_CHECKING:
    from collections.abc import Sequence

# As in `schedule`: how often, and for how long at most.
WORSE_KINDS = {
    "freeze": (10, 8.0),  # SIGSTOP: its timers stand still, too, and all fire at once when it goes on
    "freeze client": (7, 8.0),
    "suspend": (5, 30.0),  # a machine sleeps, and its clock with it
    "suspend client": (4, 40.0),
    "mute": (5, 8.0),  # nobody hears one machine
    "deaf": (5, 8.0),  # it hears nobody
    "half open": (7, 0.0),  # one end of the links between two machines is gone, and the other end is not told
    "stall link": (6, 8.0),  # links of one pair stand still, and bring everything late
    "restart": (6, 0.1),  # killed and back at once, three times
    "move": (5, 1.0),  # back with other blocks
    "pause": (6, 3.0),  # its volunteer wants the machine for himself
    "empty": (4, 5.0),  # the directory knows nobody
    "dark": (4, 5.0),  # no look-up in the directory ends
}
WIDE_KINDS = {**KINDS, **WORSE_KINDS}
MOMENTS = ("Open", "Opened", "Reroute", "Replay", "Hidden", "Rows", "Receipt", "Refused", "Close", "Leaving")
OFTEN = (6, 4, 8, 8, 2, 3, 1, 4, 3, 2)


def wide(seed: int) -> Schedule:
    """The plan of a seed; the same everywhere and always."""
    rng = random.Random(f"wide {seed}")
    spans, jobs = _spans(rng), _jobs(rng)
    longest = max(-(-job.max_tokens // toy.PAGE_TOKENS) for job in jobs)
    return Schedule(
        seed=seed, spans=spans, jobs=jobs, deeds=_deeds(rng),
        pages=max(longest, rng.choice([1, 24, 64, 128, 256])), swap_pages=rng.choice([0, 0, 64, 128]),
        kept_bytes=rng.choice([64, 400, 2000, 1 << 20, 1 << 20]), step_s=rng.choice([0.004, 0.01, 0.02]),
        liar=rng.randrange(len(spans)) if rng.random() < 0.1 else None, step_pages=rng.choice([1, 3, 1 << 62]),
        kept_in_all=rng.choice([300, 4000, 1 << 30, 1 << 30]), delay_s=rng.choice([0.0005, 0.005, 0.005, 0.04]),
        wide=True,
    )  # fmt: skip


def _deeds(rng: random.Random) -> tuple[Deed, ...]:
    """In turns: something befalls, and while it is mended others strike at moments of that, or one again and again."""
    deeds: list[Deed] = []
    for _ in range(rng.randint(1, 4)):
        after_s = rng.choice([rng.uniform(0.0, 0.1), rng.uniform(0.1, 0.5), rng.uniform(0.5, 2.0)])
        deeds.append(_deed(rng, after_s))
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            again = deeds[-1].at and rng.random() < 0.25
            deeds.append(deeds[-1] if again else _deed(rng, 0.0, rng.choices(MOMENTS, OFTEN)[0]))
    return tuple(deeds)


def _deed(rng: random.Random, after_s: float, at: str = "") -> Deed:
    kind = rng.choices(list(WIDE_KINDS), [weight for weight, _ in WIDE_KINDS.values()])[0]
    for_s = WIDE_KINDS[kind][1] * rng.choice([0.02, 0.1, 0.2, 0.4, 1.0])
    return Deed(
        kind, after_s, for_s, rng.random(), rng.random() < 0.9, at=at, nth=rng.choice([1, 1, 1, 2, 3]),
        lag_s=rng.choice([0.0, 0.0, 0.006, 0.03, 1.02]), whom=rng.choice(["", "source", "target", "target", "other"]),
    )  # fmt: skip


def _jobs(rng: random.Random) -> tuple[Job, ...]:
    patient = rng.random() < 0.85
    jobs: list[Job] = []
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        wait_s = 60.0 if patient else rng.choice((0.0, 0.5, 2.0))
        if jobs and rng.random() < 0.15:
            jobs.append(_once_more(rng, jobs[0]))
        else:
            jobs.append(_job(rng, f"c{int(rng.random() < 0.3)}", wait_s))
    return tuple(jobs)


def _once_more(rng: random.Random, job: Job) -> Job:
    """The same prompt, a while later: its hops may hold it from before."""
    return Job(
        job.client, job.prompt, job.count, named=True, wait_s=job.wait_s, chunk_tokens=job.chunk_tokens,
        begin_s=rng.choice([0.5, 1.5]), asks=rng.random() < 0.5, dwell_s=rng.choice([0.0, 0.5]),
    )  # fmt: skip


def _job(rng: random.Random, client: str, wait_s: float) -> Job:
    style = rng.choices([*STYLES, "mixed", "chat"], [*(3 for _ in STYLES), 8, 5])[0]
    chat = style == "chat"
    named = chat or (style in ("greedy", "guess", "kept") and rng.random() < 0.2)
    length = rng.choice(_lengths(style, named=named))
    count = rng.randint(3, 8) if chat else rng.randint(4, 40)
    start, stop = (0, N_BLOCKS) if named or rng.random() < 0.85 else sorted(rng.sample(range(N_BLOCKS + 1), 2))
    turn = rng.randrange(count)
    return Job(
        client, tuple(rng.randrange(toy.VOCAB) for _ in range(length)), count, style=style, start=start, stop=stop,
        turn=turn, back=rng.randrange(length + turn), named=named, priority=int(rng.random() < 0.15),
        chunk_tokens=rng.choice([2, 3, 8, 64]), wait_s=wait_s, begin_s=rng.choice([0.0, 0.0, 0.05, 0.3, 1.0]),
        turns=rng.choice([2, 3]) if chat else 1, asks=style != "kept" and rng.random() < 0.6,
        dwell_s=rng.choice([0.0, 0.0, 0.05, 0.7]) if named else 0.0,
    )  # fmt: skip


def _lengths(style: str, *, named: bool) -> Sequence[int]:
    if named:
        return [PREFIX_TOKENS - 3, PREFIX_TOKENS + 5, 2 * PREFIX_TOKENS + 7]
    return [2, 5, 12, 24, 40, 90] if style in ("quiet", "guess", "mixed", "rewind") else [1, 2, 5, 12, 24, 40, 90]
