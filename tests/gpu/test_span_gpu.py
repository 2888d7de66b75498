"""Spans on a CUDA device against fp32 on the CPU: kinds of weights and KV, families, batches, old and full memory."""

from __future__ import annotations

import functools
import importlib.util
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, Span, SpanOptions, load_span
from shoal.peer.engine import DeviceEngine, Piece
from shoal.peer.order import EngineFault

from tests.unit.tiny_models import _SMALL, TINY, _spread

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes to quantize"
)
KINDS = ["none", pytest.param("int8", marks=needs_bitsandbytes), pytest.param("nf4", marks=needs_bitsandbytes)]
OWN = {"none": 0.02, "int8": 0.02, "nf4": 0.03}  # against fp32 of the same rounded weights
PLAIN = {"none": 0.02, "int8": 0.05, "nf4": 0.40}  # against fp32 of the weights before
FAMILIES = ["llama", "llama-llama3-rope", "llama-dynamic-rope", "qwen2", "qwen3", "gemma2", "gemma3", "phi3",
            "phi3-longrope", "granite", "mistral"]  # fmt: skip
N_BLOCKS, PAGES = 4, 64
WIDER = {"hidden_size": 256, "intermediate_size": 512}
SIZES = {**WIDER, "head_dim": 64}


@dataclass
class Held:
    """A checkpoint in memory; `change` is what every matrix is passed through when it is read."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    change: Any = None

    def tensor_names(self):
        return frozenset(self.tensors)

    def read(self, names):
        return {name: self._one(name) for name in names}

    def _one(self, name):
        tensor = self.tensors[name]
        return self.change(tensor) if self.change and tensor.dim() == 2 else tensor


def checkpoint(variant: str, **sizes: int) -> Held:
    """A random model of a family, in bf16's numbers, so that a span in bf16 holds the very same weights."""
    tiny = TINY[variant]
    entries = {key: value for key, value in _SMALL.items() if key not in tiny.without} | tiny.entries | sizes
    torch.manual_seed(sum(map(ord, variant)))
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, tiny.config)(**entries))
    _spread(model)
    return Held(model.config.to_dict(), {name: one.data.bfloat16().float() for name, one in model.named_parameters()})


@pytest.fixture(scope="module")
def large() -> Held:
    return checkpoint("llama-llama3-rope", **SIZES)


