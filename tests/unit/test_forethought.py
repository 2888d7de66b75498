"""Thoughts before a form: free as far as their end, however marks are cut into tokens, and the form exact behind it."""

from __future__ import annotations

import random
import re
from functools import cache

import pytest
from scripted_model import GPT_OSS, QWEN3, thinking_tokenizer
from shoal.blocks.checkpoint import DEMO_PATH
from shoal.client.calling import must_call
from shoal.client.calls import HARMONY_CALLS, HERMES, Call
from shoal.client.forethought import after
from shoal.client.grammar import Grammars
from shoal.client.harmony import Harmony
from shoal.client.reasoning import HARMONY, TAGS, AnswerReader, Forethought, Thought
from tokenizers import AddedToken
from transformers import AutoTokenizer

THINK, MISTRAL = TAGS
SCHEMA = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
MESSAGE = "<|channel|>analysis<|message|>"
NEXT = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>"
LETTERS = ("a", "é", "\n", " <", "think", "</", "/", "k>", "[/", "THINK", "]", "end|>", "{", '"n"', " 7")


def with_added(*texts: str, special: bool = False):
    tokenizer = AutoTokenizer.from_pretrained(DEMO_PATH)
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])
    return tokenizer


TOKENIZERS = {
    "tokens": (THINK, lambda: thinking_tokenizer(QWEN3)),
    "letters": (THINK, lambda: with_added()),
    "special": (MISTRAL, lambda: with_added("[THINK]", "[/THINK]", special=True)),
    "brackets": (MISTRAL, lambda: with_added("[THINK]", "[/THINK]")),
    "channels": (HARMONY, lambda: thinking_tokenizer(GPT_OSS)),
}
KINDS = [*TOKENIZERS]


@cache
def grammars(kind: str) -> Grammars:
    tokenizer = TOKENIZERS[kind][1]()
    return Grammars(tokenizer, len(tokenizer), frozenset({1}))


def tokens(kind: str, text: str, *, spelled: bool = False) -> list[int]:
    return cut(grammars("letters" if spelled else kind)._tokenizer, text)


