"""A mixture's experts in our own kernels, in Triton's interpreter, against transformers' own module in fp32."""

from __future__ import annotations

import interpreted  # noqa: F401
import pytest
import torch
from transformers import GptOssConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

# isort: split
from shoal.blocks.kernels import dequantize, experts, grouped
from shoal.blocks.kernels.experts import KernelExperts

HIDDEN, INNER = 128, 64
SIZES = {"hidden_size": HIDDEN, "intermediate_size": INNER}
FAMILIES = {
    "mixtral": (MixtralExperts, MixtralConfig(**SIZES, num_local_experts=4), 4),
    "qwen3_moe": (Qwen3MoeExperts, Qwen3MoeConfig(hidden_size=HIDDEN, moe_intermediate_size=INNER, num_experts=9), 9),
    "gpt_oss": (GptOssExperts, GptOssConfig(**SIZES, num_local_experts=5), 5),
}
CPU = torch.device("cpu")


def fused_experts(family: str) -> torch.nn.Module:
    made, config, _ = FAMILIES[family]
    config._experts_implementation = "eager"
    module = made(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.1
        parameter.data = values.half().float()  # what fp16 holds exactly
    return module.eval()


def routed(count: int, number: int, each: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn((count, HIDDEN), generator=generator).half()
    scores, indices = torch.topk(torch.rand((count, number), generator=generator), each, dim=-1)
    return hidden, indices, scores


def exact(family: str, module: KernelExperts, *given: torch.Tensor) -> torch.Tensor:
    """transformers' module in fp32, with the weights that the kernels multiply with."""
    reference = fused_experts(family)
    for name, matrix in (("gate_up_proj", module.up), ("down_proj", module.down)):
        weight = dequantize.dequantize(matrix.operands(), torch.empty(matrix.out_features, matrix.in_features))
        weight = weight.view(module.experts, -1, matrix.in_features)
        held = getattr(reference, name)
        held.data = (weight.transpose(1, 2) if reference.is_transposed else weight).reshape(held.shape)
    hidden, indices, weights = given
    with torch.inference_mode():
        return reference(hidden.float(), indices, weights.float())


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got.float() - want).norm() / want.norm())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "count"), [("none", 3), ("int8", 1), ("nf4", 1), ("nf4", 21), ("fp4", 3)])
def test_experts_give_what_transformers_do(family: str, kind: str, count: int) -> None:
    module = KernelExperts(fused_experts(family), kind, CPU, torch.float16)
    given = routed(count, FAMILIES[family][2], 2)
    out = module(*given)
    assert out.dtype == torch.float16
    assert error(out, exact(family, module, *given)) < 2e-3


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_weights_are_quantized_as_bitsandbytes_does(kind: str) -> None:
    from shoal.blocks.kernels.linear import kernel_linear

    held = fused_experts("mixtral")
    alone = kernel_linear(held.gate_up_proj[2].detach().clone(), None, kind, CPU, torch.float16, cache=None)
    stacked = KernelExperts(held, kind, CPU, torch.float16).up
    whole = dequantize.dequantize(stacked.operands(), torch.empty(stacked.out_features, HIDDEN))
    mine = whole.view(4, -1, HIDDEN)[2]
    if kind == "nf4":  # scales' own scales are shared with the other experts
        assert error(mine, alone.dequantized()) < 5e-3
    else:
        assert torch.equal(mine, alone.dequantized())


@pytest.mark.parametrize(("count", "number", "each"), [(1, 8, 2), (7, 3, 2), (40, 6, 4), (130, 2, 1), (2, 600, 5)])
def test_pairs_are_sorted_by_expert(count: int, number: int, each: int) -> None:
    indices = routed(count, number, each, seed=count)[1]
    pairs = grouped.sort_pairs(indices, number)
    order = torch.sort(indices.reshape(-1), stable=True)
    assert pairs.order.tolist() == order.indices.tolist()
    assert pairs.starts.tolist() == torch.searchsorted(order.values, torch.arange(number + 1)).tolist()


def test_experts_that_there_are_not_count_as_the_nearest() -> None:
    """Routers choose such for states that are no numbers, which anybody may send."""
    wrong, right = torch.tensor([[-7, 2], [1 << 40, 0], [3, 1]]), torch.tensor([[0, 2], [3, 0], [3, 1]])
    found, wanted = grouped.sort_pairs(wrong, 4), grouped.sort_pairs(right, 4)
    for part in ("order", "owners", "starts"):
        assert torch.equal(getattr(found, part), getattr(wanted, part))
    assert wanted.owners.tolist() == [0, 0, 1, 2, 3, 3]


def test_a_token_s_numbers_do_not_depend_on_the_others() -> None:
    module = KernelExperts(fused_experts("qwen3_moe"), "nf4", CPU, torch.float16)
    hidden, indices, weights = routed(6, 9, 3)
    together = module(hidden, indices, weights)
    for row in range(6):
        assert torch.equal(
            module(hidden[row : row + 1], indices[row : row + 1], weights[row : row + 1])[0], together[row]
        )
    indices[1:] = indices[0]  # more of one expert's than a tile holds
    crowd = module(hidden.repeat(8, 1), indices.repeat(8, 1), weights.repeat(8, 1))
    assert torch.equal(crowd[6], crowd[0])
    assert error(crowd[:1], together[:1].float()) < 1e-3


def test_no_tokens() -> None:
    module = KernelExperts(fused_experts("mixtral"), "none", CPU, torch.float16)
    hidden, indices, weights = routed(1, 4, 2)
    assert module(hidden[:0], indices[:0], weights[:0]).shape == (0, HIDDEN)


def test_what_fits() -> None:
    assert experts.fits(fused_experts("gpt_oss"))
    config = MixtralConfig(hidden_size=64, intermediate_size=96, num_local_experts=2)
    config._experts_implementation = "eager"
    assert not experts.fits(MixtralExperts(config))  # 96 columns are no whole blocks
    assert not experts.fits(torch.nn.Linear(64, 64))
