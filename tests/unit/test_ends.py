"""The client's ends: embedding, head and tokenizer. That logits are exact is the conformance test's matter."""

from __future__ import annotations

import pytest
import torch
from shoal.blocks import ends as ends_module
from shoal.blocks.checkpoint import resolve
from shoal.blocks.cpu.short import ShortLinear, short_library
from shoal.blocks.ends import load_ends, load_tokenizer
from shoal.blocks.errors import CheckpointError, PromptTooLong
from shoal.blocks.packed import PackedLinear
from tiny_models import VOCAB, save_tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def saved(variant: str, folder):
    return save_tiny(variant, folder), resolve(str(folder))


@pytest.mark.parametrize("variant", ["gemma2", "granite", "bloom", "opt-post-norm", "gpt2"])
def test_embed_is_what_the_unsplit_model_gives_its_first_block(variant, tmp_path) -> None:
    model, checkpoint = saved(variant, tmp_path)
    seen: list[torch.Tensor] = []
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))

    def record(_, given, named) -> None:
        seen.append(given[0] if given else named["hidden_states"])

    blocks[0].register_forward_pre_hook(record, with_kwargs=True)
    tokens = torch.arange(3, 20)
    with torch.inference_mode():
        model(tokens[None])
    found = load_ends(checkpoint, dtype=torch.float32).embed(tokens, torch.arange(17))
    assert (found - seen[0][0]).abs().max() <= 1e-6


def test_logits_are_float32_whatever_the_dtype(tmp_path) -> None:
    _, checkpoint = saved("llama", tmp_path)
    ends = load_ends(checkpoint, dtype=torch.bfloat16)
    hidden = ends.embed(torch.tensor([4, 5]), torch.tensor([0, 1]))
    assert hidden.dtype == torch.bfloat16
    logits = ends.logits(hidden)
    assert logits.dtype == torch.float32
    assert logits.shape == (2, VOCAB)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_in_our_c_takes_the_embedding_s_memory_and_gives_what_torch_gives(dtype: torch.dtype) -> None:
    if short_library(dtype) is None:
        pytest.skip("there is no C compiler, or torch is as good")
    table = torch.randn(1024, 128).to(dtype)
    head = ends_module._linear(table, tied=True)
    assert isinstance(head, ShortLinear)
    assert head.weight.data_ptr() == table.data_ptr()
    for tokens in (1, 5, 70):
        hidden = torch.randn(tokens, 128).to(dtype)
        found, expected = head(hidden), hidden @ table.T
        assert found.dtype == dtype
        assert torch.allclose(found, expected, atol=1e-4 if dtype == torch.float32 else 0.25)


def test_a_head_that_our_c_does_not_fit_is_packed(monkeypatch) -> None:
    assert isinstance(ends_module._linear(torch.randn(1021, 128), tied=False), PackedLinear)
    monkeypatch.setattr(ends_module, "short_library", lambda _: None)
    assert isinstance(ends_module._linear(torch.randn(1024, 128), tied=False), PackedLinear)


@pytest.mark.parametrize("variant", ["gpt2", "opt"])
def test_a_learned_position_past_the_context_is_refused(variant, tmp_path) -> None:
    _, checkpoint = saved(variant, tmp_path)
    ends = load_ends(checkpoint)
    last = ends.spec.max_position - 1
    assert ends.embed(torch.tensor([4]), torch.tensor([last])).shape == (1, 64)
    with pytest.raises(PromptTooLong, match=f"context of {ends.spec.max_position} tokens"):
        ends.embed(torch.tensor([4]), torch.tensor([last + 1]))


def test_a_checkpoint_without_embedding_is_refused(tmp_path) -> None:
    _, checkpoint = saved("llama", tmp_path)

    class Lacking:
        config = checkpoint.config
        read = checkpoint.read

        @staticmethod
        def tensor_names():
            return checkpoint.tensor_names() - {"model.embed_tokens.weight"}

    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight"):
        load_ends(Lacking())


def test_the_tokenizer_comes_from_the_checkpoint_s_folder(tmp_path) -> None:
    _, checkpoint = saved("llama", tmp_path)
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(checkpoint)
    plain = Tokenizer(models.WordLevel({"[UNK]": 0, "def": 1, "shoal": 2}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(tmp_path)
    assert load_tokenizer(checkpoint)("def shoal")["input_ids"] == [1, 2]
