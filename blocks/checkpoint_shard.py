"""One safetensors file: its checked header and memory-mapped tensors; knows no model, index or hub.

The format (8 bytes of header length, a JSON header, then the tensors' bytes) is that of the `safetensors` library. It
is parsed here rather than there so that exactly the pages of the wanted tensors are paged in, and so that every way in
which a file can be malformed ends in one sentence.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.errors import CheckpointError, UnsafeCheckpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_DIMS = 16
SMALL_BYTES = 64 * 1024  # copied out: a norm that outlives the loading would keep the whole file mapped
_PICKLE_MAGICS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `offset` and `n_bytes` count bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Shard:
    """A safetensors file whose header was read and found sound; `read` maps tensors out of it."""

    path: Path
    entries: dict[str, Entry]
    header: bytes = field(repr=False)
    size_bytes: int
    _maps: list[mmap.mmap] = field(default_factory=list, repr=False, compare=False)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors that lie on private pages of the mapped file: bytes come from disk when touched, writes stay here."""
        entries = {name: self._entry(name) for name in names}
        if not entries:
            return {}
        mapped = self._map()
        for entry in entries.values():
            _will_need(mapped, entry)
        return {name: _tensor(mapped, entry) for name, entry in entries.items()}

    def n_bytes(self, names: Iterable[str]) -> int:
        return sum(self._entry(name).n_bytes for name in names)

    def _entry(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise CheckpointError(
                f"Tensor {name!r} is missing from {self.path.name}, where the index has it: fetch the checkpoint again."
            ) from None

    def _map(self) -> mmap.mmap:
        if not self._maps:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), self.size_bytes, access=mmap.ACCESS_COPY)
            mapped.madvise(mmap.MADV_RANDOM)  # no read-ahead into tensors nobody asked for
            self._maps.append(mapped)
        return self._maps[0]


def open_shard(path: Path) -> Shard:
    """Read and check the header of a safetensors file.

    Raises CheckpointError if it is damaged or cut short, UnsafeCheckpoint if it is a pickle under a false name.
    """
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            start = file.read(8)
            header = file.read(_header_bytes(path, start, size))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path.name}: {error.strerror}.") from error
    entries = _entries(path, _parse(path, header), size - 8 - len(header))
    return Shard(path, {name: _shift(entry, 8 + len(header)) for name, entry in entries.items()}, header, size)


def _header_bytes(path: Path, start: bytes, size: int) -> int:
    if start.startswith(_PICKLE_MAGICS) and struct.unpack("<Q", start.ljust(8, b"\0"))[0] > MAX_HEADER_BYTES:
        raise UnsafeCheckpoint(
            f"{path.name} is a pickle, not safetensors, and loading it could run code: convert it to safetensors."
        )
    if len(start) < 8:
        raise _damaged(path, "it is shorter than a safetensors header")
    n_bytes = int(struct.unpack("<Q", start)[0])
    if not 2 <= n_bytes <= min(MAX_HEADER_BYTES, size - 8):
        raise _damaged(path, f"its header claims {n_bytes} bytes, the file has {size}")
    return n_bytes


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not valid JSON") from error
    if not isinstance(parsed, dict):
        raise _damaged(path, "its header is not a JSON object")
    parsed.pop("__metadata__", None)
    return parsed


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate names")
    return found


def _entries(path: Path, header: dict[str, Any], data_bytes: int) -> dict[str, Entry]:
    """Check that the tensors tile the data exactly, as the format demands: no gap, no overlap, nothing past the end."""
    entries = {name: _checked(path, name, fields) for name, fields in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].n_bytes)):
        if entry.offset != end:
            raise _damaged(path, f"the bytes of {name!r} overlap another tensor's or leave a gap")
        end += entry.n_bytes
    if end != data_bytes:
        raise _damaged(path, f"its header describes {end} bytes of tensors, the file has {data_bytes}")
    return entries


def _checked(path: Path, name: str, fields: Any) -> Entry:
    try:
        dtype, shape, (begin, end) = DTYPES[fields["dtype"]], fields["shape"], fields["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"the header of {name!r} lacks a known dtype, a shape or offsets") from error
    if not (isinstance(shape, list) and len(shape) <= MAX_DIMS and all(map(_is_count, (*shape, begin, end)))):
        raise _damaged(path, f"the shape or offsets of {name!r} are not counts")
    n_bytes = math.prod(shape) * dtype.itemsize
    if end - begin != n_bytes:
        raise _damaged(path, f"{name!r} of shape {shape} needs {n_bytes} bytes and is given {end - begin}")
    return Entry(dtype, tuple(shape), begin, n_bytes)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _shift(entry: Entry, by: int) -> Entry:
    return Entry(entry.dtype, entry.shape, entry.offset + by, entry.n_bytes)


def _will_need(mapped: mmap.mmap, entry: Entry) -> None:
    if not entry.n_bytes:
        return
    start = entry.offset - entry.offset % mmap.PAGESIZE
    mapped.madvise(mmap.MADV_WILLNEED, start, entry.offset + entry.n_bytes - start)


def _tensor(mapped: mmap.mmap, entry: Entry) -> torch.Tensor:
    if not entry.n_bytes:
        return torch.empty(entry.shape, dtype=entry.dtype)
    raw = torch.frombuffer(mapped, dtype=torch.uint8, count=entry.n_bytes, offset=entry.offset)
    if entry.n_bytes <= SMALL_BYTES or entry.offset % entry.dtype.itemsize:
        raw = raw.clone()  # kernels expect tensors aligned to their elements
    return raw.view(entry.dtype).view(entry.shape)


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is not a sound safetensors file: {why}; fetch it again.")