def cut(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def forms(kind: str, *, begun: bool = False, calls: bool = False) -> Grammars:
    return after(grammars(kind), Forethought(TOKENIZERS[kind][0], begun=begun), calls=calls)


def follow(grammar, ids: list[int]):
    """The state behind `ids`, or the first of them that was refused."""
    state = grammar.begin()
    for token in ids:
        if state.ended or not state.allowed()[token]:
            return token
        state.accept(token)
    return state


def ended(grammar, ids: list[int]) -> bool:
    state = follow(grammar, ids)
    return not isinstance(state, int) and state.ended


def marks(kind: str) -> tuple[str, str]:
    """What begins a thought, and what ends it up to the form."""
    reading = TOKENIZERS[kind][0]
    if isinstance(reading, Harmony):
        return MESSAGE, f"<|end|>{NEXT}{FINAL}"
    return reading.opening, reading.closing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begun", [False, True])
def test_a_form_comes_behind_a_thought(kind: str, *, begun: bool) -> None:
    grammar, (opening, closing) = forms(kind, begun=begun).json_schema(SCHEMA), marks(kind)
    before = "" if begun else opening
    for thought in ("", "Well", "\nWell, {} é </b> <thin [/ \n\n"):
        assert ended(grammar, tokens(kind, f'{before}{thought}{closing}{{"n": 7}}')), thought
        assert not ended(grammar, tokens(kind, f"{before}{thought}{closing}Sure"))
        assert not ended(grammar, tokens(kind, f'{before}{thought}{closing}{{"n": 8}}'))
    for gap in ("\n", "\n\n", "\n\n\n"):
        fits = kind != "channels" and len(gap) < 3
        assert ended(grammar, tokens(kind, f'{before}a{closing}{gap}{{"n": 7}}')) == fits


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_thought_the_form_binds_at_once(kind: str) -> None:
    state = forms(kind).choice(["yes", "no"]).begin()
    begins = {grammars(kind)._tokenizer.decode([token]) for token in state.allowed().nonzero().flatten().tolist()}
    first = {"letters": "<", "brackets": "["}.get(kind, marks(kind)[0].partition("analysis")[0])
    assert begins - {"y", "n", "ye", "yes", "no"} == {first} | ({"[THINK]"} if kind == "brackets" else set())
    at_once = f"{FINAL}yes" if kind == "channels" else "yes"
    assert ended(forms(kind).choice(["yes", "no"]), tokens(kind, at_once))
    assert not ended(forms(kind, begun=True).choice(["yes", "no"]), tokens(kind, at_once)), "the thought must end"


@pytest.mark.parametrize("kind", KINDS)
def test_a_thought_is_not_ended_by_the_model_s_end(kind: str) -> None:
    opening, closing = marks(kind)
    for text in (opening, f"{opening}Well", f"{opening}Well{closing}"):
        assert not follow(forms(kind).regex("a+"), tokens(kind, text)).allowed()[1], text
    assert follow(forms(kind).regex("a+"), tokens(kind, f"{opening}Well{closing}a")).allowed()[1]


@pytest.mark.parametrize("kind", KINDS)
def test_all_else_may_be_thought(kind: str) -> None:
    """Tokens that are text, and marks that texts show."""
    tokenizer = grammars(kind)._tokenizer
    state = follow(forms(kind).choice(["yes"]), tokens(kind, f"{marks(kind)[0]}Well"))
    allowed = {tokenizer.decode([token]) for token in state.allowed().nonzero().flatten().tolist()}
    texts = {tokenizer.decode([token], skip_special_tokens=True) for token in range(len(tokenizer))} - {""}
    end = {"letters": "</", "channels": "<|end|>"}.get(kind, marks(kind)[1])
    assert {text for text in texts if "\ufffd" not in text} | {end} <= allowed


def test_where_the_end_is_a_token_letters_do_not_write_it() -> None:
    """Who reads the answer would take them for the end, and what follows for the answer."""
    for kind, opening, ends in (
        ("tokens", "<think>", ["</think>"]), ("special", "[THINK]", ["[/THINK]"]),
        ("channels", MESSAGE, ["<|end|>", "<|channel|>", "<|start|>", "<|return|>"]),
    ):  # fmt: skip
        for end in ends:
            ids = [*tokens(kind, f"{opening}Well"), *tokens(kind, end, spelled=True)]
            assert follow(forms(kind).choice(["yes"]), ids) in ids[-2:], end
    assert ended(forms("brackets").choice(["yes"]), tokens("brackets", "[THINK]a[/THINK]yes", spelled=True))


def test_a_token_across_the_end_is_judged_from_the_end_on() -> None:
    tokenizer = with_added("k>yes", "k>sure", "nk>\n\ny", "a</think>no", "b</think>sure")
    plain = Grammars(tokenizer, len(tokenizer), frozenset({1}))
    grammar = after(plain, Forethought(THINK, begun=True)).choice(["yes", "no"])

    def state(text: str, last: str):
        return follow(grammar, [*cut(tokenizer, text), tokenizer.convert_tokens_to_ids(last)])

    sure, other = map(tokenizer.convert_tokens_to_ids, ("k>sure", "b</think>sure"))
    assert state("x</thin", "k>yes").ended
    assert state("x</thin", "k>sure") == sure
    assert state("x", "k>sure").allowed()[sure], "no end, so it is thought"
    assert state("x", "a</think>no").ended
    assert state("x", "b</think>sure") == other
    assert {tokenizer.decode([one]) for one in state("x</thi", "nk>\n\ny").allowed().nonzero().flatten()} == {"es"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begun", [False, True])
def test_who_reads_the_answer_finds_thought_and_form(kind: str, *, begun: bool) -> None:
    """Of a model that writes marks and anything in between."""
    reading, tokenizer, draw = TOKENIZERS[kind][0], grammars(kind)._tokenizer, random.Random(f"{kind}{begun}")
    grammar, opening, closing = forms(kind, begun=begun).regex("[a-y]{1,4}[.!]"), *marks(kind)
    told = (MESSAGE if kind == "channels" else opening) if begun else ""
    lengths = []
    for _ in range(40):
        state, ids = grammar.begin(), []
        loose = [piece for _ in range(draw.randrange(30)) for piece in tokens(kind, draw.choice(LETTERS))]
        wishes = [*([] if begun else tokens(kind, opening)), *loose, *tokens(kind, closing)]
        while not state.ended:
            allowed = state.allowed()
            wish = wishes.pop(0) if wishes else None
            if wish is None or not allowed[wish]:
                wish = draw.choice(allowed.nonzero().flatten().tolist())
            if wish == 1:
                break
            ids.append(wish)
            state.accept(wish)
            if len(ids) > 60:
                wishes = wishes or tokens(kind, closing)
            assert len(ids) < 400
        reader = AnswerReader(reading, told)
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        parts = [*reader.push(text), *reader.finish()]
        said = "".join(part for part in parts if isinstance(part, str))
        assert re.fullmatch("[a-y]{1,4}[.!]", said), text
        lengths.append(sum(len(part.text) for part in parts if isinstance(part, Thought)))
    assert max(lengths) > 30
    assert min(lengths) < 5


@pytest.mark.parametrize("kind", ["tokens", "channels"])
def test_calls_come_behind_a_thought(kind: str) -> None:
    reading = TOKENIZERS[kind][0]
    form = HARMONY_CALLS if kind == "channels" else HERMES
    grammar = must_call(forms(kind, calls=True), form, [TOOL], parallel=False)
    called = (
        f'{NEXT}<|channel|>commentary to=functions.look <|constrain|>json<|message|>{{"n": 7}}'
        if kind == "channels"
        else '\n\n<tool_call>\n{"name": "look", "arguments": {"n": 7}}\n</tool_call>'
    )
    thoughts = [f"{MESSAGE}Rain?<|end|>", f"{MESSAGE}Rain?<|end|>{NEXT}{MESSAGE}No.<|end|>"]
    for thought in thoughts if kind == "channels" else ["<think>\nRain?\n</think>"]:
        assert ended(grammar, tokens(kind, thought + called))
        reader = AnswerReader(reading, "", form, ["look"])
        assert [*reader.push(thought + called), *reader.finish()][-1] == Call("look", '{"n": 7}')
    assert ended(grammar, tokens(kind, called.removeprefix(NEXT).lstrip()))
    assert not ended(grammar, tokens(kind, "Sure" + called))


def test_a_call_begins_with_the_model_s_own_token() -> None:
    """Qwen's marks of calls are added to its vocabulary, but not as special tokens."""
    tokenizer = with_added("<tool_call>", "</tool_call>")
    own = Grammars(tokenizer, len(tokenizer), frozenset({1}))
    state = must_call(own, HERMES, [TOOL]).begin()
    assert state.allowed().nonzero().flatten().tolist() == [tokenizer.convert_tokens_to_ids("<tool_call>")]
    written = cut(tokenizer, '<tool_call>\n{"name": "look", "arguments": {"n": 7}}\n</tool_call>')
    assert not isinstance(follow(must_call(own, HERMES, [TOOL]), written), int)
    thought = after(own, Forethought(THINK, begun=True)).choice(["yes"]).begin()
    assert thought.allowed()[tokenizer.convert_tokens_to_ids("<tool_call>")], "a thought may speak of it"


def test_a_mark_that_is_no_token_is_letters_where_others_are_unknown() -> None:
    tokenizer = with_added()
    tokenizer.unk_token = "<pad>"
    own = Grammars(tokenizer, len(tokenizer), frozenset({1}))
    assert own.marker("<tool_call>") == '"<tool_call>"'
    assert own.marker("<pad>") == f"<[{tokenizer.convert_tokens_to_ids('<pad>')}]>"
