"""Owns how a few tokens go through a span on the CPU in one call of our own C (step.c); must not know leases.

A processor that reads its weights from memory for every token has no time to lose on calls and on what operations do
beside: with 8 blocks of hidden size 512 and two threads, a token takes half of what it takes in torch's operations
(cpu_fp32_short_speedup of scripts/bench engine).
"""

from __future__ import annotations

import ctypes
import logging
from array import array
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.cpu.compiled import CompileError, library
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.packed import can_pack
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shoal.blocks.batch import Batch, Row
    from shoal.blocks.kv import KVPool
    from shoal.blocks.parts import Parts
    from shoal.blocks.structure import RMSNorm

_log = logging.getLogger(__name__)

MOST_TOKENS = 64  # of a step: beyond, the order in which a library of matrices goes over them pays
MOST_PAIRS = 12_000  # of a token and a key, in rows of several tokens: beyond, torch's attention is the quicker one
SHARED_WEIGHTS = 1 << 18  # of a matrix: with fewer, threads would mostly wait for one another
_OPTIONS = {torch.float32: (), torch.bfloat16: ("-DBF16",)}
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Block(ctypes.Structure):
    """step.c's Block."""

    _fields_ = (
        *((name, _P) for name in ("qkv", "o", "gate_up", "down")),
        *((name, _P) for name in ("qkv_bias", "o_bias", "gate_up_bias", "down_bias")),
        ("norms", _P * 4), ("q_norm", _P), ("k_norm", _P), ("keys", _P), ("values", _P),
        ("eps", _F * 4), ("q_eps", _F), ("k_eps", _F), ("scale", _F), ("softcap", _F), ("residual", _F),
        *((name, _I) for name in (
            "hidden", "inner", "heads", "kv_heads", "head_dim", "rotary_dim", "q_norm_width", "k_norm_width", "window",
            "slots", "activation", "rotation",
        )),
    )  # fmt: skip


class Token(ctypes.Structure):
    """step.c's Token."""

    _fields_ = (("pages", _P), ("position", _I), ("together", _I))


def short_library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """step.c for weights of `dtype`; None where it cannot be had, or where torch's operations are as good: a processor
    that multiplies bfloat16 by itself does so best in the order in which oneDNN keeps a matrix."""
    if dtype not in _OPTIONS or (dtype == torch.bfloat16 and can_pack(dtype)):
        return None
    try:
        return declared(library("step.c", *_OPTIONS[dtype]))
    except CompileError as error:
        _log.info("Short steps on this CPU take torch's operations, which are slower: %s.", error)
        return None


def fits(found: ctypes.CDLL, sizes: Iterable[int]) -> bool:
    """Whether step.c sums over `sizes` numbers: they must be whole vectors of this processor."""
    return all(size % found.lanes() == 0 for size in sizes)


