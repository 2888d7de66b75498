"""The only holder of a model was killed, and is still announced: what is told names it once and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from shoal.peer.errors import HopClosed, NoRouteError

from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, world

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
ADVICE = "Wait for one (--wait 60) or start one"
LIBP2P = "Connect failed. msg=failed to dial: failed to dial p0: all dials failed"


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_killed_holder_is_named_once_with_what_to_do(debug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DEBUG", debug)

    async def refused(_transport: object, peer_id: str, _addrs: object) -> None:
        raise HopClosed(peer_id, f"cannot open a stream to {peer_id}: {LIBP2P}")

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
    assert (LIBP2P in said) == bool(debug)
    assert debug or said.count("p0") == 1
