"""A hop is called slow only when it is, whatever the clock says."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from shoal.client.tempo import LEAST_S, PATIENCE, SLOW_S, WINDOW, Pace, Tempo

TIMES = st.sampled_from([0.0, 1e-9, 1e-4, 0.003, 0.01, 0.2, 3.0])


def route(*expected_s):
    return [SimpleNamespace(pace=Pace(promised_s), slow_s=0.0) for promised_s in expected_s]


def run(tempo, links, steps):
    """Each step: what every hop takes; until one is called slow."""
    now = 0.0
    for number, took_s in enumerate(steps):
        tempo.sent(number, now, alone=True)
        for index, each_s in enumerate(took_s):
            now += each_s
            tempo.receipt(links, index, number, now)
        if any(link.slow_s for link in links):
            return


@given(
    st.lists(st.tuples(TIMES, TIMES, TIMES), max_size=40),
    st.tuples(*[st.sampled_from([0.0, 1e-6, 0.005, float("inf")])] * 3),
)
def test_no_clock_breaks_it(steps, expected_s):
    """Receipts that are read in one go are no time apart."""
    links = route(*expected_s)
    run(Tempo(), links, steps)
    assert sum(link.slow_s > 0 for link in links) <= 1
    for link in links:
        assert link.slow_s == 0 or link.pace.mean_s > link.pace.usual_s + SLOW_S
        assert link.pace.usual_s >= LEAST_S


def test_a_hop_that_slows_down_is_found():
    links = route(0.01, 0.01, 0.01)
    run(Tempo(), links, [(0.01, 0.0, 0.01)] * (PATIENCE + WINDOW) + [(0.01, 0.1, 0.01)] * WINDOW)
    assert [link.slow_s > 0 for link in links] == [False, True, False]


def test_nobody_is_slow_where_all_are():
    links = route(0.01, 0.01, 0.01)
    run(Tempo(), links, [(0.01, 0.01, 0.01)] * PATIENCE + [(0.1, 0.1, 0.1)] * 3 * WINDOW)
    assert [link.slow_s for link in links] == [0.0, 0.0, 0.0]
