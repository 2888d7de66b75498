"""The device thread on CUDA: page-locked transfers give what the span gives, faults of memory end nothing, and a lost
device is noticed.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from shoal.blocks.activations import pack, to_bytes, unpack, view_bytes
from shoal.blocks.checkpoint import resolve
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, SpanOptions, load_span
from shoal.peer.engine import DeviceEngine, Piece
from shoal.peer.order import EngineFault

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BLOCKS = 2


def new_span(pages: int = 24, blocks: int = BLOCKS):
    return load_span(resolve("demo"), range(blocks), SpanOptions(kv_pages=pages, device="cuda", dtype=torch.bfloat16))


@pytest.fixture
def engine():
    engine = DeviceEngine(new_span(), PAGE_TOKENS)
    yield engine
    engine.close()


def states(engine, count: int, seed: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(count, engine.width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def piece(hidden: torch.Tensor, pages, position: int = 0, keep_rows: int | None = None) -> Piece:
    payload = bytearray(hidden.contiguous().view(torch.uint8).numpy())
    dtype, keep = str(hidden.dtype).removeprefix("torch."), len(hidden) if keep_rows is None else keep_rows
    return Piece(payload, dtype, 0, len(hidden), tuple(pages), position, 0, BLOCKS, keep)


def rows_of(engine, output, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.frombuffer(bytearray(output.payload), dtype=dtype).view(-1, engine.width)


def close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    wanted = wanted.float().cpu()
    return got.shape == wanted.shape and float((got.float() - wanted).norm() / wanted.norm()) < 0.02


async def test_prompts_and_steps_in_one_batch_give_what_the_span_gives(engine):
    reference = new_span()
    prompts = [states(engine, 20, 1), states(engine, 33, 2, torch.float32), states(engine, 5, 3)]
    pages = [(0, 1), (7, 3, 5), (9,)]
    await engine.run([piece(prompts[0], pages[0], keep_rows=0)])
    wanted = [
        reference.forward(hidden, [Row(held, 0, len(hidden))]) for hidden, held in zip(prompts, pages, strict=True)
    ]
    step = states(engine, 1, 4)
    batch = [
        piece(step, pages[0], 20), piece(prompts[1], pages[1], keep_rows=1), piece(prompts[2], pages[2], keep_rows=3),
    ]  # fmt: skip
    outputs = await engine.run(batch)
    assert [output.finite for output in outputs] == [True] * 3
    assert close(rows_of(engine, outputs[0]), reference.forward(step, [Row(pages[0], 20, 1)]))
    assert close(rows_of(engine, outputs[1], torch.float32), wanted[1][-1:])
    assert close(rows_of(engine, outputs[2]), wanted[2][-3:])
    later = [piece(states(engine, 1, 10 + i), held, 40 if i == 1 else 20 + i) for i, held in enumerate(pages[:2])]
    assert all(isinstance(output.payload, bytes) for output in await engine.run(later))


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("count", [1, 5, 16])
async def test_steps_of_one_size_after_the_other_give_what_the_span_gives(engine, count, here):
    """First without a graph, then by one that fetches its inputs; on the loop's thread and on the device's."""
    reference, pages = new_span(), tuple(range(23, 3, -1))
    for number in range(6):
        hidden, row = states(engine, count, number), Row(pages, number * count, count)
        step = [piece(hidden, pages, row.position)]
        (output,) = engine.run_now(step) if here and engine.quick(0, BLOCKS, count) else await engine.run(step)
        wanted = reference.forward(hidden.cuda(), [row])
        assert close(rows_of(engine, output), wanted), number


async def test_a_session_through_a_part_of_the_span_gets_a_graph_at_its_second_step(engine):
    reference, captured = new_span(), []
    for number in range(4):
        hidden = states(engine, 1, number)
        (output,) = await engine.run([replace(piece(hidden, (3,), number), start=1)])
        wanted = reference.forward(hidden.cuda(), [Row((3,), number, 1)], 1, BLOCKS)
        assert close(rows_of(engine, output), wanted), number
        captured.append([(size.start, size.stop) for (size, _), one in engine.span._steps.graphs._graphs.items()
                         if one.captured])  # fmt: skip
    assert captured == [[], *[[(1, BLOCKS)]] * 3]


def replayed_calls(blocks: int) -> int:
    """Python's calls in a step of one token, bytes to bytes, once its graph is there."""
    from tests.unit.counted_calls import calls_of  # not found by the processes that some tests here start

    engine = DeviceEngine(new_span(blocks=blocks), PAGE_TOKENS)
    pages = (0,)
    steps = [[replace(piece(states(engine, 1, at), pages, at), stop=blocks)] for at in range(9)]
    try:
        for step in steps[:4]:
            engine.run_now(step)
        assert len(engine.span._steps.graphs) == 1
        return min(calls_of(lambda step=step: engine.run_now(step)) for step in steps[4:])  # it may look more than once
    finally:
        engine.close()


def test_a_step_is_the_same_python_for_any_number_of_blocks():
    assert replayed_calls(2) == replayed_calls(8)


