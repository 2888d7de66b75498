"""Distributed models against transformers' own, over blocks in this process: every rule that is the client's."""

from __future__ import annotations

import gc
import time

import pytest
import torch
import transformers
from local_sessions import LocalSwarm, load_local
from shoal.client.model import lanes
from shoal.client.model.cache import SessionCache
from shoal.client.model.heads import DistributedModelForCausalLM, DistributedModelForSequenceClassification
from shoal.client.model.modeling import DistributedModel
from tiny_models import VOCAB, save_tiny, tokens
from transformers import set_seed

# Of each way in which families place, scale, norm or score tokens, one.
VARIANTS = ("llama", "mistral", "gemma2", "granite", "falcon-rw", "bloom", "opt", "opt-post-norm", "gpt2", "gpt-neox")
PAD = 0
NEW = 12


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """The model of transformers, and ours."""
    folder = tmp_path_factory.mktemp(request.param)
    whole = save_tiny(request.param, folder)
    return whole, DistributedModelForCausalLM(load_local(folder)).eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return save_tiny("llama", folder), folder


@pytest.fixture
def model(llama) -> DistributedModelForCausalLM:
    return DistributedModelForCausalLM(load_local(llama[1])).eval()


def swarm_of(model: DistributedModelForCausalLM) -> LocalSwarm:
    return model.loaded.blocks.swarm


def padded(lengths: tuple[int, ...], *, left: bool = True) -> dict[str, torch.Tensor]:
    """A batch of these lengths."""
    width, ids, mask = max(lengths), [], []
    for seed, length in enumerate(lengths):
        pads, row = [PAD] * (width - length), tokens(length, seed=seed).tolist()
        ids.append(pads + row if left else row + pads)
        mask.append([0] * len(pads) + [1] * length if left else [1] * length + [0] * len(pads))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_logits_of_a_padded_batch_are_those_of_transformers(pair, left) -> None:
    whole, ours = pair
    batch = padded((9, 4, 1, 7), left=left)
    with torch.no_grad():
        expected, found = whole(**batch).logits, ours(**batch).logits
    real = batch["attention_mask"].bool()
    assert (found[real] - expected[real]).abs().max() < 1e-4
    assert not found[~real].any()


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.3, "top_p": 0.9},
        {"num_beams": 4, "num_return_sequences": 2, "do_sample": False},
        {"num_beams": 3, "do_sample": True},
        {"do_sample": False, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"do_sample": False, "use_cache": False},
    ],
    ids=["greedy", "sampling", "beams", "beam-sampling", "processors", "no-cache"],
)
def test_generate_finds_the_tokens_of_transformers(pair, how) -> None:
    whole, ours = pair
    batch = padded((9, 4, 7))
    found = []
    for model in (whole, ours):
        set_seed(5)
        found.append(model.generate(**batch, max_new_tokens=NEW, pad_token_id=PAD, eos_token_id=2, **how))
    assert torch.equal(*found)
    assert swarm_of(ours).open == 0


def test_drafts_by_prompt_lookup_are_taken_back_where_they_are_wrong(llama, model) -> None:
    prompt = tokens(1, 6).repeat(1, 3)
    how = {"max_new_tokens": 20, "do_sample": False, "prompt_lookup_num_tokens": 4, "pad_token_id": PAD}
    assert torch.equal(model.generate(prompt, **how), llama[0].generate(prompt, **how))


def test_beams_send_only_what_their_lane_lacks(model) -> None:
    prompt, beams, new = tokens(1, 40), 4, 12
    model.generate(prompt, max_new_tokens=new, num_beams=beams, do_sample=False, eos_token_id=None, pad_token_id=PAD)
    # Each lane takes the prompt once and a token a step; beams that part send their few last tokens again.
    least = beams * (40 + new - 1)
    assert least <= swarm_of(model).sent <= least + beams * new * 2
    assert swarm_of(model).opened == beams


