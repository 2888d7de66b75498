"""Whether a machine is idle enough to serve: decides from what was measured. No clock, no probes; told the time.

Two kinds of hysteresis keep a peer from flapping: a machine that is busy counts as idle again only after everything has
stayed under *half* the limits for a while, and one that is idle becomes busy only when a load lasts. A person at the
keyboard is the exception: who sits down at a machine finds it free at once.
"""

from __future__ import annotations

from dataclasses import dataclass

LASTING_S = 5.0  # a load over its limit for less than this is a passing one
CALM = 0.5  # share of a limit under which a busy machine has calmed down


@dataclass(frozen=True, slots=True)
class IdleLimits:
    """What others may use while this peer serves. Shares are of the whole: all of the GPU, all processor cores.

    `input_s`: seconds since somebody last touched the machine. 0 for any of the three: it is not looked at. `settle_s`:
    how long it has to be quiet before the peer serves.
    """

    gpu: float = 0.10
    cpu: float = 0.25
    input_s: float = 300.0
    settle_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What others do now; None: cannot be known here, and does not count. `input_s`: since somebody's last input."""

    gpu: float | None = None
    cpu: float | None = None
    input_s: float | None = None


class Idleness:
    """`why` is empty while the machine is idle. At first it is not: nobody has looked yet."""

    def __init__(self, limits: IdleLimits) -> None:
        self.limits = limits
        self.why = "waiting to see whether this machine is idle"
        self._calm_since: float | None = None
        self._loaded_since: float | None = None

    @property
    def idle(self) -> bool:
        """Whether the peer should serve."""
        return not self.why

    def look(self, sample: Sample, now: float) -> bool:
        """Take a new sample into account; whether the machine is idle."""
        if self.idle:
            self._while_idle(sample, now)
        else:
            self._while_busy(sample, now)
        return self.idle

    def _while_idle(self, sample: Sample, now: float) -> None:
        touched, loaded = _touched(sample, self.limits), _loaded(sample, self.limits, 1.0)
        self._loaded_since = (now if self._loaded_since is None else self._loaded_since) if loaded else None
        if touched or (self._loaded_since is not None and now - self._loaded_since >= LASTING_S):
            self.why = touched or loaded
            self._calm_since = self._loaded_since = None

    def _while_busy(self, sample: Sample, now: float) -> None:
        stirring = _touched(sample, self.limits) or _loaded(sample, self.limits, CALM)
        if stirring:
            self.why, self._calm_since = stirring, None
            return
        self._calm_since = now if self._calm_since is None else self._calm_since
        calm_s = now - self._calm_since
        left = f"this machine has been quiet for {calm_s:.0f} of {self.limits.settle_s:.0f} s"
        self.why = "" if calm_s >= self.limits.settle_s else left


def _touched(sample: Sample, limits: IdleLimits) -> str:
    if sample.input_s is None or sample.input_s >= limits.input_s:
        return ""
    return f"somebody used this machine less than {limits.input_s:.0f} s ago"


def _loaded(sample: Sample, limits: IdleLimits, share: float) -> str:
    """What others use too much of, if anything: more than that share of a limit."""
    used = [
        f"other programs use {100 * figure:.0f} % of the {name}"
        for name, figure, limit in (("GPU", sample.gpu, limits.gpu), ("processor", sample.cpu, limits.cpu))
        if figure is not None and limit and figure > share * limit
    ]
    return ", ".join(used)
