"""Which device a peer serves from when it is not told: a GPU that computes, and it says which and why."""

from __future__ import annotations

import logging

import pytest
import torch
from shoal.blocks import devices
from shoal.blocks.devices import Memory, choose_device
from shoal.blocks.kernels import toolchain
from shoal.client.cli import checkup
from shoal.dht.invite import Invite
from shoal.peer import cli, plan_cli
from shoal.peer.config import PeerConfig, PeerError

OLD = "CUDA error: no kernel image is available for execution on the device\nCompile with TORCH_USE_CUDA_DSA"


@pytest.fixture
def machine(monkeypatch):
    """As on a machine where torch sees these devices, of which some compute nothing."""

    def of(*seen: str, broken: tuple[str, ...] = ()) -> None:
        def ones(_count, device):
            if device.type in broken:
                raise RuntimeError(OLD)
            return torch.zeros(8)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in seen)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA GeForce RTX 3060")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in seen)
        monkeypatch.setattr(torch, "ones", ones)
        monkeypatch.setattr(devices, "device_memory", lambda _device: Memory(2**33, 2**34))

    return of


@pytest.mark.parametrize(
    ("seen", "broken", "name", "why"),
    [
        (("cuda",), (), "cuda", "torch sees NVIDIA GeForce RTX 3060 (--device cpu leaves it alone)"),
        (("cuda", "mps"), (), "cuda", "RTX 3060"),
        (("mps",), (), "mps", "a Metal GPU"),
        (("cuda", "mps"), ("cuda",), "mps", "a Metal GPU"),
        (("cuda",), ("cuda",), "cpu", f"cuda computes nothing ({OLD.splitlines()[0]})"),
    ],
)
def test_the_best_that_computes_is_taken(machine, seen, broken, name, why) -> None:
    machine(*seen, broken=broken)
    found = choose_device()
    assert (found.name, found.instead) == (name, name == "cpu")
    assert why in found.why
    assert "\n" not in found.why


@pytest.mark.parametrize(("cuda", "why"), [("13.0", "torch sees no GPU"), (None, "built for CPUs alone")])
def test_without_a_gpu_it_is_the_cpu(machine, monkeypatch, cuda, why) -> None:
    machine()
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    found = choose_device()
    assert (found.name, found.instead) == ("cpu", False)
    assert why in found.why


def config(*argv: str) -> PeerConfig:
    arguments = cli._parser().parse_args(["--join", "i", *argv])
    return PeerConfig(Invite("s", "demo", ()), "demo", device=arguments.device, offload=arguments.offload)


@pytest.mark.parametrize(
    ("broken", "argv", "device", "level"),
    [
        ((), (), "cuda", logging.INFO),
        (("cuda",), (), "cpu", logging.WARNING),
        ((), ("--device", "cpu"), "cpu", None),
        ((), ("--offload",), "cuda", logging.INFO),
    ],
)
def test_a_peer_says_in_one_line_where_it_computes(machine, caplog, broken, argv, device, level) -> None:
    """Also with --quiet, if that is not where it should."""
    machine("cuda", broken=broken)
    with caplog.at_level(logging.INFO):
        assert cli._placed(config(*argv)).device == device
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])
    assert level is None or caplog.messages[0].startswith(f"computing on {device}: ")


def test_what_needs_a_gpu_is_refused_without_one(machine) -> None:
    machine()
    with pytest.raises(PeerError, match="on cpu blocks are in host memory anyway"):
        cli._placed(config("--offload"))


@pytest.mark.parametrize(("broken", "device"), [((), "cuda"), (("cuda",), "cpu")])
def test_a_plan_is_for_the_device_that_a_peer_would_take(machine, capsys, broken, device) -> None:
    machine("cuda", broken=broken)
    assert plan_cli._device(plan_cli._parser().parse_args(["demo"]).device) == device
    assert ("computes nothing" in capsys.readouterr().err) == bool(broken)
    assert plan_cli._device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("broken", "lack", "expected"),
    [
        ((), None, {"device": "ok", "memory": "ok"}),
        ((), "no compiler", {"device": "ok", "kernels": "note", "memory": "ok"}),
        (("cuda",), None, {"gpu": "note", "device": "ok", "memory": "ok"}),
    ],
)
def test_doctor_looks_at_the_device_that_a_peer_would_take(machine, monkeypatch, broken, lack, expected) -> None:
    machine("cuda", broken=broken)
    monkeypatch.setattr(toolchain, "missing", lambda _device: lack)
    found = {finding.name: finding for finding in checkup._device("auto")}
    assert {name: finding.state for name, finding in found.items()} == expected
    assert found["device"].text.startswith("cpu" if broken else "cuda: NVIDIA GeForce RTX 3060")
    assert lack is None or found["kernels"].advice == lack
