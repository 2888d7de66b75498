"""Graphs give way where a device's memory runs out: with what of CUDA they use replaced, so that no GPU is needed."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from shoal.blocks import graphs, steps
from shoal.blocks.batch import Row
from shoal.blocks.sizes import CHUNKS

WIDTH = 4
LONG = CHUNKS[-1] + 1  # tokens for which there is no graph
NO_MEMORY = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
    "driver": RuntimeError("CUDA error: out of memory"),
}


class Device:
    """Forwards twice their input; `full`: what then finds no memory, until graphs are gone; `lost`: for good."""

    def __init__(self, monkeypatch) -> None:
        self.kv = SimpleNamespace(n_pages=64, scratch_page=64, device=torch.device("cpu"), dtype=torch.float32)
        self.dtype, self.group, self.kv_heads = torch.float32, 2, 1
        self.full, self.lost, self.error, self.eager = "", False, NO_MEMORY["allocator"], 0
        self._captured: list | None = None
        inputs_of = graphs.inputs_of

        def inputs(*given):
            self.take("inputs")
            return inputs_of(*given)

        monkeypatch.setattr(steps, "FusedSpan", lambda _parts, _kv: self)
        monkeypatch.setattr(graphs, "inputs_of", inputs)
        monkeypatch.setattr(graphs, "fetch", self.fetch)
        monkeypatch.setattr(graphs, "choose_splits", lambda *_: 1)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        for name in ("graph_pool_handle", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, lambda *_: object())
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty_cache)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        self.steps = steps.Steps(SimpleNamespace(rotary=None, spec=SimpleNamespace(hidden_size=WIDTH)), self.kv)

    def take(self, what: str) -> None:
        if what == self.full:
            raise self.error

    def empty_cache(self) -> None:
        if not self.lost:
            self.full = ""

    @contextmanager
    def graph(self, graph, **_options):
        self._captured = graph.calls
        try:
            yield
            self.take("capture")
        finally:
            self._captured = None

    def run(self, call) -> None:
        call()
        if self._captured is not None:
            self._captured.append(call)

    def fetch(self, pinned, ints, source, hidden, _arrived, fetched) -> None:
        def call() -> None:
            ints.copy_(pinned)
            fetched.copy_(pinned[-1:])
            if source is not None:
                hidden.copy_(source)

        self.run(call)

    def forward(self, hidden, _run, _inputs):
        self.take("forward" if len(hidden) < LONG else "long forward")
        self.eager += self._captured is None
        out = torch.empty_like(hidden)
        self.run(lambda: torch.mul(hidden, 2, out=out))
        return out

    def step(self, count: int) -> None:
        """`count` rows of one token, or a chunk where it is `LONG`."""
        rows = (Row((0,), 3, 1),) * count if count < LONG else (Row(tuple(range(64)), 0, count),)
        hidden = torch.randn(count, WIDTH)
        assert torch.equal(self.steps.forward(hidden, rows, range(2)), 2 * hidden)


class Graph:
    def __init__(self, device) -> None:
        self.device, self.calls = device, []

    def replay(self) -> None:
        self.device.take("replay")
        for call in self.calls:
            call()


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(graphs, "STEPS_BEFORE_RETRY", 5)
    return Device(monkeypatch)


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
@pytest.mark.parametrize(
    ("full", "count"), [("inputs", 8), ("forward", 8), ("capture", 4), ("replay", 1), ("long forward", LONG)]
)
def test_a_step_that_finds_no_memory_runs_without_graphs(device, full, count, error) -> None:
    """The first of its size, the second, a later one, one that is too long for a graph."""
    for size in (1, 2, 1, 2, 4):
        device.step(size)
    assert len(device.steps.graphs) == 2
    device.full, device.error = full, error
    device.step(count)
    assert device.full == ""
    assert len(device.steps.graphs) == 0


def test_after_a_while_steps_are_captured_again(device) -> None:
    for _ in range(3):
        device.step(1)
    device.full, before = "replay", device.eager
    for _ in range(graphs.STEPS_BEFORE_RETRY):
        device.step(1)
        assert len(device.steps.graphs) == 0
    assert device.eager - before == graphs.STEPS_BEFORE_RETRY
    for _ in range(2):
        device.step(1)
    assert len(device.steps.graphs) == 1
    assert device.eager - before == graphs.STEPS_BEFORE_RETRY


def test_memory_that_held_some_graphs_is_not_filled_with_as_many_again(device, monkeypatch) -> None:
    sizes = (1, 2, 4, 8)
    for size in sizes * 2:
        device.step(size)
    assert len(device.steps.graphs) == 4
    device.full = "replay"
    device.step(1)
    for size in (1, 1, 2, 2, 4, 4, 8, 8):
        device.step(size)
    assert len(device.steps.graphs) == 2
    monkeypatch.setattr(graphs, "STEPS_BEFORE_MORE", 10)
    for size in (1, 1, 2, 2, 4, 4, 8, 8) * 2:
        device.step(size)
    assert len(device.steps.graphs) > 2


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_with_no_graphs_left_to_give_way_the_error_is_told(device, error) -> None:
    device.step(1)
    device.full, device.error, device.lost = "forward", error, True
    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            device.step(1)


def test_another_error_is_none_of_memory(device) -> None:
    for _ in range(3):
        device.step(1)
    device.full, device.error = "replay", RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal"):
        device.step(1)
    assert len(device.steps.graphs) == 1
