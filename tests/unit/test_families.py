"""Families as data: who is served, and which tensors of a checkpoint are whose."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from shoal.blocks import parts
from shoal.blocks.errors import UnsafeCheckpoint, UnsupportedFamily
from shoal.blocks.families import FAMILIES, family_of, supported_families
from shoal.blocks.parts import Placement, library, load_parts
from shoal.blocks.spec import spec_of

SERVED = (
    "Llama, Mistral, Mixtral, Qwen2, Qwen3, Qwen3-MoE, Gemma 2, Gemma 3, Phi-3, OLMo 2, GLM-4, Granite, gpt-oss, "
    "Falcon, BLOOM, OPT, GPT-2, GPT-NeoX"
)


def test_the_promised_families_are_served() -> None:
    assert supported_families() == SERVED


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_named_classes_are_in_the_installed_library(family) -> None:
    modeling = library(family)
    for name in (family.block, family.rotary, family.alibi):
        assert name is None or hasattr(modeling, name)


@pytest.mark.parametrize("config", [{"model_type": "t5"}, {"model_type": None}, {}, {"model_type": ["llama"]}])
def test_another_family_is_refused_with_the_list(config) -> None:
    with pytest.raises(UnsupportedFamily, match=r"Llama, Mistral, .* GPT-NeoX"):
        family_of(config)


def test_a_family_that_lives_in_the_checkpoint_is_refused_as_code() -> None:
    config = {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    with pytest.raises(UnsafeCheckpoint, match="code"):
        family_of(config)


def test_a_known_family_is_served_by_the_library_though_the_checkpoint_brings_code() -> None:
    assert family_of({"model_type": "phi3", "auto_map": {"AutoConfig": "configuration_phi3.X"}}).name == "Phi-3"


def context(model_type: str, **entries) -> int:
    return spec_of(
        SimpleNamespace(config={"model_type": model_type, "max_position_embeddings": 32768, **entries})
    ).max_position


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
@pytest.mark.parametrize(("entry", "name"), [("rope_scaling", "type"), ("rope_parameters", "rope_type")])
def test_rope_scaling_stretches_the_context_that_it_names(kind, entry, name) -> None:
    """As Qwen2.5's model cards have it."""
    rope = {name: kind, "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 32768}
    assert context("qwen2", **{entry: rope}) == 131072
    assert context("qwen2", **{entry: rope, "max_position_embeddings": 131072}) == 131072
    assert context("qwen2", **{entry: rope, "max_position_embeddings": 200000}) == 200000


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 8.0},  # what Gemma 3 names is stretched already
        {"rope_type": "yarn", "factor": 8.0},
        {"rope_type": "default"},
        {  # Llama 3.2: 131,072
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        None,
    ],
)  # fmt: skip
def test_other_contexts_are_what_the_config_says(rope) -> None:
    assert context("llama", rope_scaling=rope) == 32768
    assert context("llama", rope_scaling=rope) == 32768  # and again, from the same config


def test_tensors_of_a_block_and_of_the_ends() -> None:
    family = FAMILIES["llama"]
    names = {
        "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.10.mlp.up_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    assert family.block_tensors(names, 1) == ["model.layers.1.mlp.up_proj.weight"]
    assert family.end_tensors(names) == ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]
    assert {name for name in names if family.wants(name, range(2, 11), ends=False)} == {
        "model.layers.10.mlp.up_proj.weight"
    }
    assert {name for name in names if family.wants(name, range(0), ends=True)} == set(family.end_tensors(names))


def test_checkpoints_without_the_usual_prefix() -> None:
    names = {"h.0.ln_1.weight", "h.1.ln_1.weight", "wte.weight"}
    assert FAMILIES["gpt2"].block_tensors(names, 1) == ["h.1.ln_1.weight"]
    assert FAMILIES["gpt2"].end_tensors(names) == ["wte.weight"]
    assert FAMILIES["gpt2"].wants("h.1.ln_1.weight", range(1, 2), ends=False)
    assert not FAMILIES["gpt2"].wants("h.0.ln_1.weight", range(1, 2), ends=True)


@pytest.mark.parametrize(("device", "way"), [("cpu", "eager"), ("mps", "eager"), ("cuda", "grouped_mm")])
def test_experts_are_multiplied_together_where_torch_can(monkeypatch, device, way) -> None:
    """Not on Apple's devices, for which neither torch nor transformers has that operation."""

    class SeenError(Exception):
        pass

    def see(_spec, config, _device) -> None:
        raise SeenError(config._experts_implementation)

    monkeypatch.setattr(parts, "_rotary", see)
    spec = spec_of(SimpleNamespace(config={"model_type": "mixtral"}))
    with pytest.raises(SeenError, match=way):
        load_parts(None, spec, range(1), Placement("none", torch.device(device), torch.bfloat16))
