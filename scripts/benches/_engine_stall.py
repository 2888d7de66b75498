"""What decoding sessions feel of others' prompts, in the engine's benchmark: of one after the other, and of a crowd."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from _engine_load import Load, Request, table_of
from _engine_models import Bench, Figures, states, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

DECODERS, PROMPT = 32, 8192
CROWD = 8
GUEST = 100  # the first number of sessions that only bring a prompt; others are below


def stall(bench: Bench) -> Figures:
    """Time between a session's tokens, 32 of them decoding at 1,024: alone, and while prompts of 8,192 tokens arrive
    one after the other without a pause; then 8 of them at once, from one client that has nothing else here, and from 8
    such clients. Alone is measured before and after, since contexts grow on the way."""
    context, prompt = bench.size(1024, 32), bench.size(PROMPT, 200)
    decoders, alone_steps, steps = bench.size(DECODERS, 4), bench.size(60, 5), bench.size(200, 15)
    each_most = context + 2 * alone_steps + 8 * steps
    span = bench.span(bench.size(8, 2), decoders * each_most + CROWD * (prompt + 16))
    load, long_prompt = Load(span, table_of(span)), states(prompt, span, seed=9)
    for index in range(decoders):
        load.add(Request(index, states(context, load.span, seed=10 + index), new=1 << 30))
    load.run_until(lambda: all(request.made > 4 for request in load.running.values()))
    guests = {"with_prompts": [""], "crowd_one": ["crowd"] * CROWD, "crowd_many": [f"guest {i}" for i in range(CROWD)]}
    for owners in guests.values():  # a warm-up: kernels are chosen, graphs captured, costs learnt
        Gaps(load, long_prompt, owners).measure(steps // 4)
    tell(f"  {decoders} sessions decode; prompts of {prompt} tokens arrive ...")
    alone, beside = Gaps(load, long_prompt, []), {name: Gaps(load, long_prompt, guests[name]) for name in guests}
    alone.measure(alone_steps)
    for gaps in beside.values():
        gaps.measure(steps)
    alone.measure(alone_steps)
    return _figures(alone, **beside)


def _figures(alone: Gaps, *, with_prompts: Gaps, crowd_one: Gaps, crowd_many: Gaps) -> Figures:
    middle = statistics.median(alone.gaps_s)
    return {
        "stall_alone_ms": middle * 1e3,
        "stall_with_prompts_ms": statistics.median(with_prompts.gaps_s) * 1e3,
        **_ratios("stall", with_prompts, middle),
        **_ratios("stall_crowd_one", crowd_one, middle),
        **_ratios("stall_crowd_many", crowd_many, middle),
    }


def _ratios(name: str, gaps: Gaps, alone_s: float) -> Figures:
    return {
        f"{name}_ratio": statistics.median(gaps.gaps_s) / alone_s,
        f"{name}_p95_ratio": statistics.quantiles(gaps.gaps_s, n=20)[-1] / alone_s,
        f"{name}_worst_ratio": max(gaps.gaps_s) / alone_s,
        f"{name}_prefill_tokens_per_s": gaps.prefilled / gaps.seconds,
        f"{name}_chunk_tokens": gaps.prefilled / gaps.steps,
    }


class Gaps:
    """Seconds between tokens of each decoding session while prompts are prefilled: one of each of `owners`, whose
    client it is. One that comes alone is followed by another at once; of a crowd each comes once."""

    def __init__(self, load: Load, prompt: torch.Tensor, owners: Sequence[str]) -> None:
        self._load, self._prompt, self._owners = load, prompt, owners
        self.gaps_s: list[float] = []
        self.prefilled, self.seconds, self.steps = 0, 0.0, 0

    def measure(self, steps: int) -> None:
        """Watch so many steps, or until a crowd's prompts are in; those that are not in then are dropped."""
        load, decoding = self._load, list(self._load.running)
        guests = [self._arrive(GUEST + index, owner) for index, owner in enumerate(self._owners)]
        started = time.perf_counter()
        last_s = dict.fromkeys(decoding, started)
        for _ in range(steps):
            told, now = load.step(), time.perf_counter()
            for one in told:
                if one.number in last_s:
                    self.gaps_s.append(now - last_s[one.number])
                    last_s[one.number] = now
            self.steps += 1
            guests = self._after(guests)
            if self._owners and not guests:
                break
        self.seconds += time.perf_counter() - started
        for guest in guests:
            self.prefilled += guest.position
            load.drop(guest)

    def _after(self, guests: list[Request]) -> list[Request]:
        """Those who wait after a step."""
        done = [guest for guest in guests if guest.made]
        self.prefilled += sum(guest.position for guest in done)
        waiting = [guest for guest in guests if not guest.made]
        if len(self._owners) > 1:
            return waiting
        return waiting + [self._arrive(guest.number, guest.owner) for guest in done]

    def _arrive(self, number: int, owner: str) -> Request:
        guest = Request(number, self._prompt, new=1, owner=owner)
        self._load.add(guest)
        return guest
