"""The engine's benchmark, run as its user does, on tiny shapes: every part runs and says its figures."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GPU_KEYS = {
    "b1_bf16_ms_per_block", "b1_bf16_over_floor", "b1_nf4_speedup", "b16_nf4_speedup", "b32_nf4_speedup",
    "b32_int8_speedup", "host_ms_per_step", "span_tokens_per_s", "node_tokens_per_s", "stall_ratio",
    "prefix_hit_ratio", "kv_waste_percent", "kv_bytes_per_token_per_block_bf16", "hf_eager_ms_per_block",
    "bf16_32_blocks_single_tokens_per_s", "nf4_32_blocks_b32_tokens_per_s", "70b_nf4_20_blocks_b32_tokens_per_s",
    "mixed_0_16_ms", "generic_b32_ms_per_block", "error_bf16", "error_nf4_own", "error_int8", "batch_effect_nf4_32",
}  # fmt: skip
# All but what starts processes.
GPU_PARTS = "floors,matmul,decode,errors,mixed,generic,requests,stall,prefix,node,deep,wide,eager"
CPU_KEYS = {"cpu_fp32_single_speedup", "cpu_bf16_8_speedup", "ppl_kv_auto", "ppl_kv_int8"}


def bench(*arguments):
    command = [str(ROOT / "scripts" / "bench"), "engine", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [(("--gpu", "--only", GPU_PARTS), GPU_KEYS), (("--only", "speed,perplexity"), CPU_KEYS)],
    ids=["gpu", "cpu"],
)
def test_every_part_runs_on_tiny_shapes(arguments, keys, tmp_path):
    found = tmp_path / "found.json"
    done = bench("--tiny", *arguments, "--json", found)
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())
    assert keys <= set(figures)
    assert all(isinstance(value, float | int) for value in figures.values())
    assert all(value == 0 for name, value in figures.items() if name.startswith("nan_"))
    assert all(value == 1 for name, value in figures.items() if name.endswith("_finite"))
    assert all(name in done.stdout for name in keys)


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
