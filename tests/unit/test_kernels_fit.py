"""That kernels fit on GPUs with less shared memory than the one they were measured on: compiled for one, not run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from shoal.blocks.errors import UnsupportedDevice
from shoal.blocks.kernels.fit import launch_what_fits
from triton.runtime.errors import OutOfResources

SMALL = 101_376  # bytes of shared memory that a program may have by compute capability 8.6, 8.9 and 12.0
SHARED = """
import sys
import torch
import triton
from shoal.blocks.kernels.prefill import _prefill, _shapes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BF16, INTS = "*bf16", ("slot_stride", "head_stride", "slot_scale_stride", "head_scale_stride", "q_stride", "window")
keys, stages, warps = _shapes(torch.bfloat16, 256, 128, int(sys.argv[1]))[-1]
constants = dict(
    KV_HEADS=4, GROUP=2, BLOCK_M=128, BLOCK_N=keys, DIM=256, BLOCK_DIM=256, WINDOWED=True, CAPPED=True, SINKS=False,
    SCALED=False, WEIGHT=triton.language.bfloat16, SHARED=sys.argv[1] != "1", STAGES=stages, EARLY=False,
)
types = dict.fromkeys(("q_ptr", "keys_ptr", "values_ptr", "sinks_ptr", "out_ptr"), BF16)
types |= {"key_scale_ptr": "*i32", "value_scale_ptr": "*i32", "table_ptr": "*i32"}
types |= {"parts_ptr": "*fp32", "sums_ptr": "*fp32", "scale": "fp32", "softcap": "fp32"}
types |= dict.fromkeys(INTS, "i32") | dict.fromkeys(constants, "constexpr")
pointers = [at for at, name in enumerate(_prefill.arg_names) if name.endswith("_ptr") or name in INTS[:5]]
source = ASTSource(
    fn=_prefill, signature={name: types[name] for name in _prefill.arg_names},
    constexprs={(_prefill.arg_names.index(name),): value for name, value in constants.items()},
    attrs={(at,): [["tt.divisibility", 16]] for at in pointers},
)
compiled = triton.compile(source, target=GPUTarget("cuda", 86, 32), options={"num_warps": warps})
print(compiled.metadata.shared)
"""


def test_heads_of_256_fit_on_a_small_gpu(tmp_path) -> None:
    """Gemma's, in the smallest of the shapes, with all that takes room: a window, a cap, and keys that are shared."""
    done = subprocess.run(
        [sys.executable, "-c", SHARED, "2"], capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SMALL / 4 < int(done.stdout) <= SMALL


def launched(most: int, shapes=(64, 32, 16)) -> tuple[int, list[int]]:
    """The shape that is taken where one has room for `most`, and all that were tried."""
    tried: list[int] = []

    def launch(shape: int) -> None:
        tried.append(shape)
        if shape > most:
            raise OutOfResources(1024 * shape, 1024 * most, "shared memory")

    return launch_what_fits(("a case with room for", most), shapes, launch), tried


def test_the_first_shape_that_fits_is_taken_and_kept() -> None:
    assert launched(64) == (64, [64])
    assert launched(40) == (32, [64, 32])
    assert launched(40) == (32, [32])
    with pytest.raises(
        UnsupportedDevice, match=r"has 8192 bytes of shared memory.* needs 16384: choose another --dtype"
    ):
        launched(8)
    with pytest.raises(UnsupportedDevice):
        launched(8)


def test_other_errors_are_not_taken_for_it() -> None:
    def launch(_: int) -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        launch_what_fits("another case", (2, 1), launch)
