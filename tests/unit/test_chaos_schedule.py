"""The chaos benchmark's schedule: a seed decides it, and each block keeps a holder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benches"))

from _chaos_clients import Client
from _chaos_schedule import KINDS, SPANS, schedule
from chaos import Blow, Outcome


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


def test_a_kind_that_struck_nobody_has_its_figures_too():
    """Three tokens in a second, then one after three more: a hang that the client sees, a kill that it does not."""
    client = Client(0, times=[0.0, 0.5, 1.0, 4.0])
    hang, kill = (next(fault for fault in schedule(1, 60, 5) if fault.kind == kind) for kind in ("hang", "kill"))
    found = Outcome([client], [Blow(hang, 2.0, 7.0, (client,)), Blow(kill, 3.0, 8.0, ())]).figures()
    stalls = {kind: [found[f"stall_{name}_s_{kind}"] for name in ("p50", "p99", "max")] for kind in KINDS}
    assert stalls == {"kill": [0.0] * 3, "hang": [3.0] * 3, "drain": [0.0] * 3, "restart": [0.0] * 3}
    assert [found[f"faults_{kind}"] for kind in KINDS] == [1, 1, 0, 0]
