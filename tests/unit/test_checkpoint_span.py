"""A span read from a checkpoint pages in its own tensors and no others: counted by the kernel, for a whole span."""

from pathlib import Path

import pytest
import torch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.span import Row, SpanOptions, load_span
from test_checkpoint import evict, resident_bytes
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4, vocab_size=4096
)
PAGE_SLACK = 2 * 4096  # a tensor may share its first and last page with its neighbours


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("shard_size", ["1MB", "1GB"])
def test_a_span_pages_in_its_own_tensors_only(tmp_path, quantization, shard_size):
    LlamaForCausalLM(CONFIG).save_pretrained(tmp_path, max_shard_size=shard_size)
    checkpoint = resolve(str(tmp_path))
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert (len(shards) == 1) == (shard_size == "1GB")
    for shard in shards:
        evict(shard)
    span = load_span(checkpoint, range(2, 4), SpanOptions(kv_pages=1, quantization=quantization))
    out = span.forward(torch.randn(3, 256), [Row(pages=[0], position=0, count=3)])
    assert torch.isfinite(out).all()
    own = [name for name in checkpoint.tensor_names() if name.startswith(("model.layers.2.", "model.layers.3."))]
    read = sum(resident_bytes(shard) for shard in shards)
    assert read >= checkpoint.tensor_bytes(own) * (1 if quantization == "none" else 0.9)
    assert read <= checkpoint.tensor_bytes(own) + len(own) * PAGE_SLACK
    held = checkpoint.shards_for(own)
    assert all(resident_bytes(shard) == 0 for shard in shards if shard.name not in held)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_span_whose_weights_were_copied_keeps_no_file_mapped(tmp_path, quantization):
    """Norms are used in the type that they are stored in, so they would stay where they lie."""
    LlamaForCausalLM(CONFIG).to(torch.bfloat16).save_pretrained(tmp_path)
    span = load_span(resolve(str(tmp_path)), range(1, 3), SpanOptions(kv_pages=1, quantization=quantization))
    assert span.dtype == torch.bfloat16
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
