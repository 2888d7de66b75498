"""Which files make up a checkpoint, and that none is a pickle, runs code or lies outside; reads no tensors."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from shoal.blocks.checkpoint_shard import open_shard
from shoal.blocks.errors import CheckpointError, UnsafeCheckpoint

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 64_000_000
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
READ_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")


def root_of(directory: Path) -> Path:
    """The folder that a checkpoint's files may lie in: the directory, or for a snapshot in a hub cache that cache."""
    resolved = directory.resolve()
    snapshots = resolved.parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        return snapshots.parent.parent
    return resolved


def safe_path(directory: Path, name: str) -> Path:
    """The path of a file that a checkpoint names; raises UnsafeCheckpoint if it leaves the checkpoint's root."""
    parts = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or ":" in name or parts.is_absolute() or ".." in parts.parts:
        raise UnsafeCheckpoint(f"The checkpoint in {directory} names {name!r}, outside its directory: do not use it.")
    path = directory / name
    if not path.resolve().is_relative_to(root_of(directory)):
        raise UnsafeCheckpoint(
            f"{name} in {directory} is a link to a place outside the checkpoint: put the file itself there."
        )
    return path


def check_links(directory: Path) -> None:
    """Raise UnsafeCheckpoint if a file that may be read (weights, config, tokenizer) links out of the checkpoint."""
    for path in directory.iterdir():
        if path.suffix in READ_SUFFIXES:
            safe_path(directory, path.name)


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """A JSON object from a checkpoint; raises CheckpointError if it is absent, too large or malformed."""
    path = safe_path(directory, name)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{name} in {directory} is larger than {MAX_JSON_BYTES} bytes: it is not a model's.")
        parsed = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"Cannot read {name} in {directory}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} in {directory} is not valid JSON: fetch the checkpoint again.") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{name} in {directory} is not a JSON object: fetch the checkpoint again.")
    return parsed


def read_config(directory: Path) -> dict[str, Any]:
    """The checkpoint's config.json, without its `auto_map`.

    Raises UnsafeCheckpoint if the model needs code of its own: it asks for `trust_remote_code`, or it maps its classes
    to files beside the weights and transformers has no model of that type (where it has one, the map is never used).
    """
    config = read_json(directory, CONFIG)
    auto_map = config.pop("auto_map", None)
    if config.get("trust_remote_code") or (auto_map and not _is_built_in(config.get("model_type"))):
        raise UnsafeCheckpoint(
            f"The model in {directory} needs code of its own (trust_remote_code), which Shoal never runs: "
            "choose a model that transformers supports by itself."
        )
    return config


def _is_built_in(model_type: object) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def read_weight_map(directory: Path) -> dict[str, str]:
    """Tensor name -> shard file, from the index or, for a single file, from its header."""
    names = {path.name for path in directory.iterdir()}
    if SINGLE in names:  # first: an index beside it is of shards that were saved earlier, and transformers ignores it
        return dict.fromkeys(open_shard(safe_path(directory, SINGLE)).entries, SINGLE)
    if INDEX in names:
        return parse_weight_map(read_json(directory, INDEX), directory)
    raise no_weights(names, str(directory))


def parse_weight_map(index: dict[str, Any], directory: Path) -> dict[str, str]:
    """The checked `weight_map` of an index: every value is the name of a safetensors file of this checkpoint."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} in {directory} has no weight_map: fetch the checkpoint again.")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{INDEX} in {directory} names no file for {name!r}: fetch the checkpoint again.")
    for file in set(weight_map.values()):
        safe_path(directory, file)
        if not file.endswith(".safetensors"):
            raise UnsafeCheckpoint(f"{INDEX} in {directory} names {file!r}: only safetensors files are loaded.")
    return weight_map


def no_weights(names: set[str], where: str) -> UnsafeCheckpoint | CheckpointError:
    """The error for a checkpoint that has neither an index nor a single safetensors file."""
    if any(name.endswith((*PICKLES, ".bin.index.json")) for name in names):
        return UnsafeCheckpoint(
            f"{where} has only pickled weights (.bin, .pt), and loading those can run code: convert it to safetensors."
        )
    return CheckpointError(f"{where} has no {SINGLE} and no {INDEX}: it is not a complete checkpoint.")