def test_a_session_goes_on_over_several_generates_as_one_would(llama, model) -> None:
    prompt, more = tokens(2, 7), tokens(2, 3, seed=9)
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    expected = llama[0].generate(prompt, max_new_tokens=10, **how)
    with model.inference_session(max_length=64) as session:
        first = model.generate(prompt, max_new_tokens=4, **how)
        assert session.position == 10  # the last token was not run
        second = model.generate(max_new_tokens=6, **how)
        assert torch.equal(torch.cat([first, second], dim=1), expected)
        assert swarm_of(model).sent == 2 * session.position == 2 * 16
        third = model.generate(more, max_new_tokens=5, **how)
        whole = torch.cat([expected, more], dim=1)
        assert torch.equal(third, llama[0].generate(whole, max_new_tokens=5, **how)[:, expected.shape[1] :])

        session.position = 7
        assert torch.equal(model.generate(max_new_tokens=10, **how), expected[:, 7:])
        session.position = 0
        assert torch.equal(model.generate(prompt, max_new_tokens=10, **how), expected)
    assert swarm_of(model).open == 0


def test_what_peers_are_to_remember_is_what_their_kv_holds(model) -> None:
    prompt, how = tokens(1, 40), {"do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    with model.inference_session(max_length=64) as session:
        model.generate(prompt, max_new_tokens=12, **how)
        session.position = 30
        model.generate(tokens(1, 5, seed=8), max_new_tokens=4, **how)
        held = session.output_ids[0, : session.position].tolist()
    assert len(held) == 38
    assert swarm_of(model).remembered == [held]
    with torch.no_grad(), model.transformer.h.inference_session(max_length=8) as session:
        session.step(torch.randn(1, 3, model.config.hidden_size))
    assert swarm_of(model).remembered[1:] == [[]]  # these were no tokens


def test_a_session_takes_beams_and_then_other_numbers_of_beams(llama, model) -> None:
    batch, how = padded((6, 3)), {"eos_token_id": None, "pad_token_id": PAD, "do_sample": False}
    with model.inference_session() as session:
        first = model.generate(**batch, max_new_tokens=6, num_beams=3, **how)
        assert torch.equal(first, llama[0].generate(**batch, max_new_tokens=6, num_beams=3, **how))
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 6, dtype=torch.long)], dim=1)
        for beams in (1, 4):
            expected = llama[0].generate(first, attention_mask=mask, max_new_tokens=5, num_beams=beams, **how)
            found = model.generate(max_new_tokens=5, num_beams=beams, session=session, **how)
            assert torch.equal(found, expected[:, first.shape[1] :])
            session.position = first.shape[1]


