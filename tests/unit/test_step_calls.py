"""The Python of a decode step does not grow with the number of blocks: on a CPU by our C, on a GPU by graphs.

The graphs here are stand-ins; tests/gpu/test_span_gpu.py counts with real ones.
"""

from __future__ import annotations

import functools
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from counted_calls import calls_of
from shoal.blocks.checkpoint import resolve
from shoal.blocks.cpu import compiled
from shoal.blocks.kernels import has_triton
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, Span, SpanOptions, load_span
from shoal.peer.engine import DeviceEngine, Piece
from transformers import LlamaConfig, LlamaForCausalLM

FEW, MANY = 2, 8
CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=MANY, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=64,
)  # fmt: skip
SETTLED = 3  # steps after which nothing is done for the first time


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """The first blocks of a model as a span, each kind made once."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(CONFIG).save_pretrained(folder)
    checkpoint = resolve(str(folder))

    @functools.cache
    def span(blocks: int, dtype: torch.dtype = torch.float32, **options: object) -> Span:
        return load_span(checkpoint, range(blocks), SpanOptions(kv_pages=8, dtype=dtype, **options))

    return span


def step_calls(span: Span, sessions: int) -> int:
    """Calls of one step of the peer's engine, bytes to bytes, a token for each session."""
    engine = DeviceEngine(span, PAGE_TOKENS)
    payload = bytearray(torch.randn(1, CONFIG.hidden_size).numpy().tobytes())
    pages = [(number,) for number in range(sessions)]

    def step(position: int) -> object:
        return engine.run_now([Piece(payload, "float32", 0, 1, held, position, 0, engine.stop, 1) for held in pages])

    try:
        for position in range(SETTLED):
            step(position)
        return calls_of(lambda: step(SETTLED))
    finally:
        engine.close()


@pytest.mark.skipif(not any(map(shutil.which, compiled.COMPILERS)), reason="needs a C compiler")
@pytest.mark.parametrize("sessions", [1, 5])
def test_a_step_in_c_is_the_same_python_for_any_number_of_blocks(load, sessions) -> None:
    few, many = load(FEW), load(MANY)
    assert few._short is not None
    assert step_calls(few, sessions) == step_calls(many, sessions)
    plain = [step_calls(load(blocks, short=False), sessions) for blocks in (FEW, MANY)]
    assert plain[1] > 2 * plain[0], "a call for each operation of each block would show"


class Graph:
    """What was captured runs again without Python; here it does not run at all."""

    replays = 0

    def replay(self) -> None:
        Graph.replays += 1


@pytest.fixture
def graphs_here(monkeypatch) -> None:
    """A CPU in the place of a CUDA device, and kernels that do nothing."""
    from shoal.blocks import graphs
    from shoal.blocks.fused_cuda import FusedSpan

    @contextmanager
    def capturing(*_args, **_options):
        yield

    def forward(_span, hidden, run, _inputs):
        for _ in run:
            hidden = hidden.add(1)
        return hidden

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(query=lambda: True))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(graphs, "fetch", lambda *_: None)
    monkeypatch.setattr(graphs, "choose_splits", lambda *_: 1)
    monkeypatch.setattr(FusedSpan, "forward", forward)


@pytest.mark.skipif(not has_triton(), reason="needs Triton")
@pytest.mark.parametrize("rows", [1, 5])
def test_a_replayed_step_is_the_same_python_for_any_number_of_blocks(load, graphs_here, rows) -> None:
    from shoal.blocks.steps import Steps

    first, replayed = [], []
    for blocks in (FEW, MANY):
        span = load(MANY, torch.float16)
        steps, pages = Steps(span._parts, span.kv), [(row,) for row in range(rows)]

        def step(position, steps=steps, pages=pages, blocks=blocks) -> object:
            held = [Row(one, position, 1) for one in pages]
            return steps.forward(torch.zeros(rows, CONFIG.hidden_size).half(), held, range(blocks))

        Graph.replays = 0
        first.append(calls_of(lambda step=step: step(0)))
        assert len(steps.graphs) == 0
        step(1)
        assert (len(steps.graphs), Graph.replays) == (1, 1)
        replayed.append(calls_of(lambda step=step: step(2)))
        assert (len(steps.graphs), Graph.replays) == (1, 2)
    assert replayed[0] == replayed[1]
    assert first[1] > first[0], "without a graph each block costs Python"


@pytest.mark.skipif(not has_triton(), reason="needs Triton")
def test_each_part_of_a_span_that_is_used_again_gets_a_graph_of_its_own(load, graphs_here) -> None:
    from shoal.blocks.steps import Steps

    span = load(MANY, torch.float16)
    steps, hidden = Steps(span._parts, span.kv), torch.zeros(1, CONFIG.hidden_size).half()
    captured = []
    for run in (range(MANY), range(3), range(3, MANY), range(3), range(3, MANY), range(2, 5), range(3)):
        out = steps.forward(hidden, [Row((0,), 0, 1)], run)
        assert out.unique().tolist() == [len(run)]
        captured.append(len(steps.graphs))
    assert captured == [0, 0, 0, 1, 2, 2, 2]
