"""What a peer has served so far: counts and speeds for its log and announcements. Told the time; knows no content."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.peer.rate import Rate

DECAY = 0.9


@dataclass(slots=True)
class Tally:
    """Counters of engine work; `decode_step_s` is a moving average over steps that hold decode tokens only."""

    tokens: int = 0
    steps: int = 0
    busy_s: float = 0.0
    decode_step_s: float | None = None
    rate: Rate = field(default_factory=Rate)  # of tokens

    def add(self, tokens: int, rows: int, compute_s: float, now: float) -> None:
        """One engine step over `rows` leases ran."""
        self.rate.add(tokens, now)
        self.tokens += tokens
        self.steps += 1
        self.busy_s += compute_s
        if tokens == rows:
            old = self.decode_step_s
            self.decode_step_s = compute_s if old is None else DECAY * old + (1 - DECAY) * compute_s