def rounding(kind: str):
    """What a quantization makes of a matrix, by bitsandbytes' own functions, on the CPU."""
    if kind == "none":
        return None
    from bitsandbytes import functional

    def nf4(weight):
        packed, state = functional.quantize_4bit(
            weight.cuda(), blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        return functional.dequantize_4bit(packed, state).cpu()

    def int8(weight):
        codes, scales, _ = functional.int8_vectorwise_quant(weight.cuda().half())
        return (codes.float() * scales[:, None] / 127).cpu()

    return {"nf4": nf4, "int8": int8}[kind]


def exact_span(held: Held, kind: str = "none", blocks: range = range(N_BLOCKS)) -> Span:
    """fp32 on the CPU, through transformers' own layers, with the weights as `kind` rounds them."""
    options = SpanOptions(PAGES, dtype=torch.float32, fused=False)
    return load_span(Held(held.config, held.tensors, rounding(kind)), blocks, options)


def cuda_span(held: Held, kind: str = "none", **options: Any) -> Span:
    options = {"dtype": torch.bfloat16, **options}
    return load_span(held, range(N_BLOCKS), SpanOptions(PAGES, quantization=kind, device="cuda", **options))


@pytest.fixture(scope="module")
def spans(large):
    """The larger model's span of each kind, with NaN in all pages."""
    held: dict[str, Span] = {}

    def span(kind: str) -> Span:
        if kind not in held:
            held[kind] = cuda_span(large, kind)
        poison_pages(held[kind])
        return held[kind]

    return span


@pytest.fixture(scope="module")
def exact(large):
    """What `mixed_run` gives in fp32 of the larger model's weights, as each kind rounds them."""
    return functools.cache(lambda kind: mixed_run(exact_span(large, kind)))


def states(count: int, width: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return drawn.bfloat16().float()


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    assert torch.isfinite(found).all()
    return float((found.float().cpu() - exact).norm() / exact.norm())


@dataclass
class Text:
    """One sequence's inputs, its pages in no order, and how far it is."""

    hidden: torch.Tensor
    pages: list[int]
    done: int = 0


def texts_of(span: Span, lengths: list[int], seed: int = 0) -> list[Text]:
    order = random.Random(seed).sample(range(PAGES), PAGES)
    found = []
    for index, length in enumerate(lengths):
        pages = [order.pop() for _ in range(-(-length // PAGE_TOKENS))]
        found.append(Text(states(length, span.spec.hidden_size, 100 * seed + index), pages))
    return found


def step(span: Span, texts: list[Text], counts: list[int], prompts: list[int]) -> list[torch.Tensor]:
    """One forward with so many tokens of each text; the outputs of those that had any."""
    rows, parts = [], []
    for text, count, prompt in zip(texts, counts, prompts, strict=True):
        if count:
            rows.append(Row(text.pages, text.done, count, length=prompt))
            parts.append(text.hidden[text.done : text.done + count])
            text.done += count
    poison_free(span)
    return list(span.forward(torch.cat(parts), rows).float().cpu().split([row.count for row in rows]))


def poison_free(span: Span) -> None:
    """NaN in the memory that is handed out next: an output that is not wholly written shows."""
    if span.device.type == "cuda":
        held = [torch.full((1 << power,), torch.nan, device="cuda") for power in range(8, 24, 2) for _ in range(3)]
        del held


def poison_pages(span: Span) -> None:
    for block in span.blocks:
        for numbers, scale in span.kv.block(block).pairs:
            (numbers if scale is None else scale).fill_(torch.nan)


def mixed_run(span: Span, seed: int = 0) -> torch.Tensor:
    """Chunks of prompts beside decode tokens, then decode tokens for long enough that graphs take over."""
    prompts = [100, 5, 33]
    texts = texts_of(span, [130, 60, 80], seed)
    plan = [
        [17, 5, 0],
        [1, 1, 33],
        [60, 1, 1],
        [22, 1, 0],
        *([[1, 1, 1]] * 12),
        [1, 0, 1],
        [0, 0, 1],
        *([[1, 0, 0]] * 4),
    ]
    out: list[list[torch.Tensor]] = [[], [], []]
    for counts in plan:
        found = iter(step(span, texts, counts, prompts))
        for index, count in enumerate(counts):
            if count:
                out[index].append(next(found))
    return torch.cat([torch.cat(parts) for parts in out])


@pytest.mark.parametrize("kind", KINDS)
def test_prefill_decode_and_mixed_batches_against_fp32(spans, exact, kind) -> None:
    span = spans(kind)
    assert span.fused
    found = mixed_run(span)
    assert error(found, exact(kind)) < OWN[kind]
    assert error(found, exact("none")) < PLAIN[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_generic_path_against_fp32(large, exact, kind) -> None:
    span = cuda_span(large, kind, fused=False)
    assert not span.fused
    poison_pages(span)
    assert error(mixed_run(span), exact("none")) < PLAIN[kind]


@pytest.mark.parametrize("variant", ["gpt-oss", "mixtral", "qwen3-moe", "gpt2", "opt", "gpt-neox"])
def test_families_without_a_layer_of_ours_are_as_near_to_fp32_by_our_kernel_as_by_torch(variant, monkeypatch) -> None:
    """Of nine tokens in ten: where two experts are nearly equal, rounding decides which one a token gets."""
    held = checkpoint(variant)
    exact = mixed_run(exact_span(held))

    def nearly_all() -> float:
        span = cuda_span(held, dtype=torch.float16)
        assert not span.fused
        poison_pages(span)
        return float(((mixed_run(span) - exact).norm(dim=1) / exact.norm(dim=1)).quantile(0.9))

    by_kernel = nearly_all()
    monkeypatch.setattr("shoal.blocks.attention.has_kernels", lambda *_: False)
    assert by_kernel < 1.2 * nearly_all() + 0.001


@pytest.mark.parametrize("fused", [True, False])
def test_int8_kv_is_near_16_bit(large, spans, exact, fused) -> None:
    span = cuda_span(large, kv_dtype="int8", fused=fused)
    poison_pages(span)
    found = mixed_run(span)
    assert error(found, exact("none")) < 0.03
    assert error(found, mixed_run(spans("none"))) > 1e-4


def test_float16_is_nearer_than_bfloat16(large, exact) -> None:
    assert error(mixed_run(cuda_span(large, dtype=torch.float16)), exact("none")) < 0.004


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [
        *((variant, {}) for variant in FAMILIES),
        *((variant, WIDER) for variant in ("llama", "qwen3", "gemma2", "gemma3")),
    ],
)
def test_our_layers_are_as_near_to_fp32_as_transformers_are(variant, sizes) -> None:
    """Prompts longer than the windows; softcaps, norms of heads, biases and scaled residuals as the family has them."""
    held = checkpoint(variant, **sizes)
    exact = mixed_run(exact_span(held))
    fused = cuda_span(held)
    assert fused.fused
    poison_pages(fused)
    generic_error = error(mixed_run(cuda_span(held, fused=False)), exact)
    assert error(mixed_run(fused), exact) < 1.5 * generic_error + 0.002


def captured(span: Span, start: int, stop: int) -> int:
    """How many steps of one token through these blocks, and no others, have a graph."""
    held = span._steps.graphs._graphs.items()
    sizes = [size for (size, _), graph in held if graph.captured]
    return sum((size.start, size.stop, size.decodes, size.chunk) == (start, stop, 1, 0) for size in sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_sub_ranges_compose(large, spans, kind) -> None:
    span, exact = spans(kind), exact_span(large, kind)
    (text,) = texts_of(span, [60])
    parts = [(0, 1), (1, 3), (3, N_BLOCKS)]
    cuts = [0, 20, 50, *range(51, 61)]
    for first, last in pairwise(cuts):
        rows, hidden = [Row(text.pages, first, last - first)], text.hidden[first:last]
        wanted = exact.forward(hidden, rows)
        whole = span.forward(hidden, rows)
        part = span.forward(span.forward(span.forward(hidden, rows, stop=1), rows, 1, 3), rows, start=3)
        assert error(whole, wanted) < OWN[kind]
        assert error(part, wanted) < OWN[kind]
        if first > 50:  # the second step of its size
            assert [captured(span, *blocks) for blocks in parts] == [1, 1, 1]
    part = span.forward(text.hidden[-1:], [Row(text.pages, 59, 1)], 1, 3)
    assert error(part, exact.forward(text.hidden[-1:], [Row(text.pages, 59, 1)], 1, 3)) < OWN[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("company", [2, 5, 8, 17, 33, 63])
def test_a_row_hardly_notices_its_company(spans, kind, company) -> None:
    """Kernels differ with the number of rows, and so does rounding; nothing else may."""
    span = spans(kind)
    lengths = [1 + (7 * index) % (PAGE_TOKENS - 1) for index in range(company)]
    hidden = [states(length + 1, span.spec.hidden_size, index) for index, length in enumerate(lengths)]
    pages = random.Random(company).sample(range(PAGES), company)
    for held, page in zip(hidden, pages, strict=True):
        span.forward(held[:-1], [Row([page], 0, len(held) - 1)])
    rows = [Row([page], length, 1) for page, length in zip(pages, lengths, strict=True)]
    alone = torch.cat([span.forward(held[-1:], [row]) for held, row in zip(hidden, rows, strict=True)]).float().cpu()
    together = torch.cat([held[-1:] for held in hidden])
    for _ in range(5):  # eagerly first, then by a graph
        poison_free(span)
        assert error(span.forward(together, rows), alone) < 0.015


def test_a_step_again_gives_the_same_answer(spans) -> None:
    span = spans("none")
    (text,) = texts_of(span, [40])
    span.forward(text.hidden[:39], [Row(text.pages, 0, 39)])
    rows, last = [Row(text.pages, 39, 1)], text.hidden[39:]
    for _ in range(4):
        first = span.forward(last, rows)
    span.forward(last, [Row(text.pages, 5, 1)])  # another position of the same size of step
    span.forward(text.hidden[5:39], [Row(text.pages, 5, 34)])
    assert error(span.forward(last, rows), first.float().cpu()) < 0.01


def test_an_answer_is_not_overwritten_by_the_next_step(spans) -> None:
    span = spans("none")
    texts = texts_of(span, [8, 8])
    for text in texts:
        span.forward(text.hidden[:7], [Row(text.pages, 0, 7)])
    for _ in range(4):
        first = span.forward(texts[0].hidden[7:], [Row(texts[0].pages, 7, 1)])
    copy = first.clone()
    span.forward(texts[1].hidden[7:], [Row(texts[1].pages, 7, 1)])
    assert torch.equal(first, copy)


def test_pages_saved_restored_and_copied_hold_what_they_held(spans) -> None:
    span = spans("none")
    (text,) = texts_of(span, [40])
    span.forward(text.hidden[:39], [Row(text.pages, 0, 39)])
    expected = span.forward(text.hidden[39:], [Row(text.pages, 39, 1)])
    saved = span.kv.save(text.pages)
    poison_pages(span)
    others = [page for page in range(PAGES) if page not in text.pages][: 2 * len(text.pages)]
    moved, copied = others[: len(text.pages)], others[len(text.pages) :]
    span.kv.restore(saved, moved)
    span.kv.copy(moved, copied)
    for pages in (moved, copied):
        assert torch.equal(span.forward(text.hidden[39:], [Row(pages, 39, 1)]), expected)


async def test_a_full_device_is_named_and_the_engine_lives_on(large) -> None:
    span = load_span(large, range(N_BLOCKS), SpanOptions(kv_pages=2048, device="cuda", dtype=torch.bfloat16))
    engine = DeviceEngine(span, PAGE_TOKENS)
    try:
        small, huge = piece(states(4, 256, 1), range(1)), piece(states(32000, 256, 2), range(2000))
        (before,) = await engine.run([small])
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
        ballast = rest_of_the_device()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (24 << 20)) / total)
        with pytest.raises(EngineFault, match=r"(?i)memory"):
            await engine.run([huge])
        (after,) = await engine.run([small])
        assert bytes(after.payload) == bytes(before.payload)
        torch.cuda.set_per_process_memory_fraction(1.0)
        ballast.clear()
        (output,) = await engine.run([huge])
        assert output.finite
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        engine.close()


@pytest.mark.alone
def test_on_a_full_device_graphs_give_way_to_steps(large) -> None:
    from shoal.blocks.graphs import STEPS_BEFORE_RETRY  # needs Triton

    span = cuda_span(large)
    for block in span.blocks:
        for numbers, _ in span.kv.block(block).pairs:
            numbers.zero_()

    def run(count: int) -> torch.Tensor:
        rows = [Row((index,), 3, 1) for index in range(count)]
        return span.forward(states(count, 256, count), rows).float().cpu()

    counts = (1, 2, 4, 8, 12, 16, 24, 32)
    wanted = {count: run(count) for count in counts}
    for count in counts[:4]:
        run(count)
    assert len(span._steps.graphs) == 4
    torch.cuda.empty_cache()
    ballast = rest_of_the_device()
    for count in counts[4:] + counts:
        assert error(run(count), wanted[count]) < 0.02
    assert len(span._steps.graphs) == 0
    ballast.clear()
    torch.cuda.empty_cache()
    for _ in range(STEPS_BEFORE_RETRY):
        run(1)
    assert len(span._steps.graphs) == 1


def rest_of_the_device() -> list[torch.Tensor]:
    """All that the allocator holds and nobody uses, such as what spans of other tests have left."""
    ballast, size = [], 1 << 30
    while size >= 1 << 20:
        try:
            ballast.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return ballast


def piece(hidden: torch.Tensor, pages: range) -> Piece:
    return Piece(
        payload=bytearray(hidden.view(torch.uint8).numpy().tobytes()), dtype="float32", offset=0, count=len(hidden),
        pages=tuple(pages), position=0, start=0, stop=N_BLOCKS, keep_rows=1,
    )  # fmt: skip


def any_step(draw: random.Random) -> list[Row]:
    """Up to 80 decodes beside up to three chunks of prompts, each with its own context; often a small step."""
    pages = tuple(draw.sample(range(PAGES), PAGES))
    decodes = draw.choice([0, 1, 2, 3, 5, draw.randrange(80)])
    chunks = draw.randrange(decodes == 0, 4)
    rows = [Row(pages, draw.randrange(PAGES * PAGE_TOKENS), 1) for _ in range(decodes)]
    for _ in range(chunks):
        count = draw.choice([1, 15, 16, draw.randrange(1, 300), draw.randrange(1, 600)])
        rows.append(Row(pages, draw.randrange(PAGES * PAGE_TOKENS - count), count))
    return rows


@pytest.mark.parametrize(
    ("variant", "kind", "kv_dtype", "width"),
    [
        ("llama", "none", "auto", 320),
        ("llama", "none", "int8", 384),
        pytest.param("llama", "nf4", "auto", 448, marks=needs_bitsandbytes),
        pytest.param("qwen3-moe", "nf4", "auto", 576, marks=needs_bitsandbytes),
    ],
)
def test_who_is_served_after_the_warm_up_waits_for_no_compiler(variant, kind, kv_dtype, width, monkeypatch) -> None:
    """Of a model that no other test has, whose kernels this process has not met before."""
    from shoal.blocks.kernels.tuner import Tuner
    from triton import knobs

    experts = {"moe_intermediate_size": 128} if "moe" in variant else {}
    span = cuda_span(checkpoint(variant, hidden_size=width, head_dim=64, **experts), kind, kv_dtype=kv_dtype)
    assert span.fused
    waited = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda **of: waited.append(of["src"].name))
    measure = Tuner._time
    monkeypatch.setattr(Tuner, "_time", lambda self, name, run: waited.append(name) or measure(self, name, run))
    span.warm_up(16, 1024, 2048)
    assert waited
    waited.clear()
    draw = random.Random(4)
    for _ in range(300):
        rows = any_step(draw)
        span.forward(states(sum(row.count for row in rows), width, 0), rows)
    assert waited == []
