"""Blocks that stay in host memory and are copied to the device one ahead of their turn; knows no span and no KV.

Each streamed block has one master copy, a single run of bytes, in page-locked host memory. Two buffers on the device
take the blocks in turns, and a block's tensors lie in its buffer for good: bringing it is one copy and changes no
address. Computing a block and copying the next overlap, on two CUDA streams.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from shoal.blocks.errors import NoMemory
from shoal.blocks.held import held_tensors

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn

BUFFERS = 2
_ALIGN = 256  # bytes; kernels expect what torch's own allocator would give them
_SMALL_BYTES = 16 * 1024  # norms and code tables stay on the device: little to gain, and blocks may share them


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in its block's bytes; `size` and `stride` count elements."""

    tensor: torch.Tensor
    offset_bytes: int
    size: torch.Size
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Block:
    """A streamed block: its bytes in host memory, where its tensors lie in them, and which buffer is its own."""

    master: torch.Tensor
    places: tuple[_Place, ...]
    buffer: int


def spread(blocks: range, count: int) -> list[int]:
    """`count` of these blocks, evenly spread: resident ones compute while the next streamed one is copied, and any part
    of the span costs a token about its share of the whole."""
    return [blocks[(number + 1) * len(blocks) // count - 1] for number in range(count)]


class Streamed(dict[int, "nn.Module"]):
    """A span's blocks by index. Those in `streamed` leave the device when they are set, and come back when they are
    asked for: best one after the other, round and round; any other order works and waits for its copies."""

    def __init__(self, device: torch.device, streamed: Collection[int]) -> None:
        super().__init__()
        self._device, self._streamed = device, frozenset(streamed)
        self._blocks: dict[int, _Block] = {}
        self._last: int | None = None
        self._after: dict[int, int] = {}
        self._buffers: list[_Buffer] = []
        on_gpu = device.type == "cuda" and len(streamed) > 0
        self._copies = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def __setitem__(self, index: int, module: nn.Module) -> None:
        """Take a loaded block. All that a streamed one holds goes to host memory (see `held_tensors`), but for what is
        small.

        Raises NoMemory if the system gives no such memory; ValueError for tensors that show no storage (oneDNN's layout
        on a CPU), and once streamed blocks are in use.
        """
        super().__setitem__(index, module)
        if index in self._streamed:
            self._take(index, module)

    def __getitem__(self, index: int) -> nn.Module:
        return self.layer(index)

    def layer(self, index: int) -> nn.Module:
        """The block, on the device by the time that work issued after this call runs; the next one is on its way."""
        if index in self._blocks:
            if not self._buffers:
                self._bind()
            self._last = index
            self._bring(index).wait()
            if self._buffer(self._after[index]) is not self._buffer(index):
                self._bring(self._after[index])
        elif self._last is not None:
            self._bring_two(self._after[self._last])
        return super().__getitem__(index)

    def _bring_two(self, first: int) -> None:
        """While a resident block runs nobody needs what the buffers hold: fill both with what comes next."""
        self._bring(first)
        if self._buffer(second := self._after[first]) is not self._buffer(first):
            self._bring(second)

    def _bring(self, index: int) -> _Buffer:
        buffer = self._buffer(index)
        buffer.bring(index, self._blocks[index].master, self._copies)
        return buffer

    def _buffer(self, index: int) -> _Buffer:
        return self._buffers[self._blocks[index].buffer]

    @property
    def host_bytes(self) -> int:
        """Bytes that the streamed blocks take in host memory."""
        return sum(block.master.nbytes for block in self._blocks.values())

    def _take(self, index: int, module: nn.Module) -> None:
        if self._buffers:
            raise ValueError("streamed blocks are in use: no other can be added")
        places, n_bytes = _places(module)
        # Made on the CPU and page-locked in place: torch's own pinned allocator rounds up to a power of two.
        master = torch.empty(n_bytes, dtype=torch.uint8)
        if self._copies is not None:
            _lock(master)
        for place in places:
            _view(place, master).copy_(place.tensor)
            place.tensor.data = torch.empty(0, dtype=place.tensor.dtype, device=self._device)
        self._blocks[index] = _Block(master, places, len(self._blocks) % BUFFERS)

    def _bind(self) -> None:
        """Two buffers as large as the largest block, and every tensor laid into its block's one."""
        largest = max(block.master.nbytes for block in self._blocks.values())
        with torch.inference_mode(mode=False):
            self._buffers = [_Buffer(largest, self._device) for _ in range(min(BUFFERS, len(self._blocks)))]
            for block in self._blocks.values():
                for place in block.places:
                    place.tensor.data = _view(place, self._buffers[block.buffer].bytes)
        order = list(self._blocks)
        self._after = dict(zip(order, [*order[1:], order[0]], strict=True))


class _Buffer:
    """Device memory for one block at a time."""

    def __init__(self, n_bytes: int, device: torch.device) -> None:
        self.bytes = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        self._holds: int | None = None
        self._device = device
        on_gpu = device.type == "cuda"
        self._filled = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def bring(self, index: int, master: torch.Tensor, copies: torch.cuda.Stream | None) -> None:
        """Copy a block here, unless it is here, after all work issued so far: that may use what is here now."""
        if self._holds == index:
            return
        self._holds = index
        if copies is None or self._filled is None:
            self.bytes[: master.nbytes].copy_(master)
            return
        copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(copies):
            self.bytes[: master.nbytes].copy_(master, non_blocking=True)
        self._filled.record(copies)

    def wait(self) -> None:
        """Let work issued from now on wait for the copy."""
        if self._filled is not None:
            torch.cuda.current_stream(self._device).wait_event(self._filled)


def _places(module: nn.Module) -> tuple[tuple[_Place, ...], int]:
    """A place for each tensor of a module, and the bytes in all; tensors that share memory go on sharing it."""
    starts: dict[int, int] = {}
    end = 0
    places = []
    for tensor in held_tensors(module):
        if tensor.layout != torch.strided:
            raise ValueError("a block with weights in oneDNN's layout cannot be streamed")
        storage = tensor.untyped_storage()
        if storage.nbytes() <= _SMALL_BYTES:
            continue
        if storage.data_ptr() not in starts:
            starts[storage.data_ptr()] = end
            end += -(-storage.nbytes() // _ALIGN) * _ALIGN
        offset = starts[storage.data_ptr()] + int(tensor.storage_offset()) * tensor.element_size()
        places.append(_Place(tensor, offset, tensor.size(), tensor.stride()))
    return tuple(places), end


def _view(place: _Place, memory: torch.Tensor) -> torch.Tensor:
    """The tensor's part of a block's bytes, in its own type and shape."""
    dtype = place.tensor.dtype
    return memory.view(dtype).as_strided(place.size, place.stride, place.offset_bytes // dtype.itemsize)


def _lock(memory: torch.Tensor) -> None:
    """Page-lock host memory until it is let go."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)):
        raise NoMemory(f"The system locks no {memory.nbytes / 2**30:.1f} GiB more of host memory for a streamed block.")
    weakref.finalize(memory, runtime.cudaHostUnregister, memory.data_ptr())
