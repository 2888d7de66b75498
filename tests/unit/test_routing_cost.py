"""What a hop costs: measured wins over announced, claims are bounded, a repair knows its neighbours."""

from __future__ import annotations

import random

import numpy as np
import pytest
from shoal.routing.announcement import Announcement
from shoal.routing.bounds import CLAIM_GAIN
from shoal.routing.chunks import stages_of
from shoal.routing.cost import speeds, usable, work_of
from shoal.routing.legs import believed_byte_s, between, leg_s, legs_in, legs_out
from shoal.routing.planner import Hop, Knowledge, NoRoute, Route, RouteRequest, Speed, plan_route
from shoal.routing.view import View, fold
from shoal.routing.words import name_blocks

NOW = 50.0


def peer(peer_id: str, start: int = 0, stop: int = 4, decode_s: float = 0.01, **fields) -> Announcement:
    rest = {"state": "online", "queue": 0, "free_tokens": 1000, "rtts": (), "expiry": NOW + 9, **fields}
    return Announcement(
        peer_id=peer_id,
        sequence=1,
        start=start,
        stop=stop,
        quantization="nf4",
        dtype="bfloat16",
        decode_s=decode_s,
        prefill_s=decode_s / 10,
        max_chunk=512,
        addrs=(),
        version="0.1.0",
        name="",
        revision="r",
        **rest,
    )


def view_of(*peers: Announcement) -> View:
    return fold(View(4), peers, NOW)


def plan(view: View, **request) -> Route | NoRoute:
    return plan_route(view, RouteRequest(**{"start": 0, "stop": 4, **request}), NOW, random.Random(0))


def test_claims_are_held_near_the_median_until_measured():
    view = view_of(peer("a"), peer("b"), peer("liar", decode_s=1e-5), peer("slow", decode_s=0.5))
    believed, _ = speeds(view.columns, Knowledge())
    assert list(believed) == pytest.approx([0.01, 0.01, 0.01 / CLAIM_GAIN, 0.5])
    believed, _ = speeds(view.columns, Knowledge(speeds={"liar": Speed(0.002, 0.002), "slow": Speed(0.3, 0.3)}))
    assert list(believed) == pytest.approx([0.01, 0.01, 0.002, 0.3])


