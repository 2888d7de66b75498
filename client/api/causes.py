"""What an error of the client's means to who asked over HTTP; decides on a status and when to try again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.blocks.errors import BlocksError, PromptTooLong
from shoal.client.api.errors import ApiError
from shoal.client.generation import GenerationError
from shoal.client.grammar import GrammarError
from shoal.client.sampling_options import SamplingError
from shoal.dht.errors import DhtError
from shoal.peer.errors import NoRouteError, ShoalError
from shoal.routing.words import name_blocks

if TYPE_CHECKING:
    from shoal.routing.view import View

MISSING_RETRY_S = 5.0
BUSY_RETRY_S = 2.0


def api_error(error: BaseException, view: View) -> ApiError | None:
    """The answer for an error; None for a bug. `view` tells whether the swarm lacks blocks or is only busy."""
    if isinstance(error, BaseExceptionGroup):
        found = [api_error(inner, view) for inner in error.exceptions]
        return None if None in found else found[0]
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLong):
        return ApiError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, (GenerationError, GrammarError)):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, SamplingError):  # while it runs: options were checked before
        return ApiError(503, str(error), code="broken_answer", retry_after_s=BUSY_RETRY_S)
    if isinstance(error, NoRouteError):
        return _no_route(error, view)
    if isinstance(error, (ShoalError, DhtError)):
        return ApiError(
            503, f"The swarm could not finish this: {error}.", code="swarm_error", retry_after_s=BUSY_RETRY_S
        )
    return ApiError(400, str(error)) if isinstance(error, BlocksError) else None


def missing_blocks(view: View) -> ApiError | None:
    """The answer while nobody serves some blocks."""
    if not (missing := view.missing()):
        return None
    verb = "is" if len(missing) == 1 else "are"
    text = f"{name_blocks(missing).capitalize()} of {view.n_blocks} {verb} served by nobody now: try again later."
    return ApiError(503, text, code="missing_blocks", retry_after_s=MISSING_RETRY_S)


def _no_route(error: NoRouteError, view: View) -> ApiError:
    """Blocks that nobody holds, or holders that are all full or failing."""
    if (missing := missing_blocks(view)) is not None:
        return missing
    return ApiError(429, f"The swarm is full: {error}", code="swarm_busy", retry_after_s=BUSY_RETRY_S)