async def test_decodes_beside_the_largest_chunk_are_fetched_as_well(engine):
    """Padded, the step has more tokens than any without padding; as many decodes as its size, so nothing is moved."""
    reference, held = new_span(160), [tuple(range(i, 160, 5)) for i in range(5)]
    engine.close()
    large = DeviceEngine(new_span(160), PAGE_TOKENS)
    try:
        for number in range(4):
            hidden = [states(large, 1 if i < 4 else 400, 10 * number + i) for i in range(5)]
            batch = [piece(rows, pages, number, 1) for rows, pages in zip(hidden, held, strict=True)]
            rows = [Row(pages, number, len(part)) for part, pages in zip(hidden, held, strict=True)]
            wanted = reference.forward(torch.cat(hidden).cuda(), rows)
            outputs = await large.run(batch)
            assert close(torch.cat([rows_of(large, output) for output in outputs]), wanted[[0, 1, 2, 3, -1]])
    finally:
        large.close()


async def test_what_is_not_finite_is_laid_to_its_piece_alone(engine):
    poisoned = states(engine, 3, 9)
    poisoned[1, 5] = float("inf")
    batch = [piece(states(engine, 2, 1), [0]), piece(poisoned, [1], keep_rows=0), piece(states(engine, 1, 2), [2])]
    assert [output.finite for output in await engine.run(batch)] == [True, False, True]


async def test_rows_in_int8_come_as_they_are_packed(engine):
    hidden, pages = [states(engine, 3, 1), states(engine, 4, 2)], [(0,), (5,)]
    plain = await engine.run([piece(rows, held) for rows, held in zip(hidden, pages, strict=True)])
    packed = [bytearray(to_bytes(pack(rows, "int8"))) for rows in hidden]
    batch = [
        Piece(payload, "int8", 0, len(rows), held, 0, 0, BLOCKS, keep)
        for payload, rows, held, keep in zip(packed, hidden, pages, (1, 4), strict=True)
    ]
    for (output, wanted), keep in zip(zip(await engine.run(batch), plain, strict=True), (1, 4), strict=True):
        got = unpack(view_bytes(output.payload, "int8", engine.width), "int8", engine.width)
        assert output.finite
        assert float((got - rows_of(engine, wanted)[-keep:].float()).norm() / got.norm()) < 0.05


async def test_pages_go_to_host_memory_and_back(engine):
    hidden, step = states(engine, 20, 1), states(engine, 1, 2)
    (first,) = await engine.run([piece(hidden, [3, 4])])
    saved = await engine.save([3, 4])
    (wanted,) = await engine.run([piece(step, [3, 4], 20)])
    await engine.run([piece(states(engine, 20, 5), [4, 3])])
    await engine.restore(saved, [9, 0])
    await engine.copy([0], [11])
    (got,) = await engine.run([piece(step, [9, 11], 20)])
    assert got.payload == wanted.payload
    assert first.finite


async def test_no_memory_is_a_fault_that_breaks_nothing(engine):
    with pytest.raises(EngineFault, match="OutOfMemoryError"):
        await engine._do(lambda: torch.empty(1 << 45, device="cuda"))
    assert not engine.broken
    assert (await engine.run([piece(states(engine, 3, 1), [0])]))[0].finite


LOST = """
import asyncio, torch
from shoal.peer.order import EngineFault
from test_engine_gpu import *

async def main():
    engine = DeviceEngine(new_span(), PAGE_TOKENS)
    try:
        await engine._do(lambda: torch.zeros(4, device="cuda")[torch.tensor([99], device="cuda")].cpu())
    except EngineFault:
        print("broken" if engine.broken else "whole")

asyncio.run(main())
"""


def test_a_lost_device_is_noticed():
    """In a process of its own: an index out of bounds on the device leaves CUDA unusable in it."""
    done = subprocess.run(
        [sys.executable, "-c", LOST], cwd="tests/gpu", capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stdout.strip() == "broken", done.stderr[-2000:]


WARMED = """
import asyncio, faulthandler, torch
faulthandler.dump_traceback_later(95, exit=True)  # tells where it was; the first to come compiles all kernels
from test_engine_gpu import *

async def main():
    span, other = new_span(128), new_span(128)
    span.warm_up(4, 1024, 2048)
    engine = DeviceEngine(span, PAGE_TOKENS)
    for count in (100, 300, 512):
        for _ in range(3):
            (output,) = await engine.run([piece(states(engine, count, count), range(64))])
            assert output.finite
        assert close(rows_of(engine, output), other.forward(states(engine, count, count), [Row(range(64), 0, count)]))
    print(len(span._steps.graphs), "graphs")
    engine.close()

asyncio.run(main())
"""


def test_steps_that_another_thread_made_ready_are_captured_here():
    """In a process of its own: what CUDA's libraries keep for a thread is not there yet in the device thread."""
    done = subprocess.run(
        [sys.executable, "-c", WARMED], cwd="tests/gpu", capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stdout.strip() == "6 graphs", done.stderr[-2000:]


async def test_who_waits_for_a_step_leaves_the_loop_free(engine):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    for position in range(5):
        await engine.run([piece(states(engine, 1, position), [0], position)])
    ticking.cancel()
    assert ticks > 5
