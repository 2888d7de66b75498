"""Names of prompts' beginnings: what makes two of them equal, and that nothing else does."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from shoal.blocks.spec import spec_of
from shoal.client.prefix import Prefix, Prompt
from shoal.peer.wire import KEY_BYTES, MAX_KEYS
from shoal.routing.route import Hop

TOKENS = tuple(range(1000, 1300))
PREFIX = Prefix(Prompt(TOKENS), b"s" * 32, ("float32", 0), lambda peer_id: "none")
UPSTREAM = (Hop("a", 0, 2), Hop("b", 2, 4))


@pytest.mark.parametrize(("length", "keys"), [(1, 0), (64, 0), (65, 1), (128, 1), (129, 2), (64 * 5000, MAX_KEYS)])
def test_whole_groups_before_the_last_token_have_keys(length, keys):
    found = replace(PREFIX, prompt=Prompt(tuple(range(length)))).keys(())
    assert len(found) == len(set(found)) == keys
    assert all(type(key) is bytes and len(key) == KEY_BYTES for key in found)


def test_prompts_share_the_keys_up_to_where_they_part():
    other = replace(PREFIX, prompt=Prompt((*TOKENS[:150], 7, *TOKENS[151:])))
    same = [a == b for a, b in zip(PREFIX.keys(UPSTREAM), other.keys(UPSTREAM), strict=True)]
    assert same == [True, True, False, False]


def test_an_equal_group_behind_another_beginning_is_another():
    other = replace(PREFIX, prompt=Prompt((7, *TOKENS[1:])))
    assert not set(PREFIX.keys(())) & set(other.keys(()))


def test_numbers_that_run_together_stay_apart():
    one, two = (Prompt((first, second, *range(70))) for first, second in ((1, 23), (12, 3)))
    assert replace(PREFIX, prompt=one).keys(()) != replace(PREFIX, prompt=two).keys(())


@pytest.mark.parametrize(
    ("changes", "upstream"),
    [
        ({"secret": b"t" * 32}, UPSTREAM),
        ({"form": ("bfloat16", 0)}, UPSTREAM),
        ({"form": ("float32", 2)}, UPSTREAM),
        ({"describe": lambda peer_id: "nf4" if peer_id == "a" else "none"}, UPSTREAM),
        ({"prompt": Prompt(TOKENS, kind=1)}, UPSTREAM),
        ({}, ()),
        ({}, UPSTREAM[:1]),
        ({}, (Hop("c", 0, 2), UPSTREAM[1])),
        ({}, (Hop("a", 0, 1), Hop("b", 1, 4))),
    ],
)
def test_all_that_the_kv_depends_on_is_in_the_key(changes, upstream):
    assert not set(replace(PREFIX, **changes).keys(upstream)) & set(PREFIX.keys(UPSTREAM))
    assert replace(PREFIX).keys(UPSTREAM) == PREFIX.keys(UPSTREAM)


def test_users_of_one_client_share_no_name_neither_with_hops_nor_in_its_own_memory():
    one, other, nobody = (replace(PREFIX, prompt=Prompt(TOKENS, user=user)) for user in ("one", "other", ""))
    for mine, theirs in itertools.permutations((one, other, nobody), 2):
        for begun, ended in ((mine, theirs), (mine, theirs.after(TOKENS)), (mine.after(TOKENS), theirs)):
            assert not set(begun.groups) & set(ended.groups)
            assert not set(begun.keys(UPSTREAM)) & set(ended.keys(UPSTREAM))


def test_a_user_finds_what_the_same_user_left():
    one = replace(PREFIX, prompt=Prompt(TOKENS, user="one"))
    again = replace(PREFIX, prompt=Prompt((*TOKENS, *range(90)), awaited=True, user="one"))
    left = one.after(TOKENS)
    assert left.groups == again.groups[: len(left.groups)]
    assert left.keys(UPSTREAM) == again.keys(UPSTREAM)[:4]


def test_only_tokens_that_begin_so_and_go_on_may_use_what_hops_hold():
    assert PREFIX.begins(TOKENS, 64)
    assert PREFIX.begins([*TOKENS[:64], 5], 64)
    assert not PREFIX.begins(TOKENS[:64], 64)
    assert not PREFIX.begins([5, *TOKENS[1:]], 64)


class Stored:
    """A checkpoint's config and nothing else."""

    def __init__(self, **config) -> None:
        shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
        self.config = {"intermediate_size": 64, "max_position_embeddings": 4096, **shape, **config}


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({"model_type": "llama"}, [0, 0, 0]),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, [0, 0, 0]),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, [10, 128, 129]),
        (
            {
                "model_type": "phi3", "original_max_position_embeddings": 128, "pad_token_id": 0,
                "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
            },
            [0, 0, 1],
        ),
    ],
)  # fmt: skip
def test_prompts_whose_length_changes_the_keys_are_of_different_kinds(config, kinds):
    spec = spec_of(
        Stored(architectures=[{"llama": "LlamaForCausalLM", "phi3": "Phi3ForCausalLM"}[config["model_type"]]], **config)
    )
    assert [spec.length_kind(tokens) for tokens in (10, 128, 129)] == kinds
