"""One completion from a prompt to its text: joins the swarm, generates, leaves; prints nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.blocks.ends import load_tokenizer
from shoal.client.generation import room
from shoal.client.options import Model
from shoal.client.serving import Ask, Serving
from shoal.client.swarm import join_swarm

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.client.generation import GenerationOptions
    from shoal.client.local import ClientModel
    from shoal.client.serving import Answer
    from shoal.dht.invite import Invite
    from shoal.routing.view import View


@dataclass(frozen=True)
class Request:
    """What to continue and how. Of `prompt` and `token_ids` one is given. `wait_s`: how long to wait for the swarm to
    cover all blocks. `background`: let others go first. `activations`: how hidden states travel, as
    `SessionOptions.codec`."""

    prompt: str | None
    token_ids: tuple[int, ...] | None
    options: GenerationOptions
    wait_s: float = 0.0
    background: bool = False
    activations: str = "auto"


@dataclass(frozen=True)
class Listener:
    """Who is told what while it happens."""

    on_text: Callable[[str], None]
    on_progress: Callable[[str], None]
    on_view: Callable[[View], None] | None = None


@dataclass
class Outcome:
    """A finished completion of `prompt_ids`."""

    prompt_ids: list[int]
    completion: Answer


def prompt_ids(model: ClientModel, request: Request) -> list[int]:
    """The request's prompt in token ids, checked against the model's context."""
    if request.token_ids is not None:
        ids = list(request.token_ids)
    else:
        tokenizer = model.tokenizer or load_tokenizer(model.checkpoint)  # says what is wrong with it
        ids = list(tokenizer(request.prompt or "")["input_ids"])
    room(model.ends.spec, ids, request.options.max_new_tokens)
    return ids


async def complete(model: ClientModel, invite: Invite, request: Request, listener: Listener) -> Outcome:
    """Join, wait until every block is held (`request.wait_s`), generate, leave.

    Errors: `JoinError`, `HostError`, `NoRouteError`, `SessionClosed`, and those of `generate`.
    """
    ids = prompt_ids(model, request)
    spec = model.ends.spec
    listener.on_progress("joining the swarm")
    async with join_swarm(invite, Model(spec.n_blocks, spec.hidden_size, model.checkpoint.revision)) as swarm:
        await swarm.wait_covered(request.wait_s, listener.on_view)
        ask = Ask(tuple(ids), request.options, 1, int(request.background), request.wait_s, request.activations)
        async with Serving(swarm, model).stream(ask) as stream:
            async for _, piece in stream:
                listener.on_text(piece.text)
        return Outcome(ids, stream.answers[0])
