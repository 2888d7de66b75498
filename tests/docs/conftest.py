"""One swarm for all tests of the pages."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from guide_swarm import shared_swarm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guide_runner import Swarm


@pytest.fixture(scope="session")
def swarm() -> Iterator[Swarm]:
    with tempfile.TemporaryDirectory(prefix="shoal") as folder, shared_swarm(Path(folder)) as running:
        yield running
