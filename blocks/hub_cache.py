"""Where files lie in the hub library's cache folder, so that they are shared with it; reads and writes no contents."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from shoal.blocks.errors import CheckpointError
from shoal.blocks.whole_file import replacing, write_whole

_log = logging.getLogger(__name__)

MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"\w[\w./-]*")


def check_revision(revision: str) -> str:
    """A branch, tag or commit that is safe to put into a path and an address; raises CheckpointError otherwise."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise CheckpointError(f"{revision!r} is not a revision: pass a branch, a tag or a commit of the hub.")
    return revision


def is_commit(revision: str) -> bool:
    return _COMMIT.fullmatch(revision) is not None


def lock_of(blob: Path) -> Path:
    """The lock that the hub library takes too while it writes this blob."""
    folder = blob.parent.parent
    return folder.parent / ".locks" / folder.name / f"{blob.name}.lock"


@dataclass(frozen=True)
class RepoCache:
    """The folder of one model in the cache: blobs by hash, snapshots of links to them by commit, refs by name."""

    root: Path
    repo: str

    @property
    def folder(self) -> Path:
        return self.root / f"models--{self.repo.replace('/', '--')}"

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def link(self, commit: str, name: str, blob: Path) -> None:
        """Make the file of a snapshot a relative link to its blob."""
        pointer = self.snapshot(commit) / name
        pointer.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(blob, pointer.parent)
        if pointer.is_symlink() and pointer.readlink() == Path(target):
            return
        with replacing(pointer) as fresh:
            fresh.symlink_to(target)

    def remember(self, revision: str, commit: str) -> None:
        """Note the commit that a branch or tag stood for, for when the hub cannot be asked; nothing else needs it."""
        if is_commit(revision):
            return
        ref = self.folder / "refs" / revision
        try:
            if self.remembered(revision) != commit:
                ref.parent.mkdir(parents=True, exist_ok=True)
                write_whole(ref, commit.encode(), 0o666)
        except OSError as error:
            _log.warning(
                "%s cannot be written (%s), so that %s does not load while the hub is out of reach: free some space, "
                "or set HF_HOME to another disk.", ref, error.strerror, self.repo,
            )  # fmt: skip

    def remembered(self, revision: str) -> str | None:
        """The commit of a revision as far as this cache knows."""
        if is_commit(revision):
            return revision
        ref = self.folder / "refs" / revision
        commit = ref.read_text(errors="replace").strip() if ref.is_file() else ""
        return commit if is_commit(commit) else None
