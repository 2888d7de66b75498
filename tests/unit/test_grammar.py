"""Grammars: masks that are exact, texts that fit whatever the model wants, ends where they may be, and clear errors."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.blocks.checkpoint import DEMO_PATH
from shoal.client.grammar import GrammarError, Grammars, quoted, within
from shoal.client.sampling import Sampler
from shoal.client.sampling_options import Sampling
from transformers import AutoTokenizer

VOCAB, EOS = 8192, 1
CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"enum": ["small", "large"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 99999},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "size", "people"],
    "additionalProperties": False,
}


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO_PATH)


@cache
def grammars() -> Grammars:
    return Grammars(tokenizer(), VOCAB, frozenset({EOS}))


@cache
def texts() -> list[str]:
    """What each token says; "" for those that are no text."""
    return [tokenizer().decode([token], skip_special_tokens=True) for token in range(len(tokenizer()))]


def tokens(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def follow(grammar, text: str):
    state = grammar.begin()
    for token in tokens(text):
        assert state.allowed()[token], (text, tokenizer().decode([token]))
        state.accept(token)
    return state


def write(grammar, seed: int, most: int = 400) -> tuple[str, bool]:
    """A text by a model that has no idea, and whether it came to an end."""
    sampler, state, ids = Sampler(Sampling(temperature=1.0, seed=seed)), grammar.begin(), []
    scores = torch.Generator().manual_seed(seed)
    for _ in range(most):
        token = sampler.choose(torch.randn(VOCAB, generator=scores) * 4, ids, allowed=state.allowed()).token_id
        if token == EOS:
            return tokenizer().decode(ids), True
        ids.append(token)
        state.accept(token)
        if state.ended:
            return tokenizer().decode(ids), True
    return tokenizer().decode(ids), False


WORDS = ["return", "returned value", "raise", "é", "r", 'say "no"\n', "    if x:"]


def whole(state) -> set[int]:
    """Of the tokens that are allowed, those that are whole characters, and the end."""
    return {token for token in state.allowed().nonzero().flatten().tolist() if "\ufffd" not in texts()[token]}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("take", [min, max])
def test_exactly_the_tokens_with_which_a_text_goes_on_are_allowed(word: str, take) -> None:
    state, text = grammars().choice(WORDS).begin(), ""
    while not state.ended:
        rests = [other[len(text) :] for other in WORDS if other.startswith(text)]
        says = {token: said for token, said in enumerate(texts()) if said and "\ufffd" not in said}
        expected = {token for token, said in says.items() if any(rest.startswith(said) for rest in rests)}
        allowed = whole(state)
        assert (EOS in allowed) == ("" in rests)
        if len({rest[:1] for rest in rests}) > 1:
            assert allowed - {EOS} == expected
        else:  # it goes on in one way: the tokenizer's own next token is enough
            assert allowed <= expected
        fits = [token for token in allowed - {EOS} if word[len(text) :].startswith(texts()[token])]
        if not fits:
            break
        state.accept(take(fits, key=lambda token: len(texts()[token])))
        text = word[: len(text) + len(texts()[take(fits, key=lambda token: len(texts()[token]))])]
    assert text == word or word == "é"  # which is two tokens, half a character each


@given(st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_whatever_the_model_wants_the_text_fits_the_schema(seed: int) -> None:
    text, ended = write(grammars().json_schema(CITY), seed)
    assert ended
    city = json.loads(text)
    assert {"name", "size", "people"} <= city.keys() <= CITY["properties"].keys()
    assert city["size"] in ("small", "large")
    assert type(city["people"]) is int
    assert 0 <= city["people"] <= 99999
    assert len(city["name"]) <= 12
    assert all(type(tag) is bool for tag in city.get("tags", []))
    assert len(city.get("tags", [])) <= 3


@given(st.integers(0, 2**32))
@settings(max_examples=3, deadline=None)
def test_a_regular_expression_is_matched_as_a_whole(seed: int) -> None:
    pattern = r"[A-Z][a-z]{2,5}(, [a-z]+[0-9]?){1,3}\."
    text, ended = write(grammars().regex(pattern), seed, 60)
    assert not ended or re.fullmatch(pattern, text)
    assert ended or len(text) > 100


@pytest.mark.parametrize("seed", range(2))
def test_a_json_object_is_one(seed: int) -> None:
    text, ended = write(grammars().json_object(), seed)
    assert text.startswith("{")
    assert not ended or isinstance(json.loads(text), dict)


def test_the_end_is_allowed_only_where_the_text_may_end() -> None:
    state = grammars().json_schema(CITY).begin()
    text = '{"name": "Ulm", "size": "small", "people": 7'
    for token in tokens(text):
        assert not state.allowed()[EOS]
        state.accept(token)
    assert not state.ended
    state.accept(tokens("}")[0])
    assert state.ended
    longer = follow(grammars().regex("[a-z]+"), "ab")
    assert longer.allowed()[EOS]
    assert not longer.ended


def test_a_model_without_an_end_is_given_none() -> None:
    endless = Grammars(tokenizer(), VOCAB, frozenset())
    state = endless.regex("[a-z]+").begin()
    state.accept(tokens("ab")[0])
    assert {texts()[token] for token in state.allowed().nonzero().flatten().tolist()} <= {
        said for said in texts() if re.fullmatch("[a-z]+", said)
    }
    assert follow(endless.choice(["ab", "cd"]), "cd").ended


def test_scores_may_be_more_than_the_tokenizer_s_tokens() -> None:
    few = AutoTokenizer.from_pretrained(DEMO_PATH)
    few.add_tokens(["<one more>"])
    assert Grammars(few, VOCAB + 64, frozenset({EOS})).regex("a+").begin().allowed().shape == (VOCAB + 64,)


def test_json_may_be_laid_out_and_not_for_ever() -> None:
    grammar = grammars().json_object()
    assert follow(grammar, json.dumps({"a": [1, {"b": True}]})).ended
    assert follow(grammar, json.dumps({"a": [1, {"b": True}]}, indent=4)).ended
    assert follow(grammar, json.dumps({"a": [1, {"b": True}]}, separators=(",", ":"))).ended
    lost = follow(grammar, "{ ")
    assert not {texts()[token] for token in whole(lost)} & {" ", "\n"}


def test_completions_under_one_grammar_do_not_disturb_each_other() -> None:
    grammar = grammars().choice(["ab", "cd"])
    first, second = grammar.begin(), grammar.begin()
    first.accept(tokens("a")[0])
    assert not first.allowed()[tokens("c")[0]]
    assert second.allowed()[tokens("c")[0]]


def test_a_grammar_of_parts_holds_quotes_markers_and_schemas() -> None:
    schema = {"type": "object", "properties": {"n": {"const": "f"}}, "required": ["n"], "additionalProperties": False}
    start = grammars().marker("<call>")
    grammar = grammars().lark(f"start: {start} call {quoted(chr(10) + '</call>')}\ncall: {within(schema)}")
    assert start == '"<call>"'
    assert grammars().marker("<pad>") == f"<[{tokenizer().convert_tokens_to_ids('<pad>')}]>"
    assert follow(grammar, '<call>{"n": "f"}\n</call>').ended


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "nonsense"}, "Invalid type: nonsense"),
        ({"type": "object", "properties": 3}, "properties must be an object"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"enum": []}, "Unsatisfiable"),
        ([1], "is an object, not"),
    ],
)
def test_a_bad_schema_is_one_clear_error(schema, said: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(said)) as caught:
        grammars().json_schema(schema)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "make",
    [
        lambda: grammars().regex("("),
        lambda: grammars().choice([]),
        lambda: grammars().choice(["a", ""]),
        lambda: grammars().lark("start: nowhere"),
    ],
)
def test_other_bad_grammars_too(make) -> None:
    with pytest.raises(GrammarError):
        make()


def test_a_schema_nested_past_all_sense_is_an_error_too() -> None:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(2000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError):
        grammars().json_schema(schema)


def test_a_tokenizer_that_the_library_cannot_read_is_an_error() -> None:
    class Slow:
        all_special_ids = (1,)

    with pytest.raises(GrammarError, match="tokenizer"):
        Grammars(Slow(), VOCAB, frozenset({EOS}))
