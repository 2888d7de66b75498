"""The device thread over a real span of a tiny model: pieces in any mix give what the span gives alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from shoal.blocks.activations import pack, to_bytes, unpack, view_bytes
from shoal.blocks.checkpoint import resolve
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, SpanOptions, load_span
from shoal.dht.invite import Invite
from shoal.peer import offering
from shoal.peer.config import PeerConfig
from shoal.peer.engine import SHORT_TOKENS, DeviceEngine, Output, Piece
from shoal.peer.fit import Fit
from shoal.peer.measure import Throughput
from shoal.peer.order import EngineFault
from tiny_models import save_tiny

PAGES = 12
WIDTH = 64
N_BLOCKS = 4
STEP = 0.05  # where a sum that differs in its last bit rounds to the next whole number


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder)
    return resolve(str(folder))


def new_span(checkpoint):
    return load_span(checkpoint, range(N_BLOCKS), SpanOptions(kv_pages=PAGES, dtype=torch.float32))


@pytest.fixture(scope="module")
def alone(checkpoint):
    """A span used directly, for one sequence at a time, as `alone(hidden, start, stop)`."""
    span = new_span(checkpoint)

    def forward(hidden: torch.Tensor, start: int = 0, stop: int = N_BLOCKS) -> torch.Tensor:
        return span.forward(hidden.float(), [Row(tuple(range(4)), 0, len(hidden))], start, stop)

    return forward


@pytest.fixture
def engine(checkpoint):
    engine = DeviceEngine(new_span(checkpoint), PAGE_TOKENS)
    yield engine
    engine.close()


def states(count: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def piece(hidden: torch.Tensor, pages, **changes) -> Piece:
    payload = bytearray(hidden.contiguous().view(torch.uint8).numpy().tobytes())
    fields = {"dtype": str(hidden.dtype).removeprefix("torch."), "offset": 0, "count": len(hidden), "position": 0}
    fields |= {"start": 0, "stop": N_BLOCKS, "keep_rows": len(hidden), **changes}
    return Piece(payload=payload, pages=tuple(pages), **fields)


def tensor(output, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.frombuffer(bytearray(output.payload), dtype=dtype).view(-1, WIDTH)


def received(output) -> torch.Tensor:
    """An output that travelled as int8."""
    return unpack(view_bytes(output.payload, "int8", WIDTH), "int8", WIDTH)


def through(hidden: torch.Tensor) -> torch.Tensor:
    return unpack(pack(hidden, "int8"), "int8", WIDTH)


def same(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return got.shape == wanted.shape and torch.allclose(got.float(), wanted, atol=tolerance, rtol=tolerance)


async def test_what_the_span_says(engine, alone):
    assert (engine.start, engine.stop, engine.width, engine.n_pages) == (0, N_BLOCKS, WIDTH, PAGES)
    hidden = states(20, 1)
    (output,) = await engine.run([piece(hidden, [7, 2])])
    assert output.finite
    assert same(tensor(output), alone(hidden))


async def test_slices_of_a_payload_and_then_single_tokens(engine, alone):
    hidden = states(25, 2)
    whole = piece(hidden, [3, 9])
    parts = [(0, 7), (7, 10), (17, 7), (24, 1)]
    got = []
    for offset, count in parts:
        (output,) = await engine.run([replace(whole, offset=offset, count=count, position=offset, keep_rows=count)])
        got.append(tensor(output))
    assert same(torch.cat(got), alone(hidden))


@pytest.mark.parametrize("keep_rows", [0, 1, 3, 6])
async def test_only_the_last_rows_that_are_kept_come_back(engine, alone, keep_rows):
    hidden = states(6, 3)
    other = states(2, 4)
    first, second = await engine.run([piece(hidden, [0], keep_rows=keep_rows), piece(other, [1])])
    assert memoryview(first.payload).nbytes == keep_rows * WIDTH * 4
    assert first.finite
    if keep_rows:
        assert same(tensor(first), alone(hidden)[-keep_rows:])
    assert same(tensor(second), alone(other))


async def test_a_batch_of_sub_ranges_and_dtypes_comes_back_in_order(engine, alone):
    kinds = [
        (0, 4, torch.float32),
        (1, 3, torch.bfloat16),
        (0, 4, torch.float16),
        (2, 4, torch.float32),
        (1, 3, torch.float32),
    ]
    hidden = [states(3 + i, 10 + i, dtype) for i, (_, _, dtype) in enumerate(kinds)]
    batch = [
        piece(h, [i], start=start, stop=stop) for i, (h, (start, stop, _)) in enumerate(zip(hidden, kinds, strict=True))
    ]
    outputs = await engine.run(batch)
    for h, (start, stop, dtype), output in zip(hidden, kinds, outputs, strict=True):
        tolerance = 1e-4 if dtype is torch.float32 else 3e-2
        assert same(tensor(output, dtype), alone(h, start, stop), tolerance)


async def test_int8_rows_are_those_of_the_states_that_travelled(engine, alone):
    """Alone and in a batch with another form, with all, one and none of the rows kept."""
    sent = [pack(states(count, 40 + count), "int8") for count in (5, 3, 4)]
    seen = [unpack(rows, "int8", WIDTH) for rows in sent]
    batch = [
        replace(piece(rows, [page], keep_rows=keep), payload=to_bytes(rows), dtype="int8")
        for page, (rows, keep) in enumerate(zip(sent, (5, 1, 0), strict=True))
    ]
    first, second, third = await engine.run(batch)
    assert same(received(first), through(alone(seen[0])), STEP)
    assert same(received(second), through(alone(seen[1])[-1:]), STEP)
    assert not memoryview(third.payload).nbytes
    other = states(2, 50)
    mixed, plain = await engine.run([batch[0], piece(other, [3])])
    assert same(received(mixed), through(alone(seen[0])), STEP)
    assert same(tensor(plain), alone(other))


async def test_no_piece_reads_anothers_pages(engine, alone):
    a, b = states(5, 5), states(5, 6)
    await engine.run([piece(a, [0]), piece(b, [1])])
    next_a, next_b = states(1, 7), states(1, 8)
    got_b, got_a = await engine.run([piece(next_b, [1], position=5), piece(next_a, [0], position=5)])
    assert same(tensor(got_a), alone(torch.cat([a, next_a]))[-1:])
    assert same(tensor(got_b), alone(torch.cat([b, next_b]))[-1:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
async def test_what_is_not_finite_is_laid_to_its_piece_alone(engine, bad):
    poisoned = states(3, 9)
    poisoned[1, 5] = bad
    outputs = await engine.run([piece(states(2, 1), [0]), piece(poisoned, [1], keep_rows=0), piece(states(1, 2), [2])])
    assert [output.finite for output in outputs] == [True, False, True]


async def test_kept_rows_do_not_hold_the_batchs_memory(engine):
    """Leases keep outputs: one row of a large batch must not keep the rows of all others alive."""
    outputs = await engine.run([piece(states(1, 1), [0]), piece(states(150, 2), range(1, 11), keep_rows=1)])
    outputs += await engine.run([piece(states(150, 3), range(1, 11), keep_rows=1)])
    for output in outputs:
        assert isinstance(output.payload, bytes)
        assert len(output.payload) == WIDTH * 4


async def test_a_fault_is_named_and_the_engine_serves_on(engine, alone):
    hidden = states(4, 1)
    with pytest.raises(EngineFault, match=r"\w+Error: "):
        await engine.run([piece(hidden, [PAGES + 5])])
    with pytest.raises(EngineFault):
        await engine.run([piece(hidden, [0], start=2, stop=9)])
    (output,) = await engine.run([piece(hidden, [0])])
    assert same(tensor(output), alone(hidden))


async def test_pages_that_were_saved_come_back_to_other_places(engine, alone):
    hidden, more = states(20, 1), states(1, 2)
    await engine.run([piece(hidden, [3, 4])])
    saved = await engine.save([3, 4])
    await engine.run([piece(states(20, 3), [4, 3])])  # somebody else has them meanwhile
    await engine.restore(saved, [9, 0])
    (output,) = await engine.run([piece(more, [9, 0], position=20)])
    assert same(tensor(output), alone(torch.cat([hidden, more]))[-1:])


async def test_a_copied_page_leaves_its_source_alone(engine, alone):
    hidden, more = states(10, 1), [states(1, 2), states(1, 3)]
    await engine.run([piece(hidden, [3])])
    await engine.copy([3], [7])
    outputs = await engine.run([piece(row, [page], position=10) for row, page in zip(more, (3, 7), strict=True)])
    for row, output in zip(more, outputs, strict=True):
        assert same(tensor(output), alone(torch.cat([hidden, row]))[-1:])


async def test_moves_that_cannot_be_made_are_faults(engine):
    with pytest.raises(EngineFault, match="nothing to restore"):
        await engine.restore(None, [1])
    for work in (engine.save([PAGES]), engine.copy([0], [PAGES]), engine.restore(await engine.save([0]), [1, 2])):
        with pytest.raises(EngineFault, match="ValueError"):
            await work
    assert not engine.broken


async def test_no_memory_is_a_fault_that_breaks_nothing(engine, alone):
    """A petabyte is refused at once."""
    with pytest.raises(EngineFault, match="memory"):
        await engine._do(lambda: torch.empty(1 << 50))
    assert not engine.broken
    hidden = states(3, 1)
    assert same(tensor((await engine.run([piece(hidden, [0])]))[0]), alone(hidden))


async def test_what_a_step_may_hold(engine):
    assert (engine.max_step_tokens, engine.max_batch) == (512, 256)


async def test_who_no_longer_waits_does_no_harm(engine, alone):
    hidden = states(4, 1)
    running = [asyncio.create_task(engine.run([piece(hidden, [i])])) for i in range(4)]
    await asyncio.sleep(0)
    for task in running[::2]:
        task.cancel()
    done = await asyncio.gather(*running, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in done] == [True, False, True, False]
    assert same(tensor(done[1][0]), alone(hidden))


async def test_the_work_is_done_on_one_thread_of_its_own(engine, monkeypatch):
    seen = set()
    blocks_of = engine.span._range  # of every forward pass
    monkeypatch.setattr(
        engine.span, "_range", lambda *args: seen.add(threading.current_thread().name) or blocks_of(*args)
    )
    for i in range(3):
        await engine.run([piece(states(1, i), [i])])
    assert seen == {"shoal-device"}
    assert threading.current_thread().name not in seen


async def test_closing_ends_the_thread(checkpoint):
    engine = DeviceEngine(new_span(checkpoint), PAGE_TOKENS)
    await engine.run([piece(states(1, 1), [0])])
    engine.close()
    assert not engine._thread.is_alive()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


async def run(engine, batch) -> list[Output]:
    """As a node whose only session this is."""
    (first,) = batch
    quick = engine.quick(first.start, first.stop, first.count)
    return engine.run_now(batch) if quick else await engine.run(batch)


async def where(engine, batch) -> set[int]:
    """The threads on which a batch ran."""
    found, blocks_of = set(), engine.span._range

    def noted(*given):
        found.add(threading.get_ident())
        return blocks_of(*given)

    engine.span._range = noted
    try:
        await run(engine, batch)
    finally:
        engine.span._range = blocks_of
    return found


async def test_a_short_step_of_a_lone_session_runs_on_the_loop_s_own_thread(one_thread, checkpoint, alone):
    engine = DeviceEngine(new_span(checkpoint), PAGE_TOKENS)
    try:
        here, step = threading.get_ident(), [piece(states(1, 1), [0, 1])]
        assert here not in await where(engine, step)  # nothing is known of such a step yet
        assert await where(engine, step) == {here}
        (output,) = await run(engine, step)
        assert torch.allclose(tensor(output), alone(states(1, 1)), atol=1e-5)
        long = [piece(states(SHORT_TOKENS + 1, 3), list(range(5)))]
        for _ in range(2):
            assert here not in await where(engine, long)
    finally:
        engine.close()


async def test_what_fails_on_the_loop_s_thread_is_a_fault_and_a_step_waits_for_those_under_way(one_thread, checkpoint):
    engine = DeviceEngine(new_span(checkpoint), PAGE_TOKENS)
    try:
        here, step = threading.get_ident(), [piece(states(1, 1), [0])]
        await engine.run(step)
        with pytest.raises(EngineFault, match="ValueError"):
            engine.run_now([replace(step[0], pages=(PAGES + 3,))])
        under_way = asyncio.create_task(engine.run([piece(states(16, 2), [1])]))
        await asyncio.sleep(0)
        assert here not in await where(engine, step)
        await under_way
        assert await where(engine, step) == {here}
    finally:
        engine.close()


async def test_a_closed_engine_holds_no_weights(checkpoint):
    """Whoever still knows it, such as the peer's account of itself: the next span may need all the memory."""
    engine = DeviceEngine(new_span(checkpoint), PAGE_TOKENS)
    await engine.run([piece(states(3, 1), [0])])
    span = weakref.ref(engine.span)
    engine.close()
    gc.collect()
    assert span() is None
    assert (engine.start, engine.stop) == (0, N_BLOCKS)


def test_what_comes_back_before_one_step_is_bounded_in_bytes(engine, monkeypatch):
    """One page always may."""
    assert engine.page_bytes == engine.span.kv.save([0]).n_bytes
    model = SimpleNamespace(checkpoint=SimpleNamespace(revision="r"), spec=engine.span.spec)
    room = Fit(blocks=N_BLOCKS, streamed=0, kv_tokens=PAGES * PAGE_TOKENS, swap_pages=7, kept_bytes=1, why="")
    config, speed = PeerConfig(Invite("s", "m", ()), "m"), Throughput(0.1, 0.1)
    found = []
    for n_bytes in (1, 3 * engine.page_bytes, 4 * engine.page_bytes - 1):
        monkeypatch.setattr(offering, "STEP_BYTES", n_bytes)
        found.append(offering.node_config(config, model, room, engine, "p", speed, None).limits.step_pages)
    assert found == [1, 3, 3]
