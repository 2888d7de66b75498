"""One completion from names to text: reads the model's ends, joins the swarm, generates; prints nothing itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.ends import load_ends, load_tokenizer
from shoal.blocks.errors import CheckpointError
from shoal.blocks.spec import spec_of
from shoal.client.generation import Completion, eos_token_ids, generate, prompt_of, room
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import join_swarm

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.blocks.checkpoint import Checkpoint
    from shoal.blocks.ends import Ends
    from shoal.client.generation import GenerationOptions
    from shoal.client.swarm import Swarm
    from shoal.dht.invite import Invite
    from shoal.routing.route import Hop
    from shoal.routing.view import View


@dataclass(frozen=True)
class ClientModel:
    """What a client holds of a model; `dtype` is that of its ends and of the hidden states it sends. `tokenizer` is
    None where the checkpoint has none."""

    checkpoint: Checkpoint
    ends: Ends
    tokenizer: Any | None
    dtype: str
    eos: frozenset[int]


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
    """A finished completion and the route that it took in the end. `cached_tokens`: of the prompt, those that all hops
    held from before."""

    prompt_ids: list[int]
    completion: Completion
    route: tuple[Hop, ...] = field(default=())
    repairs: int = 0
    cached_tokens: int = 0


def load_model(name: str, dtype: str | None, revision: str | None = None) -> ClientModel:
    """Read a model's ends: from the hub only the shards that hold them. `dtype` None: the checkpoint's own.

    Errors: those of `blocks`.
    """
    config_only = resolve(name, wanted=lambda _: False, revision=revision)
    wanted = spec_of(config_only).family.end_tensors(config_only.tensor_names())
    checkpoint = resolve(name, wanted=frozenset(wanted).__contains__, revision=config_only.revision)
    kind: torch.dtype = getattr(torch, dtype) if dtype else spec_of(checkpoint).dtype
    return ClientModel(
        checkpoint,
        load_ends(checkpoint, dtype=kind),
        _tokenizer(checkpoint),
        str(kind).removeprefix("torch."),
        eos_token_ids(checkpoint.path, checkpoint.config),
    )


def _tokenizer(checkpoint: Checkpoint) -> Any | None:
    """None for a checkpoint without a usable one: token ids can be continued all the same."""
    try:
        return load_tokenizer(checkpoint)
    except CheckpointError:
        return None


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
        return await _run(swarm, model, ids, request, listener)


async def _run(swarm: Swarm, model: ClientModel, ids: list[int], request: Request, listener: Listener) -> Outcome:
    tokens = len(ids) + room(model.ends.spec, ids, request.options.max_new_tokens)
    outcome = Outcome(ids, Completion(time.perf_counter()))
    terms = SessionOptions(
        max_tokens=tokens, dtype=model.dtype, codec=request.activations, wait_s=request.wait_s,
        priority=int(request.background), prompt=prompt_of(model.ends.spec, ids),
    )  # fmt: skip
    options = replace(request.options, eos_token_ids=model.eos)
    async with swarm.session(terms) as session:
        async for piece in generate(session, model.ends, model.tokenizer, ids, options):
            outcome.completion.pieces.append(piece)
            listener.on_text(piece.text)
        outcome.route = tuple(session.route)
        outcome.repairs, outcome.cached_tokens = session.stats.repairs, session.stats.cached_tokens
    return outcome