@pytest.mark.parametrize("broken", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_measurement_does_not_count_as_one(broken):
    view = view_of(peer("a"), peer("b"))
    believed, _ = speeds(view.columns, Knowledge(speeds={"a": Speed(broken, broken)}))
    assert list(believed) == pytest.approx([0.01, 0.01])


def test_legs_are_measured_then_agreed_then_default():
    view = view_of(peer("a", rtts=(("b", 0.1), ("c", 0.002))), peer("b", rtts=(("a", 0.3),)), peer("c"), peer("d"))
    assert leg_s(view.columns, Knowledge(), "a", "b") == pytest.approx(0.15)
    assert leg_s(view.columns, Knowledge(), "a", "c") == pytest.approx(0.025 / CLAIM_GAIN)
    assert leg_s(view.columns, Knowledge(), "a", "d") == pytest.approx(0.025)
    measured = Knowledge(legs_s={("a", "b"): 0.01})
    assert leg_s(view.columns, measured, "a", "b") == leg_s(view.columns, measured, "b", "a") == 0.01


@pytest.mark.parametrize(
    ("fields", "request_fields"),
    [
        ({"state": "joining"}, {}),
        ({"state": "draining"}, {}),
        ({"expiry": NOW}, {}),
        ({"free_tokens": 99}, {"kv_tokens": 100}),
        ({}, {"avoid": frozenset({"a"})}),
        ({}, {"knowledge": Knowledge(banned=frozenset({"a"}))}),
    ],
)
def test_who_may_not_serve(fields, request_fields):
    view = View(4, (peer("a", **fields), peer("b")), NOW)
    assert list(usable(view.columns, RouteRequest(0, 4, **request_fields), NOW)) == [False, True]


def test_measured_waits_take_the_place_of_the_announced_queue():
    view = view_of(peer("a", queue=50), peer("b"))
    assert plan(view).hops[0].peer_id == "b"
    assert plan(view, knowledge=Knowledge(waits_s={"a": 1e-6, "b": 0.5})).hops[0].peer_id == "a"


def test_a_peer_that_failed_must_be_that_much_better():
    view = view_of(peer("a"), peer("b", decode_s=0.012))
    assert plan(view, knowledge=Knowledge(penalties={"a": 1.5})).hops[0].peer_id == "b"
    assert plan(view, knowledge=Knowledge(penalties={"a": 1.5}, banned=frozenset({"b"}))).hops[0].peer_id == "a"


def test_a_repair_prefers_who_is_near_the_living_hops():
    view = view_of(peer("up", 0, 1), peer("far", 1, 3, 0.008), peer("near", 1, 3), peer("down", 3, 4))
    legs = {("up", "far"): 0.2, ("far", "down"): 0.2, ("up", "near"): 0.001, ("near", "down"): 0.001}
    request = {"start": 1, "stop": 3, "knowledge": Knowledge(legs_s=legs, rtts_s={"far": 1e-3, "near": 0.5})}
    assert plan(view, **request).hops == (Hop("far", 1, 3),)
    repaired = plan(view, **request, upstream="up", downstream="down", avoid=frozenset({"up", "down"}))
    assert repaired.hops == (Hop("near", 1, 3),)
    assert repaired.token_s == pytest.approx(0.001 + 0.02 + 0.001 + 0.0005)


def test_a_repair_may_take_two_peers_for_one():
    found = plan(view_of(peer("a", 0, 2), peer("b", 2, 4)), start=1, stop=4)
    assert found.hops == (Hop("a", 1, 2), Hop("b", 2, 4))


def test_a_prompt_is_priced_as_a_pipeline():
    """Two hops of one chunk-time each: n chunks take n + 1 chunk-times, not 2n."""
    found = plan(view_of(peer("a", 0, 2), peer("b", 2, 4)), prompt_tokens=1024, new_tokens=0)
    assert found.prefill_s == pytest.approx(3 * 0.025 + 2 * 0.0005 + 5 * 256 * 2 * 0.001)
    assert found.expected_s == found.prefill_s


def test_a_leg_takes_its_bytes_too():
    """One token of 12,500 bytes at 100 Mbit/s takes a millisecond; the client sends at 50, so two."""
    view = view_of(peer("a", upload_bps=12.5e6), peer("b", upload_bps=12.5e6))
    known = Knowledge(upload_bps=6.25e6)
    found = plan(view, token_bytes=12_500, knowledge=known)
    assert found.token_s == pytest.approx(2 * 0.025 + 0.0005 + 0.04 + 0.002 + 0.001)


def test_a_slow_line_is_a_stage_of_the_prompts_pipeline():
    """Chunks of 256 tokens: 1.024 s on the client's line, 0.512 s on the way between the hops, compute next to
    nothing. Four chunks wait for the slowest of them; one token comes back."""
    view = view_of(peer("a", 0, 2, 1e-5, upload_bps=1e6), peer("b", 2, 4, 1e-5, upload_bps=1e6))
    request = {"prompt_tokens": 1024, "new_tokens": 0, "token_bytes": 2000}
    found = plan(view, **request, knowledge=Knowledge(upload_bps=0.5e6))
    computed_s = 2 * 2 * 256 * 1e-6
    assert found.prefill_s == pytest.approx(3 * 0.025 + 2 * 0.0005 + 1.024 + 0.512 + 0.002 + 3 * 1.024 + computed_s)


def test_who_sends_faster_is_taken():
    view = view_of(peer("a", upload_bps=1e6), peer("b", upload_bps=2e5))
    for seed in range(10):
        found = plan_route(view, RouteRequest(0, 4, token_bytes=16_384), NOW, random.Random(seed))
        assert found.hops[0].peer_id == "a"


def test_a_way_that_is_slow_for_two_is_avoided_by_prompts():
    """b and c are alike but for what comes through to them from a; then from the client."""
    slow = peer("a", 0, 2, upload_bps=1e6, rates=(("b", 1e4),))
    view = view_of(slow, peer("b", 2, 4), peer("c", 2, 4))
    work = {"prompt_tokens": 512, "new_tokens": 1, "token_bytes": 2000}
    for seed in range(10):
        found = plan_route(view, RouteRequest(0, 4, **work), NOW, random.Random(seed))
        assert [hop.peer_id for hop in found.hops] == ["a", "c"]
    view = view_of(peer("b", upload_bps=1e6), peer("c", upload_bps=1e6))
    known = Knowledge(upload_bps=1e6, rates={"b": 1e4})
    for seed in range(10):
        found = plan_route(view, RouteRequest(0, 4, **work, knowledge=known), NOW, random.Random(seed))
        assert found.hops[0].peer_id == "c"


def test_a_way_is_as_slow_as_its_sender_says_and_no_quicker_than_its_line():
    view = view_of(peer("a", 0, 2, upload_bps=1e6, rates=(("b", 1e4), ("c", 1e9))), peer("b", 2, 4), peer("c", 2, 4))
    columns, knowledge = view.columns, Knowledge(upload_bps=1e6, rates={"a": 5e4, "b": 2e5})
    line_s = believed_byte_s(columns)[0]
    places = np.arange(3)
    assert list(between(columns, knowledge, places).byte_s[0, 1:]) == pytest.approx([1e-4, line_s])
    assert list(legs_in(columns, knowledge, "a").byte_s[1:]) == pytest.approx([1e-4, line_s])
    assert legs_out(columns, knowledge, "b").byte_s[0] == pytest.approx(1e-4)
    assert list(legs_in(columns, knowledge, None).byte_s) == pytest.approx([1 / 5e4, 1 / 2e5, 1e-6])
    stages = stages_of(columns, knowledge, (Hop("a", 0, 2), Hop("b", 2, 4)), 1000)
    assert stages[0].token_s == pytest.approx(1000 / 5e4)
    assert stages[-1].token_s == pytest.approx(1000 * 1e-4)


def test_a_claim_of_bandwidth_counts_a_third_more_than_the_median():
    claims = (peer("a", upload_bps=1e6), peer("b", upload_bps=1e6), peer("liar", upload_bps=1e99))
    assert list(believed_byte_s(view_of(*claims).columns)) == pytest.approx([1e-6, 1e-6, 0.75e-6])


def test_two_that_cannot_talk_pay_the_way_through_the_client():
    view = view_of(peer("a", 0, 2, rtts=(("b", 0.002),)), peer("b", 2, 4, rtts=(("a", 0.002),)))
    assert plan(view).token_s == pytest.approx(0.04 + 0.001 + 2 * 0.025 + 0.001)
    apart = Knowledge(via_client=frozenset({("a", "b")}), rtts_s={"a": 0.06, "b": 0.02})
    assert plan(view, knowledge=apart).token_s == pytest.approx(0.04 + 0.001 + (0.03 + 0.01) * 2)
    behind = Knowledge(via_client=frozenset({("b", "a")}), rtts_s={"a": 0.06, "b": 0.02})
    assert plan(view, knowledge=behind).token_s == pytest.approx(0.04 + 0.001 + 0.03 + 0.001 + 0.01)


def test_work_in_figures():
    assert work_of(RouteRequest(0, 4, prompt_tokens=300, new_tokens=7)).chunk_tokens == 150
    assert work_of(RouteRequest(0, 4, prompt_tokens=300, new_tokens=7)).crossings == 8
    assert work_of(RouteRequest(0, 4, new_tokens=0)).steps == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 2, "stop": 2},
        {"start": -1},
        {"prompt_tokens": -1},
        {"kv_tokens": -1},
        {"token_bytes": -1},
        {"chunk_tokens": 0},
    ],
)
def test_requests_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"span|negative"):
        RouteRequest(**{"start": 0, "stop": 4, **wrong})


