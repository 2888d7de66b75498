"""How fast this machine runs its span: measured at start, kept in a small file, never typed in."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from shoal.blocks.formats import row_bytes
from shoal.blocks.whole_file import write_whole
from shoal.peer.engine import Piece
from shoal.routing.knowledge import CHUNK_MEASURED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from shoal.peer.engine import Engine

logger = logging.getLogger("shoal.peer")

DECODE_STEPS = 12
WARM_UP = 3
# While a peer serves, nothing corrects what it announces, and where nobody tries it, nobody finds out. So a start on a
# busy machine, or a driver since replaced, is to mislead the swarm for a day, and starts in a row still measure once.
MAX_AGE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """Seconds per token and block: one decode token alone, and one token of a prefill chunk."""

    decode_s: float
    prefill_s: float


async def measure(engine: Engine, dtype: str) -> Throughput:
    """Run decode steps and prefill chunks on pages that nobody holds yet; medians, so that one hiccup does no harm."""
    blocks = engine.stop - engine.start
    tokens = min(CHUNK_MEASURED, engine.n_pages * engine.page_tokens)
    decode = await _median(engine, DECODE_STEPS, lambda step: _piece(engine, dtype, 1, step % tokens))
    prefill = await _median(engine, 3, lambda _step: _piece(engine, dtype, tokens, 0))
    return Throughput(decode / blocks, prefill / blocks / tokens)


async def _warm_up(engine: Engine, dtype: str) -> None:
    """A chunk and a token: the first user must not pay for what a device loads at its first forward."""
    await engine.run([_piece(engine, dtype, min(CHUNK_MEASURED, engine.n_pages * engine.page_tokens), 0)])
    await engine.run([_piece(engine, dtype, 1, 0)])


async def _median(engine: Engine, count: int, piece: Callable[[int], Piece]) -> float:
    times = []
    for step in range(WARM_UP + count):
        started = time.perf_counter()
        await engine.run([piece(step)])
        times.append(time.perf_counter() - started)
    return max(sorted(times[WARM_UP:])[count // 2], 1e-6)


def _piece(engine: Engine, dtype: str, count: int, position: int) -> Piece:
    payload = bytearray(count * row_bytes(dtype, engine.width))
    pages = tuple(range(-(-(position + count) // engine.page_tokens)))
    return Piece(
        payload=payload, dtype=dtype, offset=0, count=count, pages=pages, position=position, start=engine.start,
        stop=engine.stop, keep_rows=1,
    )  # fmt: skip


async def measured(engine: Engine, dtype: str, facts: Mapping[str, str], cache: Path) -> tuple[Throughput, bool]:
    """Cached figures of a machine and span described by `facts`, up to a day old, else new ones; True if from the
    cache."""
    path = cache / f"{hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:24]}.json"
    if (known := _read(path)) is not None:
        await _warm_up(engine, dtype)
        return known, True
    throughput = await measure(engine, dtype)
    _store(path, {**asdict(throughput), "measured_at": time.time(), "facts": dict(facts)})
    return throughput, False


def _read(path: Path) -> Throughput | None:
    """What the file says; None if it is missing, damaged, too old, or from a time that has yet to come."""
    try:
        stored = json.loads(path.read_text())
        known = Throughput(float(stored["decode_s"]), float(stored["prefill_s"]))
        age_s = time.time() - float(stored["measured_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if 0.0 <= age_s <= MAX_AGE_S else None


def _store(path: Path, content: Mapping[str, object]) -> None:
    """Keep the figures; a disk that takes no more costs the next start's measuring, not this start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content).encode())
    except OSError as error:
        logger.info("the measured speed is not kept, and the next start measures again: %s", error)
