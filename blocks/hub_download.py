"""One file from the hub to a blob of its cache: resumed, checked by hash, then renamed; knows no models, no index."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    WeakFileLock,
    hf_raise_for_status,
    http_stream_backoff,
)
from shoal.blocks.errors import CheckpointError, NoSpace
from shoal.blocks.hub_cache import lock_of

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from shoal.blocks.hub_progress import Progress

CHUNK_BYTES = 1 << 20
FRUITLESS_TRIES = 5  # in a row, each without one new byte, before giving up until the next run
FIRST_PAUSE_S = 0.5  # after a fruitless try; doubles
READ_TIMEOUT_S = 30.0

# Whatever the hub library's HTTP client raises when the network or the server fails, whichever client it is built on.
NETWORK_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OfflineModeIsEnabled, ConnectionError)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub repository: `digest` is the SHA-256 of its bytes (LFS) or its git blob id (small files)."""

    name: str
    size_bytes: int
    digest: str
    url: str

    @property
    def is_lfs(self) -> bool:
        return len(self.digest) == 64

    def hasher(self) -> Any:
        if self.is_lfs:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)  # git's name for a file


def missing_bytes(file: RemoteFile, blob: Path) -> int:
    """Bytes that `download` still has to fetch."""
    if _is_whole(file, blob):
        return 0
    partial = _partial(blob)
    return file.size_bytes - (min(partial.stat().st_size, file.size_bytes) if partial.exists() else 0)


def download(file: RemoteFile, blob: Path, headers: dict[str, str], progress: Progress) -> None:
    """Make `blob` hold the file; it appears under its name only when whole and of the hub's hash.

    A broken connection is taken up again where it broke, also by a later call. Raises CheckpointError if the body does
    not match its hash (it is removed) or the hub cannot be reached, NoSpace if the disk fills.
    """
    lock = lock_of(blob)
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # two peers of one machine fetch a shard once
        if _is_whole(file, blob):
            return
        try:
            _fill(file, _partial(blob), headers, progress)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpace(
                    f"The disk takes no more of {file.name} ({error.strerror}): free some space and run this again, it "
                    f"will go on from there (what was fetched is in {blob.parent})."
                ) from error
            raise
        _partial(blob).replace(blob)


def _is_whole(file: RemoteFile, blob: Path) -> bool:
    """By size: the hash was checked before the file came under this name."""
    return blob.exists() and blob.stat().st_size == file.size_bytes


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _fill(file: RemoteFile, partial: Path, headers: dict[str, str], progress: Progress) -> None:
    with partial.open("a+b", buffering=0) as sink:
        body = _Body(file, sink, progress)
        progress.start(file.name, file.size_bytes, body.n_bytes)
        try:
            _receive_all(body, headers)
            sound = body.is_sound()
            if sound:
                os.fsync(sink.fileno())
        finally:
            progress.finish()
    if not sound:
        partial.unlink()
        raise CheckpointError(
            f"{file.name} arrived damaged (its hash is not the hub's) and was removed: run this again to fetch it anew."
        )


class _Body:
    """The bytes of a file that have arrived so far, on disk and in a running hash."""

    def __init__(self, file: RemoteFile, sink: BinaryIO, progress: Progress) -> None:
        self.file = file
        self._sink, self._progress = sink, progress
        self._hash = file.hasher()
        self.n_bytes = 0
        self._reread()

    def _reread(self) -> None:
        """Bytes of an earlier run are hashed again: what is on disk counts, not what was once sent."""
        self._sink.seek(0)
        while self.n_bytes <= self.file.size_bytes and (chunk := self._sink.read(CHUNK_BYTES)):
            self._hash.update(chunk)
            self.n_bytes += len(chunk)
        if self.n_bytes > self.file.size_bytes:
            self.restart()

    def restart(self) -> None:
        self._sink.truncate(0)
        self._hash, self.n_bytes = self.file.hasher(), 0

    def add(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            view = view[self._sink.write(view) :]
        self._hash.update(chunk)
        self.n_bytes += len(chunk)
        self._progress.update(self.n_bytes)

    def is_complete(self) -> bool:
        return self.n_bytes >= self.file.size_bytes

    def is_sound(self) -> bool:
        return self.n_bytes == self.file.size_bytes and self._hash.hexdigest() == self.file.digest


def _receive_all(body: _Body, headers: dict[str, str]) -> None:
    fruitless = 0
    while not body.is_complete():
        before, failure = body.n_bytes, None
        try:
            _receive(body, headers)
        except NETWORK_ERRORS as error:
            failure = error
        fruitless = 0 if body.n_bytes > before else fruitless + 1
        if fruitless >= FRUITLESS_TRIES:
            raise CheckpointError(
                f"The hub stopped sending {body.file.name} at {body.n_bytes} of {body.file.size_bytes} bytes: "
                "check the connection and run this again, it will go on from there."
            ) from failure
        if fruitless:
            threading.Event().wait(FIRST_PAUSE_S * 2 ** (fruitless - 1))  # the network may be back in a moment


def _receive(body: _Body, headers: dict[str, str]) -> None:
    """One request for what is missing; ends early, or raises one of NETWORK_ERRORS, when the connection breaks."""
    asked = {**headers, "Accept-Encoding": "identity"}
    if body.n_bytes:
        asked["Range"] = f"bytes={body.n_bytes}-"
    with http_stream_backoff(
        "GET", body.file.url, headers=asked, timeout=READ_TIMEOUT_S, max_retries=2, retry_on_exceptions=()
    ) as response:
        hf_raise_for_status(response)
        if body.n_bytes and response.status_code != 206:  # the server sends it all again
            body.restart()
        for chunk in response.iter_bytes():  # as they arrive: a larger piece would be lost with the connection
            body.add(chunk)
            if body.n_bytes > body.file.size_bytes:
                return  # more than the hub announced: the hash will not match
