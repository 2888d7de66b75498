"""What sessions find out about their hops' speed: from receipts, and by their own clock. Data only: no network."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Kept:
    """How long a hop kept lone tokens beyond the times in its receipts: `steps` of them, `seconds` in all, from the
    news of the node before it (the sending, were that the client) to its own; `n_bytes` came to it meanwhile."""

    steps: int = 0
    seconds: float = 0.0
    n_bytes: int = 0


@dataclass(slots=True)
class HopTimes:
    """Sums over a hop's receipts, in seconds; `decode_s` and `prompt_s` are per block, `token_s` is not.
    `kept`: by the node before it, "" being the client."""

    steps: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    decode_steps: int = 0
    decode_s: float = 0.0
    token_s: float = 0.0
    prompt_steps: int = 0
    prompt_tokens: int = 0
    prompt_s: float = 0.0
    kept: dict[str, Kept] = field(default_factory=dict)

    def add(self, queue_s: float, compute_s: float, tokens: int, blocks: int) -> None:
        """Count the receipt of one step of `tokens` (0: not known any more) through `blocks`."""
        self.steps += 1
        self.queue_s += queue_s
        self.compute_s += compute_s
        if tokens == 1:
            self.decode_steps += 1
            self.decode_s += compute_s / blocks
            self.token_s += compute_s
        elif tokens:
            self.prompt_steps += 1
            self.prompt_tokens += tokens
            self.prompt_s += compute_s / blocks

    def keeps(self, before: str, seconds: float, n_bytes: int = 0) -> None:
        """Count one lone token that came from `before` in so many bytes."""
        kept = self.kept.setdefault(before, Kept())
        kept.steps += 1
        kept.seconds += seconds
        kept.n_bytes += n_bytes
