"""The chaos benchmark's schedule: a seed decides it, and each block keeps a holder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benches"))

from _chaos_schedule import KINDS, SPANS, schedule


def test_a_seed_decides_it_and_a_longer_trial_begins_in_the_same_way():
    assert schedule(7, 60, 5) == schedule(7, 300, 5)[:12]
    assert schedule(7, 60, 5) != schedule(8, 60, 5)
    assert {fault.kind for fault in schedule(0, 300, 5)} == set(KINDS)


def test_every_block_has_three_holders():
    held = [block for start, stop in SPANS for block in range(start, stop)]
    assert {block: held.count(block) for block in held} == dict.fromkeys(range(12), 3)


def test_the_victim_is_in_use_and_can_be_spared():
    faults = schedule(3, 300, 5)
    assert {fault.victim(range(6), {2}) for fault in faults if fault.busy} == {2}
    assert {fault.victim(range(6), {2}) for fault in faults if not fault.busy} > {2}
    assert {fault.victim({0, 1, 2}, {0, 1}) for fault in faults} == {0, 2}
    assert {fault.victim({0, 1}, {0, 1}) for fault in faults} == {None}
