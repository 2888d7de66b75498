"""What a span computes, in the engine's benchmark: errors against fp32, effects of the batch, NaN from old memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from _engine_models import KINDS, Bench, Figures, RandomCheckpoint, Skipped, pages_of, release, tell
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, Span, SpanOptions, load_span

PROMPT, DECODED = 200, 6
COMPANY = (8, 32)
BLOCKS = 4

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """Fresh inputs `[PROMPT + DECODED, hidden]` in fp32, and shuffled pages for them and for the company's rows."""

    hidden: torch.Tensor
    pages: list[int]
    others: list[list[int]]

    @property
    def tokens(self) -> int:
        """Pages of the whole case, in tokens."""
        return (len(self.pages) + sum(map(len, self.others))) * PAGE_TOKENS


def errors(bench: Bench) -> Figures:
    """Relative errors of 4 blocks in bf16 (2 in a smoke test), weights and KV as each kind says.

    `error_KIND`: against fp32 of the weights before; `error_KIND_own`: against fp32 of the same weights after rounding;
    `batch_effect_KIND_N`: the same row alone and beside N - 1 others; `nan_KIND`: how many numbers are not finite,
    although all memory that nobody wrote holds NaN.
    """
    case = _case(bench)
    plain = _run(_reference(bench, case, None), case)
    found: Figures = {}
    for name in KINDS:
        tell(f"  {name} ...")
        found |= _kind(bench, case, plain, name)
        release(bench.device)
    return found


def _case(bench: Bench) -> Case:
    seed = int(torch.randint(1 << 30, (1,)))
    generator = torch.Generator().manual_seed(seed)
    tell(f"  inputs of seed {seed}")
    hidden = torch.randn(PROMPT + DECODED, bench.shape.hidden, generator=generator)
    each = pages_of(PROMPT + DECODED)
    order = torch.randperm(each * max(COMPANY), generator=generator).tolist()
    cut = [order[start : start + each] for start in range(0, len(order), each)]
    return Case(hidden.to(bench.device), cut[0], cut[1:])


def _kind(bench: Bench, case: Case, plain: torch.Tensor, name: str) -> Figures:
    change = _roundings()[KINDS[name][0]]
    own = plain if change is None else _run(_reference(bench, case, change), case)
    checkpoint = RandomCheckpoint(bench.shape, _blocks(bench), bench.device, torch.bfloat16)
    span = load_span(checkpoint, range(_blocks(bench)), bench.options(case.tokens, name, torch.bfloat16))
    _poison(span)
    out = _run(span, case)
    bad = int((~torch.isfinite(out)).sum())
    found = {f"error_{name}": _error(out, plain), f"error_{name}_own": _error(out, own), f"nan_{name}": float(bad)}
    for company in COMPANY:
        beside, bad = _in_company(span, case, company)
        found[f"batch_effect_{name}_{company}"] = _error(beside, out[-1:])
        found[f"nan_{name}"] += bad
    return found


def _blocks(bench: Bench) -> int:
    return bench.size(BLOCKS, 2)


def _reference(bench: Bench, case: Case, change: Change | None) -> Span:
    """fp32, through transformers' own layers."""
    checkpoint = RandomCheckpoint(bench.shape, _blocks(bench), bench.device, torch.bfloat16, change)
    options = SpanOptions(pages_of(case.tokens), device=str(bench.device), dtype=torch.float32, fused=False)
    return load_span(checkpoint, range(_blocks(bench)), options)


def _roundings() -> dict[str, Change | None]:
    """What each quantization makes of a matrix, by bitsandbytes' own functions."""
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise Skipped(f"bitsandbytes is not here: {error}") from error

    def nf4(weight: torch.Tensor) -> torch.Tensor:
        packed, state = functional.quantize_4bit(
            weight.float(), blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        return functional.dequantize_4bit(packed, state)

    def int8(weight: torch.Tensor) -> torch.Tensor:
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        return codes.float() * scales[:, None] / 127

    return {"none": None, "nf4": nf4, "int8": int8}


@torch.inference_mode()
def _run(span: Span, case: Case) -> torch.Tensor:
    """The prompt in two pieces, then token by token; every output in fp32 `[PROMPT + DECODED, hidden]`."""
    cuts = [0, PROMPT // 3, PROMPT, *range(PROMPT + 1, PROMPT + DECODED + 1)]
    out = []
    for start, stop in itertools.pairwise(cuts):
        _poison_free(span)
        out.append(span.forward(case.hidden[start:stop], [Row(case.pages, start, stop - start)]).float())
    return torch.cat(out)


@torch.inference_mode()
def _in_company(span: Span, case: Case, company: int) -> tuple[torch.Tensor, int]:
    """The last token again, among other sessions of other lengths; its output, and how many numbers are not finite."""
    last = len(case.hidden) - 1
    rows, hidden = [Row(case.pages, last, 1)], [case.hidden[last:]]
    for index, pages in enumerate(case.others[: company - 1]):
        length = 1 + (37 * index) % last
        span.forward(case.hidden[:length].flip(0), [Row(pages, 0, length)])
        rows.append(Row(pages, length, 1))
        hidden.append(case.hidden[index : index + 1])
    middle = company // 2
    rows[0], rows[middle], hidden[0], hidden[middle] = rows[middle], rows[0], hidden[middle], hidden[0]
    _poison_free(span)
    out = span.forward(torch.cat(hidden), rows).float()
    return out[middle : middle + 1], int((~torch.isfinite(out)).sum())


def _poison(span: Span) -> None:
    """Old sessions leave anything behind: NaN in every slot, or in every scale where the KV is whole numbers."""
    for block in span.blocks:
        for numbers, scale in span.kv.block(block).pairs:
            (numbers if scale is None else scale).fill_(torch.nan)


def _poison_free(span: Span) -> None:
    """NaN in the memory that the allocator hands out next: an output that is not wholly written shows."""
    if span.device.type == "cuda":
        for n_bytes in (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28):
            held = [torch.full((n_bytes // 4,), torch.nan, device=span.device) for _ in range(4)]
            del held


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())