def test_blocks_that_the_model_does_not_have_are_refused():
    with pytest.raises(ValueError, match="model of 4 blocks"):
        plan(view_of(peer("a")), stop=5)


@pytest.mark.parametrize(
    ("peers", "fields", "sentence"),
    [
        ([peer("a", 0, 2)], {}, "Blocks 2-3 have no holder: start a peer that serves them, or wait for one."),
        ([peer("a", 0, 3)], {}, "Block 3 has no holder: start a peer that serves it, or wait for one."),
        (
            [peer("a", 0, 2), peer("b", 2, 4, state="draining")],
            {},
            "Blocks 2-3 have only holders that are leaving: try again soon.",
        ),
        (
            [peer("a", 0, 2), peer("b", 2, 4, state="paused")],
            {},
            "Blocks 2-3 have only holders that are paused: try again soon.",
        ),
        (
            [peer("a", 1, 4, free_tokens=9), peer("b", 1, 4, state="joining")],
            {"kv_tokens": 10, "start": 1},
            "Blocks 1-3 have only holders that are still joining, without free memory for 10 tokens: try again soon.",
        ),
        (
            [peer("a"), peer("b")],
            {"avoid": frozenset({"a"}), "knowledge": Knowledge(banned=frozenset({"b"}))},
            "Blocks 0-3 have only holders that are failing, to be avoided: try again soon.",
        ),
    ],
)
def test_why_there_is_no_route_is_one_sentence(peers, fields, sentence):
    found = plan(view_of(*peers), **fields)
    assert isinstance(found, NoRoute)
    assert found.reason == sentence


def test_blocks_are_named_as_people_say_them():
    assert name_blocks([3]) == "block 3"
    assert name_blocks([8, 9, 10, 11, 14]) == "blocks 8-11 and 14"
    assert name_blocks([1, 3, 5, 6]) == "blocks 1, 3 and 5-6"
