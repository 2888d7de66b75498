"""The names and formats under which checkpoints hold the same weights; and checkpoints that lack some."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.ends import load_ends
from shoal.blocks.errors import CheckpointError
from shoal.blocks.span import Row, SpanOptions, load_span
from shoal.blocks.spec import spec_of
from tiny_models import save_tiny

OPTIONS = SpanOptions(kv_pages=4, dtype=torch.float32)
TOKENS = list(range(5, 25))


@dataclass
class Held:
    """A checkpoint whose tensors are in memory; `asked` records what was read."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def __post_init__(self) -> None:
        self.asked: set[str] = set()

    def tensor_names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def read(self, names) -> dict[str, torch.Tensor]:
        self.asked |= set(names := list(names))
        return {name: self.tensors[name] for name in names}


def save(variant: str, folder) -> tuple[Any, Held]:
    model = save_tiny(variant, folder)
    checkpoint = resolve(str(folder))
    return model, Held(checkpoint.config, checkpoint.read(checkpoint.tensor_names()))


def logits(held: Held) -> torch.Tensor:
    span, ends = load_span(held, range(4), OPTIONS), load_ends(held, dtype=torch.float32)
    hidden = ends.embed(torch.tensor(TOKENS), torch.arange(len(TOKENS)))
    return ends.logits(span.forward(hidden, [Row([1, 2], 0, len(TOKENS))]))


@torch.inference_mode()
def unsplit(model) -> torch.Tensor:
    return model(torch.tensor([TOKENS])).logits[0]


@pytest.mark.parametrize(
    ("variant", "prefix"), [("gpt2", "transformer."), ("bloom", "transformer."), ("opt", "model."), ("llama", "model.")]
)
def test_names_without_the_body_s_prefix(variant, prefix, tmp_path) -> None:
    model, held = save(variant, tmp_path)
    held.tensors = {name.removeprefix(prefix): tensor for name, tensor in held.tensors.items()}
    assert (logits(held) - unsplit(model)).abs().max() <= 1e-4


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_model_of_a_checkpoint_with_images(prefix, tmp_path) -> None:
    model, held = save("gemma3", tmp_path)
    held.tensors = {name.replace("model.", prefix, 1): tensor for name, tensor in held.tensors.items()}
    held.tensors["vision_tower.layers.0.weight"] = torch.zeros(1)
    held.config = {"model_type": "gemma3", "text_config": held.config}
    assert (logits(held) - unsplit(model)).abs().max() <= 1e-4
    assert "vision_tower.layers.0.weight" not in held.asked


def test_a_head_beside_a_tied_embedding_is_the_head(tmp_path) -> None:
    """The library's rule: where a checkpoint has both and they differ, its config is taken to be wrong."""
    model, held = save("llama-tied", tmp_path)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    held.tensors["lm_head.weight"] = model.lm_head.weight.data
    assert (logits(held) - unsplit(model)).abs().max() <= 1e-4


def test_a_missing_head_is_named(tmp_path) -> None:
    _, held = save("llama", tmp_path)
    del held.tensors["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight"):
        load_ends(held)


@pytest.mark.parametrize("variant", ["mixtral", "qwen3-moe"])
def test_experts_one_by_one_and_stacked(variant, tmp_path) -> None:
    model, held = save(variant, tmp_path)
    assert any(re.search(r"experts\.3\.", name) for name in held.tensors)
    one_by_one = logits(held)
    held.tensors = {name: tensor.data for name, tensor in model.state_dict().items()}
    assert not any(re.search(r"experts\.3\.", name) for name in held.tensors)
    assert (one_by_one - unsplit(model)).abs().max() <= 1e-4
    assert torch.equal(logits(held), one_by_one)


def test_experts_in_mxfp4(tmp_path) -> None:
    """gpt-oss as it is published: pairs of 4-bit floats in a byte, 32 of them to a power-of-two scale."""
    model, held = save("gpt-oss", tmp_path)
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = torch.cat([values, -values])
    generator = torch.Generator().manual_seed(1)
    for name in [name for name in held.tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        count, rows, columns = held.tensors.pop(name).shape
        codes = torch.randint(0, 16, (count, columns, rows // 32, 32), generator=generator)
        scales = torch.randint(122, 126, (count, columns, rows // 32), generator=generator)
        held.tensors[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        held.tensors[f"{name}_scales"] = scales.to(torch.uint8)
        plain = values[codes] * torch.exp2(scales - 127.0)[..., None]
        model.get_parameter(name).data = plain.reshape(count, columns, rows).transpose(1, 2).contiguous()
    held.config = {**held.config, "quantization_config": {"quant_method": "mxfp4"}}
    assert (logits(held) - unsplit(model)).abs().max() <= 1e-4


def test_other_stored_quantizations_are_refused(tmp_path) -> None:
    _, held = save("llama", tmp_path)
    held.config = {**held.config, "quantization_config": {"quant_method": "awq"}}
    with pytest.raises(CheckpointError, match="stored as awq"):
        load_span(held, range(1), OPTIONS)


def test_a_span_reads_its_blocks_and_the_ends_read_none(tmp_path) -> None:
    _, held = save("mixtral", tmp_path)
    load_span(held, range(1, 3), OPTIONS)
    assert held.asked == {name for name in held.tensors if name.startswith(("model.layers.1.", "model.layers.2."))}
    held.asked.clear()
    load_ends(held)
    assert held.asked == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    "lost",
    [
        "layers.1.mlp.experts.2.w3.weight",
        "layers.1.mlp.experts.0.w1.weight",
        "layers.1.self_attn.q_proj.weight",
        "layers.1.input_layernorm.weight",
    ],
)
def test_a_missing_tensor_is_named(lost, tmp_path) -> None:
    _, held = save("mixtral", tmp_path)
    del held.tensors["model." + lost.replace("mlp.", "block_sparse_moe.")]
    with pytest.raises(CheckpointError, match="lacks"):
        load_span(held, range(1, 2), OPTIONS)


def test_a_tensor_of_another_shape_is_refused(tmp_path) -> None:
    _, held = save("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    held.tensors[name] = held.tensors[name][:-1]
    with pytest.raises(CheckpointError, match="block 0 have other shapes"):
        load_span(held, range(1), OPTIONS)


def test_a_text_part_that_names_no_type_has_that_of_the_whole():
    """As in Gemma 3's published configs."""
    text = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    config = {"model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16"}
    assert spec_of(SimpleNamespace(config=config)).dtype is torch.bfloat16
    text["torch_dtype"] = "float16"
    assert spec_of(SimpleNamespace(config=config)).dtype is torch.float16
