"""The names and formats under which checkpoints hold the same weights; and checkpoints that lack some."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from shoal.blocks.checkpoint import Checkpoint, resolve
from shoal.blocks.ends import load_ends
from shoal.blocks.errors import CheckpointError, StoredOtherwise
from shoal.blocks.span import Row, SpanOptions, load_span
from shoal.blocks.spec import spec_of
from shoal.client.model.loading import SCORE, Options, open_model
from tiny_models import save_tiny

OPTIONS = SpanOptions(kv_pages=4, dtype=torch.float32)
TOKENS = list(range(5, 25))
PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


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


FP8 = {"quant_method": "compressed-tensors", "format": "float-quantized"}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),  # of gpt-oss alone
        ({"quantization_config": {"load_in_8bit": True}}, "an unknown quantization"),
        ({"compression_config": FP8}, "compressed-tensors"),
    ],
)
def test_stored_quantizations_that_the_config_tells_of_are_refused(entry, says, tmp_path) -> None:
    _, held = save("llama", tmp_path)
    held.config = {**held.config, **entry}
    for load in (lambda: load_span(held, range(1), OPTIONS), lambda: load_ends(held)):
        with pytest.raises(StoredOtherwise, match=f"weights are stored as {says}, which is not read"):
            load()
    assert not held.asked


def test_a_stored_quantization_of_the_text_part_is_refused() -> None:
    text = {"model_type": "gemma3_text", "compression_config": FP8}
    with pytest.raises(StoredOtherwise, match="stored as compressed-tensors"):
        spec_of(SimpleNamespace(config={"model_type": "gemma3", "text_config": text}))


@pytest.mark.parametrize(
    "beside",
    ["weight_scale", "weight_scale_inv", "SCB", "weight_packed", "qweight", "weight.absmax"],
)
def test_scales_beside_weights_are_refused_by_name_alone(beside, tmp_path) -> None:
    _, held = save("llama", tmp_path)
    name = f"model.layers.2.mlp.up_proj.{beside}"
    names = held.tensor_names() | {name}
    unread = SimpleNamespace(config=held.config, tensor_names=lambda: names)
    with pytest.raises(StoredOtherwise, match=f"scales \\({re.escape(name)}\\), which is not read"):
        spec_of(unread)


def test_scales_of_what_is_not_used_are_nobody_s_matter(tmp_path) -> None:
    _, held = save("llama", tmp_path)
    names = held.tensor_names() | {"vision_tower.layers.0.weight_scale"}
    assert spec_of(SimpleNamespace(config=held.config, tensor_names=lambda: names)).n_blocks == 4


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("model.layers.0.self_attn.q_proj.weight", lambda held: load_span(held, range(1), OPTIONS)),
        ("model.layers.0.block_sparse_moe.experts.2.w3.weight", lambda held: load_span(held, range(1), OPTIONS)),
        ("model.embed_tokens.weight", load_ends),
        ("lm_head.weight", load_ends),
    ],
)
def test_weights_that_are_no_wide_floats_are_refused(dtype, name, load, tmp_path) -> None:
    """Also where neither the config nor a name tells of it."""
    _, held = save("mixtral", tmp_path)
    held.tensors[name] = held.tensors[name].to(dtype)
    says = re.escape(f"stored as {str(dtype).removeprefix('torch.')} ({name}), which is not read")
    with pytest.raises(StoredOtherwise, match=says):
        load(held)


def test_a_score_head_that_is_no_wide_floats_is_refused(tmp_path) -> None:
    _, held = save("llama", tmp_path)
    save_file({**held.tensors, SCORE: torch.ones(3, 64, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(StoredOtherwise, match=r"stored as int8 \(score\.weight\)"):
        open_model(str(tmp_path), Options(initial_peers=[PEER]), score=True)


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
    text["torch_dtype"] = None
    assert spec_of(SimpleNamespace(config=config)).dtype is torch.bfloat16
    text["torch_dtype"] = "float16"
    assert spec_of(SimpleNamespace(config=config)).dtype is torch.float16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_directory_whose_config_names_no_type_has_that_of_its_embedding(dtype, tmp_path) -> None:
    _, held = save("llama", tmp_path)
    kept = {name: tensor.to(dtype) if "embed" in name else tensor.float() for name, tensor in held.tensors.items()}
    save_file(kept, tmp_path / "model.safetensors")
    silent = {key: value for key, value in held.config.items() if key not in ("dtype", "torch_dtype")}
    (tmp_path / "config.json").write_text(json.dumps(silent))
    found = resolve(str(tmp_path))
    assert spec_of(found).dtype is dtype
    assert load_ends(found).embed(torch.tensor([3]), torch.tensor([0])).dtype is dtype


def test_a_model_of_the_hub_has_one_type_whichever_of_its_shards_are_here(tmp_path) -> None:
    """A peer may lack the embedding that a client has: both must come to the same type."""
    _, held = save("llama", tmp_path)
    save_file({name: tensor.bfloat16() for name, tensor in held.tensors.items()}, tmp_path / "model.safetensors")
    config = {key: value for key, value in held.config.items() if key not in ("dtype", "torch_dtype")}
    part = Checkpoint("org/name", "", tmp_path, config, dict.fromkeys(held.tensors, "model.safetensors"))
    assert spec_of(part).dtype is torch.float32
    part.read(part.tensor_names())
    assert spec_of(part).dtype is torch.float32


def test_gpt_oss_as_it_is_published_computes_in_what_its_experts_become() -> None:
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    assert spec_of(SimpleNamespace(config=config)).dtype is torch.bfloat16
