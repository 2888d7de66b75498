"""Which peers made an answer and how it went, for the `shoal` object and the `x-shoal-*` headers. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.serving import Answer


def provenance(answers: Sequence[Answer]) -> dict[str, object]:
    """The `shoal` object: over all answers, then each one's route. Seconds; `total_s` until now."""
    return {
        "peers": _peers(answers),
        "repairs": sum(answer.repairs for answer in answers),
        "moves": sum(answer.moves for answer in answers),
        "cached_tokens": sum(answer.cached_tokens for answer in answers),
        "ttft_s": round(_ttft_s(answers), 6),
        "total_s": round(_total_s(answers), 6),
        "answers": [_one(index, answer) for index, answer in enumerate(answers)],
    }


def headers(answers: Sequence[Answer]) -> dict[str, str]:
    """The same in short, of the moment when the headers are sent: of a stream, the first token's."""
    route = answers[0].route if answers else ()
    return {
        "x-shoal-peers": ", ".join(_peers(answers)),
        "x-shoal-blocks": ", ".join(f"{hop.start}:{hop.stop}" for hop in route),
        "x-shoal-repairs": str(sum(answer.repairs for answer in answers)),
        "x-shoal-cached-tokens": str(sum(answer.cached_tokens for answer in answers)),
        "x-shoal-ttft-ms": f"{_ttft_s(answers) * 1e3:.1f}",
        "x-shoal-total-ms": f"{_total_s(answers) * 1e3:.1f}",
    }


def _peers(answers: Sequence[Answer]) -> list[str]:
    return list(dict.fromkeys(hop.peer_id for answer in answers for hop in answer.route))


def _ttft_s(answers: Sequence[Answer]) -> float:
    return min((answer.ttft_s for answer in answers if answer.pieces), default=0.0)


def _total_s(answers: Sequence[Answer]) -> float:
    return time.perf_counter() - min(answer.started_at for answer in answers) if answers else 0.0


def _one(index: int, answer: Answer) -> dict[str, object]:
    return {
        "index": index,
        "route": [{"peer": hop.peer_id, "blocks": [hop.start, hop.stop]} for hop in answer.route],
        "repairs": answer.repairs,
        "moves": answer.moves,
        "cached_tokens": answer.cached_tokens,
        "ttft_s": round(answer.ttft_s, 6),
        "tokens_per_s": round(answer.tokens_per_s, 3),
    }
