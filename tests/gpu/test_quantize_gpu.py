"""Quantization in place on a CUDA device, against fp32 on the CPU."""

import copy

import pytest
import torch
from shoal.blocks.choices import QUANTIZATIONS
from shoal.blocks.quantize import quantize_
from torch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BOUNDS = {"none": 0.01, "int8": 0.02, "nf4": 0.12, "fp4": 0.14}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.Linear(1024, 2048), nn.LayerNorm(1024)

    def forward(self, x):
        return self.up(self.norm(x))


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1024), (8, 1024), (257, 1024)], ids=str)
@pytest.mark.parametrize("already_there", [False, True], ids=["from cpu", "from cuda"])
def test_error_against_fp32_on_the_cpu(kind, dtype, shape, already_there):
    torch.manual_seed(0)
    exact = Block().eval()
    block = copy.deepcopy(exact).to("cuda" if already_there else "cpu")
    quantize_(block, kind, "cuda", dtype)
    x = torch.randn(shape)
    with torch.inference_mode():
        found, expected = block(x.to("cuda", dtype)), exact(x)
    assert found.dtype == dtype
    assert all(parameter.is_cuda for parameter in block.parameters())
    assert torch.isfinite(found).all()
    error = (found.float().cpu() - expected).norm() / expected.norm()
    assert error < BOUNDS[kind]


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_a_quantized_block_takes_less_memory_than_the_16_bit_one(kind):
    quantize_(nn.Sequential(nn.Linear(4096, 4096, bias=False)), kind, "cuda", torch.bfloat16)  # what all blocks share
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    block = nn.Sequential(nn.Linear(4096, 4096, bias=False))
    quantize_(block, kind, "cuda", torch.bfloat16)
    taken = torch.cuda.memory_allocated() - before
    assert taken < {"int8": 1.05, "nf4": 0.53, "fp4": 0.58}[kind] * 4096 * 4096


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_cpu_and_cuda_agree(kind):
    torch.manual_seed(0)
    first, x = Block(), torch.randn(5, 1024)
    second = copy.deepcopy(first)
    quantize_(first, kind, "cpu", torch.float32)
    quantize_(second, kind, "cuda", torch.float16)
    with torch.inference_mode():
        on_cpu, on_gpu = first(x), second(x.cuda().half()).float().cpu()
    assert (on_cpu - on_gpu).norm() / on_cpu.norm() < 0.01
