"""The driver's library as Shoal asks it, through nvidia-ml-py, against a stand-in with the same calls: most machines
have no such GPU, and none lets a test set its power.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pynvml", reason="nvidia-ml-py is for Linux only")
SOURCE = Path(__file__).with_name("nvml_stand_in.c")
PLAIN = {"power": 90_000, "limit": 250_000, "lowest": 100_000, "highest": 300_000}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here to build the stand-in with")
    folder = tmp_path_factory.mktemp("nvml")
    built = [compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)]
    subprocess.run(built, check=True, capture_output=True)
    return folder


@pytest.fixture
def tried(library, tmp_path):
    """Run a piece of code with `gpu` on a machine where these facts hold; what it assigns to `told`, its log, and the
    limit that is set afterwards."""

    def run(code: str, **facts: int) -> tuple[object, str, int]:
        file = tmp_path / "facts"
        file.write_text("".join(f"{name} {figure}\n" for name, figure in {**PLAIN, **facts}.items()))
        program = "import json, logging, os\nlogging.basicConfig(level='INFO')\nfrom shoal.peer.gpu import gpu_of\n"
        program += f"gpu = gpu_of('GPU-1')\n{code}\nprint(json.dumps(told))"
        env = {**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_STAND_IN": str(file), "FACTS": str(file)}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
        limits = [int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("limit ")]
        return json.loads(done.stdout), done.stderr, limits[-1]

    return run


def test_figures_come_in_watts_and_joules(tried):
    code = "told = [gpu.power_w(), gpu.limit_w(), gpu.range_w(), gpu.energy_j(), gpu_of('GPU-2')]"
    assert tried(code, energy=12_345_678)[0] == [90.0, 250.0, [100.0, 300.0], 12345.678, None]


def test_what_the_driver_does_not_tell_is_none(tried):
    code = "told = [gpu.energy_j(), gpu.used_by_others({os.getpid()}, 0.0)]"
    assert tried(code)[0] == [None, None]


def test_other_processes_are_told_from_our_own(tried):
    code = "told = [gpu.used_by_others({7, 8}, 0.0), gpu.used_by_others({7, 8}, 0.0)]"
    ours = {"computing": 7, "pid_1": 7, "sm_1": 90}
    told, _, _ = tried(code, sampled=5_000_000, **ours, pid_2=40, sm_2=30, pid_3=41, sm_3=12, gpu=99)
    assert told == [pytest.approx(0.42), 0]  # the second time nothing is new


def test_in_a_container_what_is_beyond_our_own_work_counts(tried):
    """The driver names the host's process ids there: ours is not among them."""
    code = "told = [gpu.used_by_others({7}, share) for share in (0.0, 0.5, 0.9)]"
    told, _, _ = tried(code, computing=31_007, sampled=5_000_000, pid_1=31_007, sm_1=80, gpu=80)
    assert told == [pytest.approx(0.8), pytest.approx(0.3), 0.0]


def test_the_driver_holds_the_limit_and_it_is_set_back(tried):
    code = (
        "from shoal.peer.power import limited\nwith limited(gpu, 'cuda', 150.0) as duty:\n told = [duty, gpu.limit_w()]"
    )
    told, log, after = tried(code, root=1)
    assert told == [None, 150.0]
    assert after == 250_000
    assert "the driver holds this GPU under 150 W" in log


def test_it_is_set_back_after_an_error_too(tried):
    code = "from shoal.peer.power import limited\ntry:\n with limited(gpu, 'cuda', 150.0):\n  1 / 0\n"
    code += "except ZeroDivisionError:\n told = gpu.limit_w()"
    assert tried(code, root=1)[0] == 250.0


def test_below_the_drivers_lowest_limit_resting_does_the_rest(tried):
    code = "from shoal.peer.power import limited\nwith limited(gpu, 'cuda', 80.0) as duty:\n"
    code += " told = [duty.limit_w, gpu.limit_w()]"
    assert tried(code, root=1)[0] == [80.0, 100.0]


def test_without_the_right_to_set_it_the_peer_rests_and_says_what_is_missing(tried):
    code = "from shoal.peer.power import limited\nwith limited(gpu, 'cuda', 150.0) as duty:\n told = duty.limit_w"
    told, log, after = tried(code)
    assert (told, after) == (150.0, 250_000)
    assert "only root may set the driver's power limit" in log
    assert "sudo nvidia-smi -i GPU-1 -pl 150" in log


@pytest.mark.parametrize(
    ("watts", "facts", "says"), [(400, {}, "takes up to 300 W"), (150, {"power": -1}, "leave it out")]
)
def test_what_cannot_be_held_is_refused_in_one_line(tried, watts, facts, says):
    code = "from shoal.peer.config import PeerError\nfrom shoal.peer.power import limited\ntry:\n"
    code += f" with limited(gpu, 'cuda', {watts}.0):\n  told = 'held'\nexcept PeerError as error:\n told = str(error)"
    told, _, after = tried(code, root=1, **facts)
    assert says in told
    assert after == 250_000


def test_measured_energy_steers_how_long_the_engine_rests(tried):
    """200 W over two looks with a limit of 100: the share falls. The facts change while it runs, as a meter does."""
    code = """
import asyncio, time
from shoal.peer import power
from shoal.peer.duty import Duty
power.LOOK_S = 0.1
duty, began = Duty(100.0), time.monotonic()
duty.share = 1.0
async def main():
    steering = asyncio.create_task(power.steer(duty, gpu, lambda: time.monotonic() - began))
    for _ in range(12):
        with open(os.environ['FACTS'], 'a') as file:
            file.write(f'energy {int(200_000 * (time.monotonic() - began))}\\n')
        await asyncio.sleep(0.05)
    steering.cancel()
asyncio.run(main())
told = duty.share
"""
    share = tried(code, energy=0)[0]
    assert 0.05 <= share < 0.6
