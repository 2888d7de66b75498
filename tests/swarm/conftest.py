"""One swarm of three peers with the demo model, and one `shoal api` over it, for all tests that only ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from api_server import Server, start_api
from processes import Processes
from python_swarm import start_swarm

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def api_processes() -> Iterator[Processes]:
    with Processes() as processes:
        yield processes


@pytest.fixture(scope="session")
def api_invite(api_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> str:
    return start_swarm(api_processes, tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def api_server(api_processes: Processes, api_invite: str) -> Server:
    return start_api(api_processes, api_invite)
