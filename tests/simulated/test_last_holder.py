"""The only holder of a model failed, and is still announced: what is told of it, and for how long it is avoided."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from shoal.peer.errors import HopClosed, NoRouteError
from shoal.routing.health import BAN_FIRST_S

from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
ADVICE = "Wait for one (--wait 60) or start one"


def test_a_killed_holder_is_named_once_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(_transport: object, peer_id: str, _addrs: object) -> None:
        raise HopClosed(peer_id, "cannot open a stream")

    async def main() -> str:
        async with world(3, [(0, N_BLOCKS)]) as it:
            monkeypatch.setattr("tests.sim.network.SimTransport.connect", refused)
            async with it.client() as swarm:
                with pytest.raises(NoRouteError) as ended:
                    await generate(swarm, [5, 17, 42], 3)
                return str(ended.value)

    said = run(main())
    assert "only holders that are" in said
    assert f"{ADVICE}." in said
    assert ADVICE in GUIDE.read_text(encoding="utf-8")
    assert "The last failure: p0 cannot open a stream" in said
    assert said.count("p0") == 1


@pytest.mark.parametrize("set_by_s", [-3600.0, 3600.0])
def test_a_clock_set_anew_neither_lengthens_nor_ends_a_ban(set_by_s: float) -> None:
    async def main() -> list[bool]:
        async with world(3, [(0, N_BLOCKS)]) as it:
            banned = []
            async with it.client() as swarm:
                swarm.blame(HopClosed("p0", "made to fail"))
                for after_s in (0.0, 0.5 * BAN_FIRST_S, BAN_FIRST_S):
                    await asyncio.sleep(after_s)
                    banned.append("p0" in swarm.knowledge().banned)
                    it.set_by_s = set_by_s
            return banned

    assert run(main()) == [True, True, False]