def test_a_step_that_fails_leaves_the_session_as_it_was(llama, model) -> None:
    prompt, how = tokens(2, 5), {"do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    with model.inference_session(max_length=32) as session:
        model.generate(prompt, max_new_tokens=4, **how)
        swarm_of(model).fails = 1
        with pytest.raises(ConnectionError):
            model.generate(max_new_tokens=4, **how)
        assert session.position == 8
        found = model.generate(max_new_tokens=4, **how)
    assert torch.equal(found, llama[0].generate(prompt, max_new_tokens=8, **how)[:, 9:])


def test_a_cache_grows_and_a_forgotten_one_is_given_back(llama, model, monkeypatch) -> None:
    monkeypatch.setattr(lanes, "LEAST_TOKENS", 64)
    ids = tokens(1, 151)
    with torch.no_grad():
        out = model(ids[:, :2], use_cache=True)
        assert isinstance(out.past_key_values, SessionCache)
        for at in range(2, 151, 149):
            out = model(ids[:, at : at + 149], past_key_values=out.past_key_values)
        assert (out.logits - llama[0](ids).logits[:, -149:]).abs().max() < 1e-3
    assert swarm_of(model).open == 1
    assert swarm_of(model).opened == 2
    del out
    gc.collect()
    end = time.monotonic() + 5
    while swarm_of(model).open and time.monotonic() < end:
        time.sleep(0.01)
    assert swarm_of(model).open == 0


def test_generation_goes_on_from_a_returned_cache(llama, model) -> None:
    prompt, how = tokens(1, 6), {"do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    out = model.generate(prompt, max_new_tokens=4, return_dict_in_generate=True, output_logits=True, **how)
    assert len(out.logits) == 4
    found = model.generate(out.sequences, past_key_values=out.past_key_values, max_new_tokens=4, **how)
    assert torch.equal(found, llama[0].generate(prompt, max_new_tokens=8, **how))


def test_embeddings_in_place_of_tokens(llama, model) -> None:
    prompt = tokens(2, 6)
    embeds = model.get_input_embeddings()(prompt)
    assert torch.equal(embeds, llama[0].get_input_embeddings()(prompt))
    with torch.no_grad():
        assert (model(inputs_embeds=embeds).logits - llama[0](prompt).logits).abs().max() < 1e-4
    how = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": PAD}
    found = model.generate(inputs_embeds=embeds, **how)
    assert torch.equal(found, llama[0].generate(inputs_embeds=embeds.detach(), **how))


def test_hidden_states_parts_and_sub_ranges(llama, model) -> None:
    whole, (prompt, inner) = llama[0], (tokens(2, 6), DistributedModel(model.loaded))
    with torch.no_grad():
        states = whole(prompt, output_hidden_states=True).hidden_states
    assert (inner(prompt).last_hidden_state - states[-1]).abs().max() < 1e-4
    blocks = model.transformer.h
    assert len(blocks) == 4
    assert len(list(blocks)) == 4
    hidden = model.transformer.word_embeddings(prompt)
    assert (blocks[:2](hidden) - states[2]).abs().max() < 1e-4
    assert (blocks[1:3][1](states[2]) - states[3]).abs().max() < 1e-4
    assert (model.lm_head(model.model.norm(blocks(hidden))) - model(prompt).logits).abs().max() < 1e-5
    with blocks[1:3].inference_session(max_length=6) as session:
        parts = [session.step(states[1][:, :4]), session.step(states[1][:, 4:5]), session.step(states[1][:, 5:])]
        assert (torch.cat(parts, dim=1) - states[3]).abs().max() < 1e-4
        session.position = 3
        assert (session.step(states[1][:, 3:]) - states[3][:, 3:]).abs().max() < 1e-4
        session.position = 5
        swapped = session.step(states[1].flip(0)[:, 5:], hypo_ids=torch.tensor([1, 0]))
        assert (swapped - states[3].flip(0)[:, 5:]).abs().max() < 1e-4


def test_losses_are_those_of_transformers(llama, model) -> None:
    ids = tokens(2, 8)
    with torch.no_grad():
        assert abs(float(model(ids, labels=ids).loss - llama[0](ids, labels=ids).loss)) < 1e-4


@pytest.mark.parametrize("by_config", [False, True], ids=["by the call", "by the config"])
def test_a_tuple_where_one_is_asked_for(llama, model, by_config) -> None:
    ids, inner = tokens(2, 8), DistributedModel(model.loaded)
    asked = {} if by_config else {"return_dict": False}
    for each in (model, inner):
        each.config.return_dict = not by_config
    with torch.no_grad():
        loss, logits, cache = model(ids, labels=ids, use_cache=True, **asked)
        expected = llama[0](ids, labels=ids, return_dict=False)
        (states,) = inner(ids, **asked)
        assert model(ids, return_dict=True).logits.shape == logits.shape
        assert model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=PAD).shape == (2, 10)
    assert abs(float(loss - expected[0])) < 1e-4
    assert (logits - expected[1]).abs().max() < 1e-4
    assert isinstance(cache, SessionCache)
    assert states.shape == (2, 8, 64)


def test_sequence_classification(tmp_path) -> None:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_labels=3, pad_token_id=PAD, max_position_embeddings=64,
    )  # fmt: skip
    whole = transformers.LlamaForSequenceClassification(config).eval()
    whole.save_pretrained(tmp_path)
    model = DistributedModelForSequenceClassification(load_local(tmp_path, score=True)).eval()
    for batch in (padded((6, 2, 4)), padded((6, 2, 4), left=False)):
        with torch.no_grad():
            expected = whole(**batch, labels=torch.tensor([0, 2, 1]))
            found = model(**batch, labels=torch.tensor([0, 2, 1]))
        assert (found.logits - expected.logits).abs().max() < 1e-5
        assert abs(float(found.loss - expected.loss)) < 1e-5
    with torch.no_grad():
        (logits,) = model(**batch, return_dict=False)
        assert torch.equal(logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: m(tokens(2, 3).float().unsqueeze(0)), ValueError, "batch of at least one token"),
        (lambda m: m(torch.tensor([[1, VOCAB]])), ValueError, f"Token id {VOCAB} is not"),
        (lambda m: m(tokens(1, 3), attention_mask=torch.ones(1, 2)), ValueError, r"attention_mask has shape \[1, 2\]"),
        (lambda m: m(tokens(1, 3), position_ids=torch.tensor([[0, 2, 3]])), ValueError, "positions of row 0"),
        (lambda m: m(tokens(1, 3), past_key_values=transformers.DynamicCache()), TypeError, "is a DynamicCache"),
        (lambda m: m(tokens(1, 3), output_attentions=True), ValueError, "stays with the peers"),
        (lambda m: m(inputs_embeds=torch.zeros(1, 2, 64, requires_grad=True)), NotImplementedError, "Gradients"),
        (lambda m: m.transformer.h(torch.zeros(1, 2, 64, requires_grad=True)), NotImplementedError, "Gradients"),
        (lambda m: m.transformer.h(torch.zeros(1, 2, 63)), ValueError, r"\[batch, tokens, 64\]"),
        (lambda m: m.transformer.h[3:3], ValueError, "no range of blocks"),
        (lambda m: m.transformer.h[4], IndexError, "range"),
        (lambda m: m.generate(**padded((4, 2), left=False), max_new_tokens=2), ValueError, "pad on the left"),
        (lambda m: m.inference_session(max_length=0).__enter__(), ValueError, "max_length is 0"),
        (lambda m: m.half(), ValueError, "dtype is chosen when the model is loaded"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(model, call, error, says) -> None:
    with pytest.raises(error, match=says) as caught:
        call(model)
    assert "\n" not in str(caught.value)
    assert swarm_of(model).open == 0


def test_limits_of_a_session(model) -> None:
    with model.inference_session(max_length=8) as session:
        model.generate(tokens(1, 4), max_new_tokens=3, pad_token_id=PAD)
        with pytest.raises(ValueError, match="has room for 8 tokens: 6 are in it"):
            model.generate(tokens(1, 4), max_new_tokens=3, pad_token_id=PAD)
        with pytest.raises(ValueError, match="can be set to 0 to 6"):
            session.position = 7
        with pytest.raises(ValueError, match="holds 1 texts; 2 were given"):
            model.generate(tokens(2, 1), max_new_tokens=1)
        with pytest.raises(NotImplementedError, match="Deep prompts"):
            session.step(torch.zeros(1, 1, 64), torch.ones(4, 1, 1, 64))
    with pytest.raises(ValueError, match="closed"):
        session.step(torch.zeros(1, 1, 64))
    with model.transformer.h[:2].inference_session(max_length=4) as part, pytest.raises(ValueError, match="over all"):
        model.generate(tokens(1, 2), session=part, max_new_tokens=1)


def test_guidance_is_refused_in_an_active_session_and_works_elsewhere(llama, model) -> None:
    prompt, how = tokens(1, 6), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
    config = transformers.GenerationConfig(guidance_scale=1.7, **how)
    guided = llama[0].generate(prompt, config)
    assert not torch.equal(guided, llama[0].generate(prompt, **how))
    assert torch.equal(model.generate(prompt, config), guided)
    with model.inference_session() as session:
        for asked in ({"guidance_scale": 1.7, **how}, {"generation_config": config}):
            with pytest.raises(ValueError, match="guidance_scale runs a second text"):
                model.generate(prompt, **asked)
        assert session.position == 0
        with model.use_session(None):
            assert torch.equal(model.generate(prompt, config, session=session), guided)
    with model.inference_session():
        assert torch.equal(model.generate(prompt, guidance_scale=1.0, **how), llama[0].generate(prompt, **how))


def test_a_session_goes_on_behind_beams_with_each_text_s_own_padding(pair) -> None:
    """Fewer are returned of each text than beams were kept, and one text is padded."""
    _, ours = pair
    batch = padded((4, 7))
    how = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2, "do_sample": False, "pad_token_id": PAD,
           "eos_token_id": None}  # fmt: skip
    with ours.inference_session(max_length=64) as session:
        first = ours.generate(**batch, session=session, **how)
        mask = session.output_mask
    wanted = batch["attention_mask"].bool().repeat_interleave(2, 0)
    assert len(first) == 4
    assert torch.equal(mask[:, : wanted.shape[1]], wanted)
    assert mask[:, wanted.shape[1] :].all()
