"""How long to rest between engine steps so that a device draws no more power than it may. Told what was measured; no
clock, no device.

Power grows with the share of time in which the engine works, from what the device draws doing nothing to what it draws
at full speed; neither is known beforehand and both drift. So the share is steered by what is measured: cut in
proportion to what is over the limit, and raised by no more than the room that is left. Whatever the device draws doing
nothing, a share raised so cannot overshoot, and one that is cut comes under the limit in a few looks.
"""

from __future__ import annotations

FIRST_SHARE = 0.25  # before anything is known: the limit holds from the first second on
LEAST_SHARE = 0.05  # below this a peer is of no use; what it draws then, it draws doing nothing
AIM = 0.97  # of the limit: the figure swings a little
RISE = 0.25  # at most, at each look
CUT = 0.5  # at most, at each look: one wrong figure shall not stop a peer
SHORTEST_REST_S = 0.002  # a timer is not good for less: shorter rests are saved up


class Duty:
    """`share` is the part of the time in which the engine may work."""

    def __init__(self, limit_w: float) -> None:
        self.limit_w = limit_w
        self.share = FIRST_SHARE
        self.hopeless = False  # the least share is still too much
        self._owed_s = 0.0

    def measured(self, power_w: float, worked: float) -> None:
        """The average power of the last while, in which the engine worked that share of the time."""
        aim_w = AIM * self.limit_w
        self.hopeless = power_w > self.limit_w and self.share == LEAST_SHARE
        if power_w > aim_w:
            # By what was really worked: with little to do, the share that was allowed did not limit anything.
            self.share = max(LEAST_SHARE, min(self.share, worked) * max(CUT, aim_w / power_w))
        elif worked > 0.8 * self.share:
            self.share = min(1.0, self.share * (1.0 + min(RISE, 1.0 - power_w / aim_w)))

    def rest_s(self, worked_s: float) -> float:
        """How long to rest now, after a step that took so long; 0 while what is owed is too short for a timer."""
        self._owed_s += worked_s * (1.0 / self.share - 1.0)
        if self._owed_s < SHORTEST_REST_S:
            return 0.0
        rest_s, self._owed_s = self._owed_s, 0.0
        return rest_s
