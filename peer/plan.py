"""`shoal plan`: would a model run here, or in a swarm, how fast, and what would this machine add. Loads no weights.

Figures of this machine are measured on one block with made-up weights (`peer.sample`); what is assumed is said.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.checkpoint import DEMO, resolve
from shoal.blocks.checkpoint_files import CONFIG, read_config
from shoal.blocks.errors import BlocksError, NoMemory
from shoal.blocks.formats import row_bytes
from shoal.blocks.spec import ModelSpec, spec_of
from shoal.peer.fit import Fit, Wishes, fit
from shoal.peer.loading import dtype_of, figures_of
from shoal.peer.order import EngineFault
from shoal.peer.sample import time_block
from shoal.routing.announcement import Announcement, AnnouncementError, decode
from shoal.routing.knowledge import DEFAULT_LEG_S, Knowledge, Speed
from shoal.routing.placement import Gain, gain_of, place_span
from shoal.routing.planner import NoRoute, Route, RouteRequest, plan_route
from shoal.routing.view import View, fold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.dht.record import Record


@dataclass(frozen=True, slots=True)
class Terms:
    """How this machine would hold a model."""

    device: str = "cpu"
    dtype: str | None = None
    kv_dtype: str = "auto"
    vram: int | None = None
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be generated: a prompt's tokens, and new ones."""

    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Shape:
    """A model by its config. `config` as stored; `revision` where it can be told."""

    name: str
    revision: str | None
    config: Mapping[str, Any]
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class Held:
    """The model on this machine with its weights as `quantization`: bytes of all blocks, and of KV a token through all
    of them. `room` None: not even one block fits, and `why`. `speed` of one block; None: not measured."""

    quantization: str
    weights_bytes: int
    kv_token_bytes: int
    room: Fit | None
    why: str
    speed: Speed | None

    @property
    def blocks(self) -> int:
        return self.room.blocks if self.room else 0

    def token_s(self, n_blocks: int) -> float | None:
        """Seconds a token takes if all blocks are here; None where they do not fit or nobody measured."""
        return None if self.speed is None or self.blocks < n_blocks else self.speed.decode_s * n_blocks


@dataclass(frozen=True, slots=True)
class Help:
    """What a further peer like this machine would serve, and what the swarm would gain."""

    quantization: str
    start: int
    stop: int
    why: str
    gain: Gain


@dataclass(frozen=True, slots=True)
class Swarmed:
    """The model in a swarm: who is there, the way that a client here would take, what a further peer would change.
    `measured`: round trips known, of as many peers as there are."""

    view: View
    route: Route | NoRoute
    helps: tuple[Help, ...]
    measured: int


def open_shape(name: str, revision: str | None) -> Shape:
    """A model's shape from a hub name, a directory or a config.json alone. Errors: `BlocksError`."""
    path = Path(name).expanduser()
    folder = path.parent if path.name == CONFIG and path.is_file() else path
    if name != DEMO and (folder / CONFIG).is_file() and not any(folder.glob("*.safetensors*")):
        config = read_config(folder)
        return Shape(name, None, config, spec_of(_Bare(config)))
    checkpoint = resolve(name, wanted=lambda _: False, revision=revision)
    return Shape(name, checkpoint.revision, checkpoint.config, spec_of(checkpoint))


@dataclass(frozen=True)
class _Bare:
    config: Mapping[str, Any]


async def hold(shape: Shape, terms: Terms, *, timed: bool) -> Held:
    """Memory and speed of a model on this machine. Errors: `BlocksError` for a device that is not there."""
    spec = shape.spec
    figures = figures_of(terms, spec)
    speed, why = None, ""
    try:
        room: Fit | None = fit(figures, Wishes(vram=terms.vram))
        why = room.why if room else ""
    except NoMemory as error:
        room, why = None, str(error)
    if room is not None and timed:
        try:
            speed = await time_block(shape.config, spec, terms)
        except (BlocksError, EngineFault, RuntimeError) as error:
            first = str(error).partition("\n")[0]
            why = f"{why}; a block could not be timed: {first}"
    return Held(terms.quantization, sum(figures.weights), sum(figures.kv), room, why, speed)


def ends_bytes(shape: Shape, terms: Terms) -> int:
    """Bytes of what every client holds itself: the embedding, and the head where it is another matrix."""
    tied = bool(getattr(shape.spec.config, "tie_word_embeddings", False))
    return shape.spec.vocab_size * shape.spec.hidden_size * dtype_of(terms, shape.spec).itemsize * (1 if tied else 2)


def view_of(records: Sequence[Record], shape: Shape, now: float) -> View:
    """The swarm's peers of the model's revision; where that is not known, of the one that most of them serve."""
    found: list[Announcement] = []
    for record in records:
        try:
            found.append(decode(record, shape.spec.n_blocks))
        except AnnouncementError:
            continue  # one bad record hides no other
    common = Counter(peer.revision for peer in found).most_common(1)
    wanted = shape.revision or (common[0][0] if common else None)
    return fold(View(shape.spec.n_blocks), [peer for peer in found if peer.revision == wanted], now)


def swarm(shape: Shape, view: View, rtts_s: Mapping[str, float], held: Sequence[Held], work: Work) -> Swarmed:
    """What the swarm gives a client here, and what this machine would give the swarm."""
    spec, knowledge = shape.spec, Knowledge(rtts_s=dict(rtts_s))
    request = RouteRequest(
        0, spec.n_blocks, prompt_tokens=work.prompt_tokens, new_tokens=work.new_tokens,
        kv_tokens=work.prompt_tokens + work.new_tokens, knowledge=knowledge,
        token_bytes=row_bytes(str(spec.dtype).removeprefix("torch."), spec.hidden_size),
    )  # fmt: skip
    rng = random.Random(0)  # noqa: S311 - one plan, not one of many clients that must spread
    route = plan_route(view, request, view.at, rng)
    helps = [_help(view, one, knowledge, rng) for one in held if one.room is not None and one.speed is not None]
    return Swarmed(view, route, tuple(helps), len(rtts_s))


def _help(view: View, held: Held, knowledge: Knowledge, rng: random.Random) -> Help:
    if held.speed is None:
        raise ValueError("what is not measured adds nothing that could be told")
    placed = place_span(view, held.blocks, held.speed, view.at, rng, knowledge)
    gain = gain_of(view, placed.start, placed.stop, held.speed, knowledge)
    return Help(held.quantization, placed.start, placed.stop, placed.reason, gain)


def assumptions(shape: Shape, held: Sequence[Held], swarmed: Swarmed | None, work: Work) -> list[str]:
    """What the figures stand on that nobody measured, a sentence each."""
    said = []
    if any(one.speed is not None for one in held):
        said.append(
            f"all {shape.spec.n_blocks} blocks take as long as the one that was timed, embedding and head nothing"
        )
    if swarmed is not None:
        said.append("the peers are as fast and as busy as they announce")
        if unknown := len(swarmed.view.peers) - swarmed.measured:
            said.append(f"ways that nobody measured take {1e3 * DEFAULT_LEG_S:g} ms (so to {unknown} of the peers)")
        else:
            said.append(f"ways between peers that they have not measured take {1e3 * DEFAULT_LEG_S:g} ms")
        said.append(f"one conversation of {work.prompt_tokens} tokens in and {work.new_tokens} out, alone on its route")
    return said


def device_name(device: str) -> str:
    """For people."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
