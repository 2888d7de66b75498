"""Addresses of nodes met before, in memory and in a file, to rejoin through when the bootstrap nodes are gone."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 64
MAX_FILE_BYTES = 64 * 1024


class Remembered:
    """One full multiaddr a peer id, the newest last. `path` None: in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._maddrs: dict[str, str] = _read(path) if path is not None else {}

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
        fresh = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text("".join(f"{maddr}\n" for maddr in self._maddrs.values()))
            fresh.replace(path)
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
