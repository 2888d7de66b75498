"""What the hub has of a model: the commit and its files with their hashes, or why there is none; fetches no file."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from shoal.blocks.errors import CheckpointError, UnknownModel
from shoal.blocks.hub_cache import is_commit
from shoal.blocks.hub_download import NETWORK_ERRORS, RemoteFile

_HEX = frozenset("0123456789abcdef")


def is_repo_id(model: str) -> bool:
    """Whether the text can name a model of the hub, rather than a path."""
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return not model.startswith((".", "~"))


@dataclass(frozen=True)
class Listing:
    """The files of one commit that can be checked, by name."""

    commit: str
    files: dict[str, RemoteFile]
    api: HfApi


def list_files(model: str, revision: str, endpoint: str | None) -> Listing:
    """Ask the hub; raises UnknownModel, CheckpointError for an unknown revision, or one of NETWORK_ERRORS."""
    api = HfApi(endpoint=endpoint)
    try:
        info = api.model_info(model, revision=revision, files_metadata=True)
    except GatedRepoError as error:
        raise UnknownModel(
            f"{model} is gated: accept its terms on the hub, then log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise UnknownModel(_no_model(model, api)) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{model} has no revision {revision} on the hub: pass one of its branches, tags or commits."
        ) from error
    if not info.sha or not is_commit(info.sha):
        raise CheckpointError(f"The hub names no commit for {model}: check HF_ENDPOINT.")
    found = (
        _remote_file(sibling, hf_hub_url(model, sibling.rfilename, revision=info.sha, endpoint=endpoint))
        for sibling in info.siblings or ()
    )
    return Listing(info.sha, {file.name: file for file in found if file}, api)


def _remote_file(sibling: Any, url: str) -> RemoteFile | None:
    """None for a file without a size and a hash to check it by: it is not fetched."""
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if not digest or len(digest) not in (40, 64) or not _HEX.issuperset(digest) or sibling.size is None:
        return None
    return RemoteFile(sibling.rfilename, sibling.size, digest, url)


def _no_model(model: str, api: HfApi) -> str:
    try:
        similar = [found.id for found in api.list_models(search=model.rpartition("/")[2], limit=20)]
    except NETWORK_ERRORS:
        similar = []
    close = difflib.get_close_matches(model, similar, n=3)
    hint = f" (close to it: {', '.join(close)})" if close else ""
    return (
        f"There is no model {model} on the hub, nor a directory of that name{hint}: pass a directory, a hub name like "
        "org/name, or demo; for a private model set HF_TOKEN."
    )
