"""A checkpoint: config, tensor names, and just the tensors asked for, mapped from disk; knows no families or layers."""

from __future__ import annotations

import difflib
import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.blocks import hub
from shoal.blocks.checkpoint_files import CONFIG, check_links, read_config, read_weight_map, safe_path
from shoal.blocks.checkpoint_shard import Shard, open_shard
from shoal.blocks.errors import CheckpointError, UnknownModel
from shoal.blocks.hub_listing import is_repo_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch
    from shoal.blocks.hub_progress import Progress

DEMO = "demo"
DEMO_PATH = Path(__file__).parent / "demo_model"
SAMPLES_PER_SHARD = 64
SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine; some of its shards may not have been fetched.

    `revision` is the hub's commit hash or, for a directory, the first 16 hex digits of its fingerprint. `weight_map`
    says which shard file holds each tensor. `path` is the directory that transformers loads config and tokenizer from.
    `complete`: whoever has this revision has all of its shards, as of a directory.
    """

    name: str
    revision: str
    path: Path
    config: dict[str, Any]
    weight_map: Mapping[str, str] = field(repr=False)
    _open: dict[str, Shard] = field(default_factory=dict, repr=False, compare=False)
    complete: bool = field(default=False, repr=False)

    def tensor_names(self) -> frozenset[str]:
        """The names of all tensors, of shards that are not here as well."""
        return frozenset(self.weight_map)

    def shards_for(self, names: Iterable[str]) -> frozenset[str]:
        """The files that hold these tensors; raises CheckpointError for a name that the checkpoint lacks."""
        return frozenset(self._by_shard(names))

    def tensor_bytes(self, names: Iterable[str]) -> int:
        """Bytes that these tensors take in the checkpoint, from the headers of their shards."""
        return sum(self._shard(file).n_bytes(held) for file, held in self._by_shard(names).items())

    def stored_dtype(self, name: str) -> torch.dtype | None:
        """A tensor's dtype in a checkpoint that is `complete`; None elsewhere, and for a tensor that it lacks."""
        if not self.complete or name not in self.weight_map:
            return None
        return self._shard(self.weight_map[name]).entries[name].dtype

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """These tensors in the checkpoint's dtype, on CPU, memory-mapped: no other tensor's bytes are read.

        A page comes from disk when it is touched; writing to a tensor changes neither the file nor another mapping.
        Raises CheckpointError for a tensor that the checkpoint lacks or whose shard is not here or is damaged.
        """
        found: dict[str, torch.Tensor] = {}
        for file, held in self._by_shard(names).items():
            found |= self._shard(file).read(held)
        return found

    def _by_shard(self, names: Iterable[str]) -> dict[str, list[str]]:
        held: dict[str, list[str]] = defaultdict(list)
        for name in names:
            if name not in self.weight_map:
                raise CheckpointError(f"{self.name} has no tensor {name!r}: it is not complete, or not of this family.")
            held[self.weight_map[name]].append(name)
        return held

    def _shard(self, file: str) -> Shard:
        if file not in self._open:
            path = safe_path(self.path, file)
            if not path.exists():
                raise CheckpointError(
                    f"{file} of {self.name} is not on this machine: resolve it with these tensors wanted."
                )
            self._open[file] = open_shard(path)
        return self._open[file]


def resolve(
    model: str,
    *,
    wanted: Callable[[str], bool] | None = None,
    revision: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Find a model by local directory, hub name or `demo`, fetching from the hub what is wanted and not here.

    `wanted(tensor name)` chooses the shards to fetch (None: all; one that is never true: config and tokenizer only). A
    directory is never fetched into. `revision` is a branch, tag or commit of the hub, or a directory's fingerprint;
    `cache` is the hub's cache folder. Raises UnknownModel, UnsafeCheckpoint, CheckpointError (also: `revision` differs
    from what is there) or NoSpace.
    """
    path = DEMO_PATH if model == DEMO else Path(model).expanduser()
    if path.is_dir():
        return open_directory(path, model if model == DEMO else path.resolve().name, revision)
    if model == DEMO or path.exists() or not is_repo_id(model):
        raise UnknownModel(_no_directory(model, path))
    snapshot = hub.fetch(model, hub.Wish(wanted, revision, cache), progress)
    return Checkpoint(model, snapshot.commit, snapshot.path, read_config(snapshot.path), snapshot.weight_map)


def open_directory(path: Path, name: str, revision: str | None = None) -> Checkpoint:
    """A checkpoint in a local directory, complete; raises CheckpointError if its fingerprint is not `revision`."""
    if not (path / CONFIG).exists():
        raise UnknownModel(f"{path} has no {CONFIG}: pass a directory that a transformers model was saved to.")
    check_links(path)
    config, weight_map = read_config(path), read_weight_map(path)
    checkpoint = Checkpoint(name, "", path, config, weight_map)
    shards = {file: checkpoint._shard(file) for file in sorted(set(weight_map.values()))}
    _check_index(shards, weight_map)
    found = fingerprint(path, shards)
    if revision is not None and revision != found:
        raise CheckpointError(
            f"{path} holds revision {found}, wanted is {revision}: pass the directory with that revision of the model."
        )
    return Checkpoint(name, found, path, config, weight_map, shards, complete=True)


def fingerprint(path: Path, shards: Mapping[str, Shard]) -> str:
    """Sixteen hex digits of SHA-256 over config.json and each shard's name, size, header and 64 samples of 4 KiB."""
    digest = hashlib.sha256((path / CONFIG).read_bytes())
    for name, shard in shards.items():
        digest.update(f"\0{name}\0{shard.size_bytes}\0".encode())
        digest.update(shard.header)
        _sample(shard, digest.update)
    return digest.hexdigest()[:16]


def _sample(shard: Shard, update: Callable[[bytes], None]) -> None:
    rng = random.Random(shard.size_bytes)  # noqa: S311  the same places on every machine, not a secret
    offsets = sorted(rng.randrange(max(shard.size_bytes - SAMPLE_BYTES, 0) + 1) for _ in range(SAMPLES_PER_SHARD))
    with shard.path.open("rb", buffering=0) as file:
        for offset in offsets:
            file.seek(offset)
            update(file.read(SAMPLE_BYTES))


def _check_index(shards: Mapping[str, Shard], weight_map: Mapping[str, str]) -> None:
    for name, file in weight_map.items():
        shards[file].n_bytes([name])


def _no_directory(model: str, path: Path) -> str:
    if model == DEMO:
        return "The demo model is not part of this installation: install Shoal from a full checkout or wheel."
    beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=3)
    hint = f" (close to it: {', '.join(close)})" if close else ""
    return f"There is no model directory {model}{hint}: pass a directory, a hub name such as org/name, or demo."
