"""Addresses of nodes met before, in memory and in a file, to rejoin through when the bootstrap nodes are gone.

Who knows a private swarm's namespace finds its records, and who met whom is nobody else's business: only this user can
read the file, and its name is a hash of the one that is asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 64
MAX_FILE_BYTES = 64 * 1024


class Remembered:
    """One full multiaddr a peer id, the newest last. `path`: the folder and the swarm's namespace; None: in memory
    only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path and path.with_name(hashlib.sha256(b"shoal remembered v1" + path.name.encode()).hexdigest())
        self._maddrs: dict[str, str] = _read(self._path) if self._path is not None else {}

    def maddrs(self) -> list[str]:
        """All of them, the newest first."""
        return list(reversed(self._maddrs.values()))

    def add(self, known: Mapping[str, str]) -> None:
        """Note nodes that are alive: full multiaddrs by peer id."""
        new = known.items() - self._maddrs.items()
        for peer_id, maddr in known.items():
            self._maddrs.pop(peer_id, None)
            self._maddrs[peer_id] = maddr
        self._maddrs = dict(list(self._maddrs.items())[-MAX_REMEMBERED:])
        if new and self._path is not None:
            self._write(self._path)

    def _write(self, path: Path) -> None:
        """Several processes of this user may share the file; each writes it as a whole."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.chmod(0o700)  # an earlier version left it open to all
            # mkstemp gives 0600 from the first moment on.
            descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write("".join(f"{maddr}\n" for maddr in self._maddrs.values()))
                Path(fresh).replace(path)
            except BaseException:
                with suppress(OSError):
                    Path(fresh).unlink()
                raise
        except OSError as error:
            logger.info("cannot keep the addresses of peers in %s: %s", path, error)


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(MAX_FILE_BYTES).splitlines()
    except OSError:
        return {}
    found = {line.rpartition("/p2p/")[2]: line for line in lines if _is_maddr(line)}
    return dict(list(found.items())[-MAX_REMEMBERED:])


def _is_maddr(line: str) -> bool:
    from shoal.dht.foreign import Multiaddr, PeerID

    try:
        Multiaddr(line)
        PeerID.from_base58(line.rpartition("/p2p/")[2])
    except Exception:  # noqa: BLE001  the library raises what it likes
        return False
    return True
