"""Which peers were found not to reach which others, and when that is tried again. Told the time; knows no network."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_S = 60.0
LONGEST_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Finding:
    """Believed until `until`; the next one for `wait_s`."""

    until: float
    wait_s: float


class Apart:
    """Ordered pairs (a, b) where a does not reach b. A finding that is made again is believed for twice as long."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], _Finding] = {}

    def note(self, source: str, target: str, now: float) -> None:
        """`source` could not reach `target`."""
        known = self._found.get((source, target))
        wait_s = known.wait_s if known is not None and now < known.until + LONGEST_S else FIRST_S
        self._found[source, target] = _Finding(now + wait_s, min(2 * wait_s, LONGEST_S))

    def forget(self, peer_id: str) -> None:
        """What was found of a peer may have been its death."""
        self._found = {pair: finding for pair, finding in self._found.items() if peer_id not in pair}

    def pairs(self, now: float) -> frozenset[tuple[str, str]]:
        """Those that are believed now."""
        return frozenset(pair for pair, finding in self._found.items() if now < finding.until)
