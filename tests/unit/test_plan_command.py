"""`shoal plan` on a model's config: memory, what fits, one timed block, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace

import pytest
import torch
from shoal.blocks.checkpoint import DEMO_PATH, resolve
from shoal.blocks.memory import block_bytes, block_shapes
from shoal.blocks.spec import spec_of
from shoal.client.cli.main import main
from shoal.peer import sample
from shoal.peer.engine import DeviceEngine
from shoal.peer.plan import Held, Shape, Terms, Work, open_shape, swarm
from shoal.peer.sample import MadeUp, time_block
from shoal.routing.announcement import Announcement
from shoal.routing.knowledge import Speed
from shoal.routing.planner import NoRoute, Route
from shoal.routing.view import View, fold

FAST = Speed(0.001, 0.0001)
PLAN = ("plan", "--device", "cpu")  # whose figures these are


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config and nothing else."""
    made = tmp_path_factory.mktemp("config")
    (made / "config.json").write_bytes((DEMO_PATH / "config.json").read_bytes())
    return made


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert main([*PLAN, *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_config_is_enough(folder, capsys) -> None:
    spec = spec_of(resolve("demo"))
    found = planned(capsys, folder)
    assert found["model"]["blocks"] == spec.n_blocks
    assert [held["quantization"] for held in found["here"]] == ["none", "int8", "nf4"]
    for held in found["here"]:
        expected = sum(block_bytes(shape, held["quantization"], spec.dtype) for shape in block_shapes(spec))
        assert held["weights_bytes"] == expected
        assert held["fits_blocks"] == spec.n_blocks
        assert held["tokens_per_s"] == pytest.approx(1 / (held["decode_s_per_block"] * spec.n_blocks))
    assert found["runs_here"] is True
    assert (found["runs_in_swarm"], found["swarm"]) == (None, None)
    assert any("made-up weights" in line for line in found["measured"])
    assert any("the one that was timed" in line for line in found["assumed"])
    assert planned(capsys, folder / "config.json", "--no-measure")["model"]["blocks"] == spec.n_blocks


def test_without_a_timed_block_nothing_is_said_of_speed(folder, capsys) -> None:
    found = planned(capsys, folder, "--no-measure", "--quant", "nf4")
    assert [held["tokens_per_s"] for held in found["here"]] == [None]
    assert found["assumed"] == []
    assert main([*PLAN, str(folder), "--no-measure", "--quant", "nf4"]) == 0
    out = capsys.readouterr().out
    assert "not measured" in out
    assert "It runs here alone with its weights as nf4\n" in out


def test_what_does_not_fit_is_said(folder, capsys) -> None:
    big = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 60}
    (folder / "big").mkdir()
    (folder / "big" / "config.json").write_text(json.dumps(big))
    found = planned(capsys, folder / "big", "--no-measure", "--vram", "400MiB", "--quant", "none")
    assert 0 < found["here"][0]["fits_blocks"] < 60
    assert found["runs_here"] is False
    assert main([*PLAN, str(folder / "big"), "--no-measure", "--vram", "10MiB", "--quant", "none"]) == 0
    assert "not even one block: too little memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["plan"], "--join"), (["plan", "demo", "--quant", "int3"], "nf4"), (["plan", "demo", "--new-tokens", "0"], "1")],
)
def test_misuse_is_one_line(argv, words, capsys, monkeypatch) -> None:
    monkeypatch.delenv("SHOAL_JOIN", raising=False)
    with pytest.raises(SystemExit):
        main(argv)
    assert words in capsys.readouterr().err


def test_an_unknown_model_and_a_spoilt_config(tmp_path, capsys) -> None:
    assert main(["plan", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert main(["plan", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_the_block_that_is_timed_is_the_models_own(folder) -> None:
    shape = open_shape(str(folder), None)
    made_up = MadeUp(shape.config, shape.spec)
    real = resolve("demo")
    names = [name for name in real.tensor_names() if name in made_up.tensor_names()]
    assert set(names) == set(shape.spec.family.block_tensors(real.tensor_names(), 0))
    stored = real.read(names)
    for name, tensor in made_up.read(names).items():
        assert tensor.shape == stored[name].shape
        assert torch.isfinite(tensor).all()


# -- in a swarm -------------------------------------------------------------------------------------------------------


def peer(number: int, start: int, stop: int) -> Announcement:
    return Announcement(
        peer_id=f"peer{number}", sequence=1, expiry=100.0, start=start, stop=stop, state="online", quantization="none",
        dtype="float32", decode_s=0.004, prefill_s=0.0004, queue=0, free_tokens=9999, max_chunk=512, addrs=(), rtts=(),
        version="0", name="", revision="r",
    )  # fmt: skip


def held(shape: Shape, blocks: int) -> Held:
    from shoal.peer.fit import Fit

    return Held("none", 1, 1, Fit(blocks, 0, 8192, 0, 0, "fits"), "fits", FAST)


def test_a_swarm_with_a_gap_and_what_this_machine_would_do_about_it(folder) -> None:
    shape = open_shape(str(folder), None)
    n_blocks = shape.spec.n_blocks
    view = fold(View(n_blocks), [peer(1, 0, n_blocks - 4)], 1.0)
    found = swarm(shape, view, {}, [held(shape, 4)], Work(10, 10))
    assert isinstance(found.route, NoRoute)
    assert found.route.missing == tuple(range(n_blocks - 4, n_blocks))
    assert [(one.start, one.stop) for one in found.helps] == [(n_blocks - 4, n_blocks)]
    assert found.helps[0].gain.token_before_s is None
    assert found.helps[0].gain.token_after_s > 0


def test_round_trips_that_were_measured_count(folder) -> None:
    shape = open_shape(str(folder), None)
    view = fold(View(shape.spec.n_blocks), [peer(1, 0, shape.spec.n_blocks)], 1.0)
    near, far = (
        swarm(shape, view, {"peer1": rtt_s}, [replace(held(shape, 4), speed=None)], Work(10, 10))
        for rtt_s in (0.01, 0.3)
    )
    assert isinstance(near.route, Route)
    assert isinstance(far.route, Route)
    assert far.route.token_s - near.route.token_s == pytest.approx(0.29)
    assert near.route.token_s == pytest.approx(0.01 + 0.004 * shape.spec.n_blocks, abs=0.001)
    assert near.helps == ()  # nobody knows how fast this machine is


@pytest.mark.parametrize("slow", [(sample, "load_span"), (DeviceEngine, "_forward")], ids=["load", "compute"])
async def test_a_block_that_is_timed_holds_nobody_up_who_leaves(slow, monkeypatch) -> None:
    began, enough, threads = threading.Event(), threading.Event(), []

    def work(*_):
        threads.append(threading.current_thread())
        began.set()
        enough.wait(20)
        return []

    monkeypatch.setattr(*slow, work)
    checkpoint = resolve("demo")
    timing = asyncio.create_task(
        time_block(checkpoint.config, spec_of(checkpoint), Terms("cpu", None, "auto", None, "none"))
    )
    assert await asyncio.to_thread(began.wait, 20)
    timing.cancel()
    at = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await timing
    took_s = time.monotonic() - at
    enough.set()
    threads[0].join(20)
    assert took_s < 10