class ShortLinear(nn.Linear):
    """A linear layer `[T, in] -> [T, out]`, made of a loaded one; in our C where T is small."""

    def __init__(self, linear: nn.Linear, found: ctypes.CDLL) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._product, self._threads = found.product, _threads(linear.weight)
        self._added = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden @ weight.T + bias`, in the weight's dtype."""
        if hidden.dim() != 2 or len(hidden) > MOST_TOKENS:
            return super().forward(hidden)
        given, out = hidden.float().contiguous(), torch.empty(len(hidden), self.out_features)
        self._product(
            self.weight.data_ptr(), None if self._added is None else self._added.data_ptr(), self.out_features,
            self.in_features, given.data_ptr(), out.data_ptr(), len(hidden), self._threads,
        )  # fmt: skip
        return out.to(hidden.dtype)


class ShortSteps:
    """Steps of up to `MOST_TOKENS` tokens through a span whose matrices are all `ShortLinear`s."""

    def __init__(self, parts: Parts, kv: KVPool, found: ctypes.CDLL) -> None:
        self._step, self._room, self._together = found.step, found.room, found.together()
        self._first, self._dtype = kv.blocks.start, kv.dtype
        self._parts, self._kv, self._kept = parts, kv, list[torch.Tensor]()  # step.c knows where all of it lies
        self.names = parts.rotary.names if parts.rotary is not None else ()
        self._blocks = (_Block * len(kv.blocks))(*(self._described(index, kv) for index in kv.blocks))
        self._at = ctypes.addressof(self._blocks)
        self._rotations = (_P * max(1, len(self.names)))()
        self._memory, self._free = torch.empty(0), 0
        self._threads = max(_threads(matrix.weight) for matrix in _matrices(parts.layers[self._first]))

    def takes(self, batch: Batch) -> bool:
        """Whether `forward` is the quicker way for a batch."""
        pairs = sum(row.count * row.end for row in batch.rows if row.count > 1)
        return batch.n_tokens <= MOST_TOKENS and pairs <= MOST_PAIRS

    def forward(self, state: torch.Tensor, run: range, batch: Batch, turns: dict[str, torch.Tensor]) -> torch.Tensor:
        """`state [T, H]` of the batch's rows through the blocks of `run`, with the rotations of `Rotary.turns`."""
        hidden = state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        tokens, pages = _tokens(batch.rows, batch.n_tokens, self._together)
        context = max(len(held) for held in pages) * PAGE_TOKENS
        self.call(
            run, tokens, batch.n_tokens, context, [turns[name].data_ptr() for name in self.names], hidden.data_ptr()
        )
        return hidden.to(self._dtype)

    def call(
        self, run: range, tokens: ctypes.Array[Token], count: int, context: int, rotations: Sequence[int], hidden: int
    ) -> bool:
        """step.c over the float32 `[count, hidden]` at the address `hidden`, in place; `rotations` are addresses, too,
        in the order of `names`. Whether all of the result is finite."""
        first = self._at + (run.start - self._first) * ctypes.sizeof(_Block)
        size = self._room(first, count, self._threads, context)
        if self._free < size:
            self._memory, self._free = torch.empty(size), size
        for place, address in enumerate(rotations):
            self._rotations[place] = address
        found = self._step(
            first, len(run), tokens, count, self._rotations, PAGE_TOKENS, self._threads, context, hidden,
            self._memory.data_ptr(),
        )  # fmt: skip
        return bool(found)

    def _described(self, index: int, kv: KVPool) -> _Block:
        block: Any = self._parts.layers[index]
        asked, held, matrices = block.attention, kv.block(index), _matrices(block)
        name = "" if "" in self.names else self._parts.spec.layer_types[index]
        return _Block(
            *(matrix.weight.data_ptr() for matrix in matrices),
            *(self._floats(matrix.bias) for matrix in matrices),
            (_P * 4)(*map(self._norm, block.norms)), self._norm(block.q_norm), self._norm(block.k_norm),
            held.keys.data_ptr(), held.values.data_ptr(),
            (_F * 4)(*map(_eps, block.norms)), _eps(block.q_norm), _eps(block.k_norm),
            asked.scale, asked.softcap or 0.0, block.residual_scale,
            self._parts.spec.hidden_size, block.down.in_features, asked.heads, asked.kv_heads, asked.head_dim,
            asked.rotary_dim, _width(block.q_norm), _width(block.k_norm), asked.window or 0, len(held.keys),
            _ACTIVATIONS[block.activation], self.names.index(name),
        )  # fmt: skip

    def _floats(self, numbers: torch.Tensor | None) -> int | None:
        if numbers is None:
            return None
        self._kept.append(numbers.detach().float().contiguous())
        return self._kept[-1].data_ptr()

    def _norm(self, norm: RMSNorm | None) -> int | None:
        return None if norm is None else self._floats(norm.weight)


def _tokens(rows: Sequence[Row], count: int, together: int) -> tuple[ctypes.Array[Token], list[array[int]]]:
    """step.c's tokens, of which so many attend together, and the pages to which they point."""
    pages = [array("i", row.pages) for row in rows]
    tokens, at = (Token * count)(), 0
    for row, held in zip(rows, pages, strict=True):
        place, _ = held.buffer_info()
        for index in range(row.count):
            leads = min(together, row.count - index) if index % together == 0 else 0
            tokens[at] = Token(place, row.position + index, leads)
            at += 1
    return tokens, pages


def _threads(weight: torch.Tensor) -> int:
    return torch.get_num_threads() if weight.numel() >= SHARED_WEIGHTS else 1


def _eps(norm: RMSNorm | None) -> float:
    return 0.0 if norm is None else norm.eps


def _width(norm: RMSNorm | None) -> int:
    return 1 if norm is None else norm.weight.numel()


def _matrices(block: Any) -> tuple[ShortLinear, ...]:
    """Of a `FusedBlock` that was made for short steps."""
    return block.qkv, block.o, block.gate_up, block.down


def declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """step.c, with the types of its functions."""
    found.lanes.restype = found.together.restype = found.room.restype = _I
    found.room.argtypes = [_P, _I, _I, _I]
    found.step.argtypes = [_P, _I, _P, _I, _P, _I, _I, _I, _P, _P]
    found.product.argtypes = [_P, _P, _I, _I, _P, _P, _I, _I]
    found.step.restype, found.product.restype = _I, None
    return found
