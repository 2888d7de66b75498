"""The engine's benchmark, run as its user does, on tiny shapes: every part runs and says its figures."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

ROOT = Path(__file__).parents[2]
MATMUL_KEYS = {
    *(f"mm70b_{kind}_{rows}" for kind in ("nf4_ratio", "int8_ratio", "nf4_ms") for rows in (1, 2, 4, 8, 16, 32, 64)),
    "mm70b_bf16_ms_1", "mm70b_bitsandbytes_nf4_ratio_1", "mm70b_bf16_error", "mm70b_nf4_error", "mm70b_int8_error",
}  # fmt: skip
GPU_KEYS = {
    "b1_bf16_ms_per_block", "b1_bf16_over_floor", "b1_nf4_speedup", "b16_nf4_speedup", "b32_nf4_speedup",
    "b32_int8_speedup", "host_ms_per_step", "span_tokens_per_s", "node_tokens_per_s", "stall_ratio",
    "stall_crowd_one_ratio", "stall_crowd_one_p95_ratio", "stall_crowd_many_ratio", "stall_crowd_many_p95_ratio",
    "prefix_hit_ratio", "kv_waste_percent", "kv_bytes_per_token_per_block_bf16", "hf_eager_ms_per_block",
    "bf16_32_blocks_single_tokens_per_s", "nf4_32_blocks_b32_tokens_per_s", "70b_nf4_20_blocks_b32_tokens_per_s",
    "mixed_0_16_ms", "generic_b32_ms_per_block", "error_bf16", "error_nf4_own", "error_int8", "batch_effect_nf4_32",
}  # fmt: skip
# All but what starts processes.
GPU_PARTS = "floors,matmul,decode,errors,mixed,generic,requests,stall,prefix,node,deep,wide,eager"
CPU_KEYS = {f"cpu_{dtype}_{batch}_speedup" for dtype in ("fp32", "bf16") for batch in ("single", "8")}
CPU_KEYS |= {"ppl_kv_auto", "ppl_kv_int8"}
PROCESS_KEYS = {"idle_peer_beyond_weights_mb", "idle_process_rss_mb"}


def bench(*arguments):
    command = [str(ROOT / "scripts" / "bench"), "engine", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


def look_at(figures, keys, said):
    assert keys <= set(figures)
    assert all(isinstance(value, float | int) for value in figures.values())
    assert all(value == 0 for name, value in figures.items() if name.startswith("nan_"))
    assert all(value == 1 for name, value in figures.items() if name.endswith("_finite"))
    assert all(name in said for name in keys)


def test_every_part_for_gpus_runs_on_tiny_shapes(tmp_path):
    found = tmp_path / "found.json"
    done = bench("--tiny", "--gpu", "--only", GPU_PARTS, "--json", found)
    assert done.returncode == 0, done.stderr
    look_at(json.loads(found.read_text()), GPU_KEYS | MATMUL_KEYS, done.stdout)


@pytest.fixture
def parts(monkeypatch):
    """The benchmark's modules can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "benches"))


@pytest.fixture
def here(parts):
    """The benchmark as a function: to start it as a program takes seconds. It sets the number of torch's threads."""
    import engine

    before = torch.get_num_threads()
    yield lambda *arguments: engine.main([*map(str, arguments)])
    torch.set_num_threads(before)


def test_every_part_for_cpus_runs_on_tiny_shapes(here, tmp_path, capfd):
    found = tmp_path / "found.json"
    status, said = here("--tiny", "--only", "speed,perplexity", "--json", found), capfd.readouterr()
    assert status == 0, said.err
    look_at(json.loads(found.read_text()), CPU_KEYS, said.out)


def test_a_part_that_fails_leaves_the_others_and_an_exit_status(tmp_path):
    found = tmp_path / "found.json"
    done = bench("--gpu", "--tiny", "--only", "floors,eager", "--seconds", "-1", "--json", found)
    assert done.returncode == 1
    assert "floors: no time is left" in done.stderr
    assert "Failed: floors, eager" in done.stdout


def test_an_unknown_part_is_one_line():
    done = bench("--only", "speed,nothing")
    assert done.returncode == 2
    assert done.stderr == "bench engine: no part is named nothing: choose of speed,perplexity,errors,idle\n"


def test_every_goal_is_held_against_a_figure_that_some_part_finds(parts):
    from _engine_goals import AT_LEAST, AT_MOST

    assert AT_MOST.keys() | AT_LEAST.keys() <= GPU_KEYS | MATMUL_KEYS | CPU_KEYS | PROCESS_KEYS


@pytest.mark.parametrize(("rates", "found"), [((5.0, 7.0), 7.0), ((5.0, None), 5.0), ((None,), None)])
def test_transformers_batching_is_a_figure_unless_no_run_ended(parts, monkeypatch, rates, found):
    """Its own runs take too long without a GPU: here their rates are given, and None for one that fails."""
    import _engine_hf
    from _engine_models import Bench

    left = list(rates)

    def rate(*_):
        if left[0] is None:
            raise RuntimeError("no memory")
        return left.pop(0)

    monkeypatch.setattr(_engine_hf, "build", lambda *_: None)
    monkeypatch.setattr(_engine_hf, "release", lambda _: None)
    monkeypatch.setattr(_engine_hf, "_batched_rate", rate)
    bench_on_gpu = Bench(torch.device("cuda"), tiny=True)
    if found is None:
        with pytest.raises(RuntimeError, match="no memory"):
            _engine_hf.batching(bench_on_gpu)
    else:
        assert _engine_hf.batching(bench_on_gpu) == {"hf_cb_tokens_per_s": found}


@contextmanager
def running(program):
    """The id of a Python process that has written a line."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield process.pid
        finally:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()


def test_the_memory_of_a_peer_is_that_of_its_daemon_too(parts):
    import _engine_host

    idle = "import time; print(flush=True); time.sleep(60)"
    with running(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {idle!r}])") as pid:
        held = _engine_host._memory(SimpleNamespace(pid=pid))
    assert min(held.process_mb, held.daemon_mb) > 4  # no Python gets on with less
    assert held.resident_mb == held.process_mb + held.daemon_mb >= held.share_mb > 0
    with running(idle) as pid, pytest.raises(RuntimeError, match="without its network daemon"):
        _engine_host._memory(SimpleNamespace(pid=pid))
