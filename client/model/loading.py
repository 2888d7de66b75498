"""What `from_pretrained` takes, and a model's ends and its swarm from that; knows no transformers classes."""

from __future__ import annotations

import copy
import difflib
import os
import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.ends import load_ends
from shoal.blocks.errors import CheckpointError
from shoal.blocks.formats import FORMS
from shoal.blocks.hub_progress import downloads
from shoal.blocks.spec import spec_of
from shoal.blocks.weights import read_weights
from shoal.client.model.connection import connect
from shoal.client.model.lanes import RemoteBlocks
from shoal.client.swarm import Model, SwarmOptions
from shoal.dht.invite import Invite
from shoal.dht.swarms import VARIABLE, find_invite

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.blocks.checkpoint import Checkpoint
    from shoal.blocks.ends import Ends
    from shoal.blocks.spec import ModelSpec
    from shoal.client.model.connection import Connection

DEFAULT_SWARM = "default"
SCORE = "score.weight"
# Of transformers and Petals: each says how weights are loaded or servers are asked, where Shoal has ways of its own.
WITHOUT_EFFECT = frozenset({
    "low_cpu_mem_usage", "use_safetensors", "max_retries", "min_backoff", "max_backoff", "request_timeout",
    "session_timeout", "connect_timeout", "update_period", "ban_timeout", "use_server_to_server", "show_route",
    "daemon_startup_timeout", "attn_implementation",
})  # fmt: skip
NOT_YET = {
    "tuning_mode": "prompt tuning", "pre_seq_len": "prompt tuning", "active_adapter": "serving adapters",
    "quantization_config": "quantizing the client's ends", "load_in_4bit": "quantizing the client's ends",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Which swarm: `join`, an invite (or its text, or the name that `shoal swarms` keeps it under; SHOAL_JOIN where
    nothing is said), or `initial_peers`, bootstrap addresses of the public swarm named `swarm`. `revision` of the
    model. `dtype` of the ends and of hidden states ("auto": the checkpoint's own), and
    `device` of the ends. `codec`: how hidden states travel (None: as they are). `wait`: seconds to wait for blocks that
    nobody serves. `background`: let others go first."""

    join: Invite | str | None = None
    initial_peers: Sequence[str] | None = None
    swarm: str = DEFAULT_SWARM
    revision: str | None = None
    dtype: torch.dtype | str | None = None
    device: str | torch.device = "cpu"
    codec: str | None = None
    wait: float = 5.0
    background: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """From keywords. Errors: `TypeError` for one that nobody knows, `NotImplementedError`, `ValueError`."""
        known = {field.name for field in fields(cls)}
        values = {"dtype" if name == "torch_dtype" else name: value for name, value in given.items()}
        for name in sorted(set(values) - known):
            value = values.pop(name)
            if name in NOT_YET and value:
                raise NotImplementedError(f"{name}: {NOT_YET[name]} is not there yet; leave it out.")
            if name in WITHOUT_EFFECT:
                warnings.warn(f"{name} has no effect in Shoal.", stacklevel=4)
            elif name not in NOT_YET:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(sorted(known))}."
                raise TypeError(f"from_pretrained has no option {name!r}. {hint}")
        return cls(**values)

    def __post_init__(self) -> None:
        ways = [way for way in (self.join, self.initial_peers) if way is not None]
        if len(ways) > 1 or not (ways or os.environ.get(VARIABLE)):
            raise ValueError(
                "Say which swarm: join=INVITE, the word that `shoal bootstrap` prints, or initial_peers=[...]."
            )
        if self.codec is not None and self.codec not in FORMS:
            raise ValueError(f"codec is {self.codec!r}, but must be one of {', '.join(FORMS)}, or None.")
        if self.wait < 0:
            raise ValueError(f"wait is {self.wait}, but must be a number of seconds.")

    def invite(self, name: str | None) -> Invite:
        """The swarm's. Errors: `InviteError`, `ValueError` where `initial_peers` need a model's name."""
        if isinstance(self.join, Invite):
            return self.join
        if self.initial_peers is None:
            return find_invite(self.join)
        if name is None:
            raise ValueError("With initial_peers, name the model that the swarm serves.")
        return Invite(self.swarm, name, tuple(map(str, self.initial_peers)))

    def kind(self, spec: ModelSpec) -> torch.dtype:
        """The dtype meant. Errors: `ValueError`."""
        if self.dtype is None or self.dtype == "auto":
            return spec.dtype
        kind = self.dtype if isinstance(self.dtype, torch.dtype) else getattr(torch, self.dtype, None)
        if kind not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype is {self.dtype!r}, but must be float32, bfloat16, float16 or auto.")
        return kind


@dataclass
class Loaded:
    """A model's ends on this machine and its blocks in the swarm; `score` where it was asked for."""

    config: Any
    checkpoint: Checkpoint
    ends: Ends
    blocks: RemoteBlocks
    connection: Connection
    score: torch.Tensor | None = None


def open_model(name: str | None, options: Options, *, score: bool = False) -> Loaded:
    """Read the ends, join the swarm. Errors: those of `blocks` and of joining; `CheckpointError` for a checkpoint
    without a score head where one is asked for."""
    invite = options.invite(name)
    checkpoint = read_ends(name or invite.model, options.revision, score=score)
    kind = options.kind(spec_of(checkpoint))
    ends = load_ends(checkpoint, str(options.device), kind, head=not score)
    head = read_weights(checkpoint, [SCORE])[SCORE].to(options.device, kind) if score else None
    blocks, connection = _join(checkpoint, invite, options)
    return Loaded(library_config(checkpoint), checkpoint, ends, blocks, connection, head)


def open_blocks(name: str | None, given: Mapping[str, Any]) -> tuple[Any, RemoteBlocks, Connection]:
    """All blocks of a model, without its ends: config, blocks and their swarm. Errors: as `open_model`."""
    options = Options.of(given)
    invite = options.invite(name)
    checkpoint = resolve(name or invite.model, wanted=lambda _: False, revision=options.revision)
    return library_config(checkpoint), *_join(checkpoint, invite, options)


def read_ends(name: str, revision: str | None, *, score: bool = False) -> Checkpoint:
    """A checkpoint with the shards that hold its ends, fetched from the hub if it is not a directory."""
    config_only = resolve(name, wanted=lambda _: False, revision=revision)
    names = config_only.tensor_names()
    wanted = spec_of(config_only).family.end_tensors(names)
    if score and SCORE not in names:
        raise CheckpointError(
            f"{name} has no score head ({SCORE}), so it classifies nothing: choose a checkpoint that was saved for "
            "sequence classification."
        )
    wanted += [SCORE] if score else []
    with downloads() as progress:
        return resolve(name, wanted=frozenset(wanted).__contains__, revision=config_only.revision, progress=progress)


def library_config(checkpoint: Checkpoint) -> Any:
    """transformers' config, a copy of its own for each model."""
    config = copy.deepcopy(spec_of(checkpoint).config)
    config.name_or_path = str(checkpoint.path)
    config._attn_implementation = "eager"
    return config


def _join(checkpoint: Checkpoint, invite: Invite, options: Options) -> tuple[RemoteBlocks, Connection]:
    spec = spec_of(checkpoint)
    model = Model(spec.n_blocks, spec.hidden_size, checkpoint.revision)
    connection = connect(invite, model, SwarmOptions())
    blocks = RemoteBlocks(
        connection, 0, spec.n_blocks, spec.hidden_size, options.kind(spec), spec.max_position,
        spec.length_kind, spec.outgrown, codec=options.codec, wait_s=options.wait, priority=int(options.background),
    )  # fmt: skip
    return blocks, connection
