"""One accepted step on its way through the engine: data, and how a slice of it becomes an engine piece."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.blocks.choices import EACH_ITS_OWN
from shoal.peer.engine import Piece

if TYPE_CHECKING:
    from shoal.peer.engine import Output
    from shoal.peer.lease import Lease, Run
    from shoal.peer.scheduler import Slice


@dataclass(slots=True)
class Job:
    """One accepted step or replay on its way through the engine."""

    lease: Lease
    run: Run
    arrived: float
    queue_s: float | None = None
    compute_s: float = 0.0
    parts: list[Output] = field(default_factory=list)


def cut(job: Job, piece: Slice) -> Piece:
    """The engine's part of a job that the scheduler chose."""
    hidden, lease = job.run.hidden, job.lease
    first_kept = hidden.count - job.run.keep_rows
    end = piece.offset + piece.count
    alone = hidden.replay and not hidden.length  # tokens that came one by one
    return Piece(
        payload=hidden.payload, dtype=hidden.dtype, offset=piece.offset, count=piece.count, pages=lease.holding.pages,
        position=hidden.position + piece.offset, start=lease.start, stop=lease.stop,
        keep_rows=max(0, end - max(piece.offset, first_kept)),
        length=EACH_ITS_OWN if alone else hidden.length or (hidden.position + hidden.count if hidden.count > 1 else 0),
    )  # fmt: skip
