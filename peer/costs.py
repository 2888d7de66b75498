"""How long engine steps take, and how many prompt tokens may join one. Told figures: no clock, no tensors, no leases.

A step with prompt tokens shall take at most `stall` times one of decode tokens alone, while anybody decodes. How a
device's time grows with the tokens is not known beforehand (flat, then straight, on a GPU), so the chunk is steered:
each measured step says how far the next chunk may go, as if time grew straight from the decode step on.
"""

from __future__ import annotations

from dataclasses import dataclass

LEARN = 0.3  # weight of the newest figure
GROW = 2.5  # at most so many times the tokens of a step are its next chunk: past the next size, which is 2 at most
STALE = 32  # steps with prompt tokens after which decode tokens run alone again: contexts change
LEAST = 2.0  # prompt tokens that run even on a slow device, so that prompts get on; one would pass for a decode token
SLOW = 2.0  # a device on which so many times fewer prompt tokens than the first ones fit is slow
MANY = 4  # times the first prompt tokens tell what one takes: of fewer, most may be the step's own
DOUBT = 1.1  # a step of decode tokens alone that took so many times what was known is timed once more


@dataclass(slots=True)
class _Decodes:
    """Steps with about the same number of decode tokens; `chunk`: prompt tokens that may run beside them."""

    alone_s: float
    chunk: float
    mixed: int = 0  # steps with prompt tokens since `alone_s` was measured
    doubted_s: float | None = None  # what the last one alone took, if it was long: something may have come between


class StepCosts:
    """Moving averages over steps, kept apart by the decode tokens' order of magnitude (powers of two)."""

    def __init__(self, stall: float, first: int, most: int, prefill_token_s: float | None = None) -> None:
        self.stall, self.first, self.most = stall, first, most
        self.prefill_token_s = prefill_token_s  # in a step with many
        self._decodes: dict[int, _Decodes] = {}
        self._latest: _Decodes | None = None
        self._lone_chunk = float(first)
        self._held_back = False

    @property
    def decode_step_s(self) -> float | None:
        """Seconds of a step of decode tokens alone, as many as of late."""
        return self._latest.alone_s if self._latest else None

    def ran(self, decodes: int, prefill: int, seconds: float) -> None:
        """A step with so many decode and prompt tokens took so long."""
        known = self._decodes.get(decodes.bit_length())
        if not prefill:
            self._ran_alone(known, decodes, seconds)
        elif not decodes:
            self._added(prefill, seconds)
            if self._latest:
                allowed_s = (self.stall - 1) / 2 * self._latest.alone_s  # who comes meanwhile waits for its end
                added_s = seconds - self._latest.alone_s
                self._lone_chunk = self._steer(self._lone_chunk, prefill, allowed_s, added_s)
        elif known is not None:
            known.mixed, self._latest = known.mixed + 1, known
            added_s, allowed_s = seconds - known.alone_s, (self.stall - 1) * known.alone_s
            self._added(prefill, added_s)
            known.chunk = self._steer(known.chunk, prefill, allowed_s, added_s)

    def chunk_beside(self, decodes: int) -> int:
        """Prompt tokens that may join a step of so many decode tokens; 0 where those must be timed alone first."""
        known = self._decodes.get(decodes.bit_length())
        if (known is None or known.mixed >= STALE) and not self._held_back:
            self._held_back = True
            return 0
        self._held_back = False
        return self._whole(known.chunk) if known else self.first

    def chunk_between(self) -> int:
        """Prompt tokens of a step without decode tokens while somebody is about to come with some."""
        return self._whole(self._lone_chunk) if self._latest else self.first

    def _ran_alone(self, known: _Decodes | None, decodes: int, seconds: float) -> None:
        if known is None:
            allowed_s = (self.stall - 1) * seconds
            linear = allowed_s / self.prefill_token_s if self.prefill_token_s else float(self.first)
            known = self._decodes[decodes.bit_length()] = _Decodes(seconds, self._bounded(linear, allowed_s))
        self._latest = known
        # Any step may meet a busy machine, and this figure is all that the next STALE chunks are steered by.
        if known.doubted_s is None and seconds > DOUBT * known.alone_s:
            known.doubted_s, self._held_back = seconds, False
            return
        seconds, known.doubted_s = min(seconds, known.doubted_s or seconds), None
        if seconds < known.alone_s:  # nothing makes a step too short: what was known was busy, or loaded kernels
            known.alone_s = (known.alone_s + seconds) / 2 if known.alone_s < 2 * seconds else seconds
        else:
            known.alone_s = _blend(known.alone_s, min(seconds, 2 * known.alone_s))
        known.mixed = 0

    def _added(self, prefill: int, seconds: float) -> None:
        """So many prompt tokens have added so long to a step."""
        if prefill >= MANY * self.first:
            self.prefill_token_s = _blend(self.prefill_token_s, max(seconds, 1e-9) / prefill)

    def _steer(self, chunk: float, prefill: int, allowed_s: float, added_s: float) -> float:
        """The next chunk, where `prefill` tokens have added `added_s` to a step; they were more where more may be."""
        whole = self._whole(chunk)
        tokens, times = min(prefill, whole), max(1.0, prefill / whole)
        factor = allowed_s / max(added_s / times, 1e-9)
        if factor < 1:
            return _blend(chunk, min(chunk, self._bounded(tokens * factor, allowed_s)))
        if tokens < whole:
            return chunk  # the end of a prompt says little about a whole chunk
        return _blend(chunk, self._bounded(tokens * min(GROW, factor), allowed_s))

    def _bounded(self, tokens: float, allowed_s: float) -> float:
        """Fewer than the first ones only where tokens take long: where the step itself does, that would gain little."""
        fit = allowed_s / self.prefill_token_s if self.prefill_token_s else float(self.first)
        least = float(self.first) if SLOW * fit >= self.first else max(LEAST, fit)
        return min(float(self.most), max(least, tokens))

    def _whole(self, chunk: float) -> int:
        """The largest of `first` times 1, 2, 3, 4, 6, 8, 12 and so on that is within `chunk`: few sizes, so that a
        device that prepares a step of each size has few to prepare. On a slow device it may be less.
        """
        unit = self.first if chunk >= self.first else 1
        portions = int(chunk) // unit
        power: int = 1 << (portions.bit_length() - 1)
        return unit * (power + power // 2 if portions >= power + power // 2 else power)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - LEARN) * old + LEARN * new
