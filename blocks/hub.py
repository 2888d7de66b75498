"""Models of the hub: which files of a revision are needed, fetched into the hub's cache; knows no tensors' contents.

Speaks through `huggingface_hub` (addresses, tokens, retries, listing). Its own download function is not used: it checks
no hash and starts a file again from nothing after an interrupted run.
"""

from __future__ import annotations

import fnmatch
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants
from huggingface_hub.errors import SafetensorsParsingError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from shoal.blocks.checkpoint_files import (
    CONFIG,
    INDEX,
    SINGLE,
    check_links,
    no_weights,
    parse_weight_map,
    read_config,
    read_json,
    read_weight_map,
    safe_path,
)
from shoal.blocks.errors import CheckpointError, NoSpace, UnknownModel
from shoal.blocks.hub_cache import MAIN, RepoCache, check_revision
from shoal.blocks.hub_download import NETWORK_ERRORS, RemoteFile, download, missing_bytes
from shoal.blocks.hub_listing import Listing, list_files
from shoal.blocks.hub_progress import Progress, Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ALWAYS = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "*.tiktoken",
    "spiece.model",
    INDEX,
)


@dataclass(frozen=True)
class Wish:
    """What of a model is wanted: tensors by name (None: all), revision, and where to (None: the hub's usual cache)."""

    wanted: Callable[[str], bool] | None = None
    revision: str | None = None
    cache: Path | None = None
    endpoint: str | None = None  # None: the hub's own, or HF_ENDPOINT


@dataclass(frozen=True)
class Snapshot:
    """One commit of a model in the cache; files that nobody wanted may be absent."""

    commit: str
    path: Path
    weight_map: Mapping[str, str]


def fetch(model: str, wish: Wish, progress: Progress | None = None) -> Snapshot:
    """Fetch config, tokenizer and the shards that hold wanted tensors; if the hub is out of reach, use what is here.

    Raises UnknownModel, CheckpointError (no such revision, damaged, hub out of reach), UnsafeCheckpoint or NoSpace.
    """
    cache = RepoCache(wish.cache or Path(constants.HF_HUB_CACHE), model)
    revision = check_revision(wish.revision or MAIN)
    try:
        listing = list_files(model, revision, wish.endpoint)
    except NETWORK_ERRORS as error:
        snapshot = _from_cache(cache, revision, wish)
        if snapshot is None:
            raise _unreachable(model, error) from error
        return snapshot
    cache.remember(revision, listing.commit)
    return _Fetch(cache, listing, progress or Silent()).run(wish)


class _Fetch:
    """The fetching of one commit."""

    def __init__(self, cache: RepoCache, listing: Listing, progress: Progress) -> None:
        self._cache, self._listing, self._progress = cache, listing, progress
        self._headers = build_hf_headers()
        self._path = cache.snapshot(listing.commit)

    def run(self, wish: Wish) -> Snapshot:
        if CONFIG not in self._listing.files:
            raise UnknownModel(f"{self._cache.repo} has no {CONFIG} on the hub: it is not a transformers model.")
        self._get(name for name in self._listing.files if _is_always(name))
        read_config(self._path)  # an unsafe model is refused before its weights are fetched
        weight_map = self._weight_map(wish.wanted)
        self._get(_wanted_shards(weight_map, wish.wanted))
        check_links(self._path)
        return Snapshot(self._listing.commit, self._path, weight_map)

    def _weight_map(self, wanted: Callable[[str], bool] | None) -> dict[str, str]:
        names = self._listing.files.keys()
        if SINGLE not in names and INDEX in names:  # a single file is the newer one, as for transformers
            return parse_weight_map(read_json(self._path, INDEX), self._path)
        if SINGLE not in names:
            raise no_weights(set(names), self._cache.repo)
        if wanted is None:
            self._get([SINGLE])
            return read_weight_map(self._path)
        return dict.fromkeys(self._remote_names(), SINGLE)

    def _remote_names(self) -> Iterable[str]:
        """The tensors of a single file, from its header alone."""
        listing, repo = self._listing, self._cache.repo
        try:
            return listing.api.parse_safetensors_file_metadata(repo, SINGLE, revision=listing.commit).tensors
        except (SafetensorsParsingError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{SINGLE} of {repo} has no sound safetensors header on the hub.") from error
        except NETWORK_ERRORS as error:
            raise _unreachable(repo, error) from error

    def _get(self, names: Iterable[str]) -> None:
        files = [self._file(name) for name in sorted(names)]
        self._check_space(files)
        for file in files:
            blob = self._cache.blob(file.digest)
            download(file, blob, self._headers, self._progress)
            self._cache.link(self._listing.commit, file.name, blob)

    def _file(self, name: str) -> RemoteFile:
        safe_path(self._path, name)
        try:
            return self._listing.files[name]
        except KeyError:
            raise CheckpointError(f"{self._cache.repo} lacks {name} on the hub, which its index names.") from None

    def _check_space(self, files: list[RemoteFile]) -> None:
        needed = sum(missing_bytes(file, self._cache.blob(file.digest)) for file in files)
        folder = next(place for place in (self._cache.root, *self._cache.root.absolute().parents) if place.exists())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise NoSpace(
                f"{self._cache.repo} needs {needed / 1e9:.1f} GB more and {folder} has {free / 1e9:.1f} GB free: "
                "free some space, serve fewer blocks, or set HF_HOME to another disk."
            )


def _is_always(name: str) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in ALWAYS)


def _wanted_shards(weight_map: Mapping[str, str], wanted: Callable[[str], bool] | None) -> set[str]:
    return {file for name, file in weight_map.items() if wanted is None or wanted(name)}


def _from_cache(cache: RepoCache, revision: str, wish: Wish) -> Snapshot | None:
    commit = cache.remembered(revision)
    path = cache.snapshot(commit) if commit else None
    if commit is None or path is None or not (path / CONFIG).exists():
        return None
    if not (path / INDEX).exists() and not (path / SINGLE).exists():
        return None
    check_links(path)
    weight_map = read_weight_map(path)
    here = all(safe_path(path, shard).exists() for shard in _wanted_shards(weight_map, wish.wanted))
    return Snapshot(commit, path, weight_map) if here else None


def _unreachable(model: str, error: Exception) -> CheckpointError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return CheckpointError(
        f"The hub cannot be asked ({reason}) and not all that is needed of {model} is on this machine: check the "
        "connection, or pass a directory."
    )
