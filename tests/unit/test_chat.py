"""Conversations to token ids: the model's own template or none, tools in it or in words, answers' own tokens kept."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import pytest
from shoal.blocks.checkpoint import DEMO_PATH
from shoal.client.calling import must_call
from shoal.client.calls import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, CallReader
from shoal.client.chat import Chat, ChatError
from shoal.client.generation import Completion, GenerationOptions, Piece
from shoal.client.grammar import GrammarError, Grammars
from shoal.client.writer import Writer
from transformers import AutoTokenizer

if TYPE_CHECKING:
    from shoal.client.grammar import Grammar
    from transformers import PreTrainedTokenizerBase

VOCAB, EOS = 8192, 1
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if think %}<think>{% endif %}{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}<tool_call>\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function.arguments.city }}</tool_call>{% endfor %}\n{% endfor %}"
)
PICKY = "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages\nhere') }}{% endif %}x"
CITY = {"$ref": "#/$defs/City"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False,
            "$defs": {"City": {"type": "string", "maxLength": 5}},
        },
    },
}  # fmt: skip
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


@dataclass
class Model:
    tokenizer: object
    eos: frozenset[int] = field(default_factory=lambda: frozenset({EOS}))


@cache
def plain() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO_PATH)


@cache
def grammars() -> Grammars:
    return Grammars(plain(), VOCAB, frozenset({EOS}))


def written(grammar: Grammar, seed: int, most: int) -> tuple[str, bool]:
    """A text by a model that has no idea, to which all tokens are alike; and whether it came to an end."""
    state, ids, chance = grammar.begin(), [], random.Random(seed)
    for _ in range(most):
        token = chance.choice(state.allowed().nonzero()[:, 0].tolist())
        if token != EOS:
            ids.append(token)
            state.accept(token)
        if token == EOS or state.ended:
            return plain().decode(ids), True
    return plain().decode(ids), False


def tokenizer_with(template: str | None, special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")):
    tokenizer = AutoTokenizer.from_pretrained(DEMO_PATH)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


@cache
def chat_with(template: str | None) -> Chat:
    return Chat(Model(tokenizer_with(template)))


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_the_model_s_own_template_is_used_and_writes_the_special_tokens() -> None:
    chat = chat_with(CHATML)
    prompt = chat.prompt([said("system", "Be brief."), said("user", "Hi")])
    assert (
        prompt.text
        == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer = tokenizer_with(CHATML)
    assert prompt.token_ids == tuple(tokenizer(prompt.text, add_special_tokens=False)["input_ids"])
    assert prompt.token_ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert chat.prompt([said("user", "Hi")], options={"think": True}).text.endswith("<think>")


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    prompt = chat_with(CHATML).prompt([said("user", "Hi"), said("assistant", "Well,")], continues=True)
    assert prompt.text.endswith("<|im_start|>assistant\nWell,")


def test_without_a_template_the_text_is_continued() -> None:
    chat = chat_with(None)
    assert not chat.templated
    turns = [said("system", "# Shop"), said("user", "def add(a, b):"), said("assistant", "\n    return a + b"),
             said("user", "def mul(a, b):")]  # fmt: skip
    assert chat.prompt(turns[:2]).text == "# Shop\ndef add(a, b):"
    assert chat.prompt(turns).text == "# Shop\ndef add(a, b):\n    return a + b\ndef mul(a, b):"
    assert chat.prompt(turns).token_ids == tuple(tokenizer_with(None)(chat.prompt(turns).text)["input_ids"])


def test_tools_go_through_the_template_and_arguments_as_objects() -> None:
    chat = chat_with(WITH_TOOLS)
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    text = chat.prompt([said("user", "Hm?"), {"role": "assistant", "content": None, "tool_calls": [call]}], [TIME]).text
    assert json.dumps(TIME) in text
    assert "<tool_call>Ulm</tool_call>" in text
    assert chat.calls == HERMES


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    asked, told = {**said("assistant", ""), "tool_calls": [call]}, {**said("tool", "no"), "tool_call_id": "a"}
    turns = [said("system", "Be brief."), said("user", "Rain?"), asked, told]
    for chat in (chat_with(CHATML), chat_with(None)):
        text = chat.prompt(turns, [WEATHER, TIME]).text
        assert text.index("Be brief.") < text.index(json.dumps(WEATHER["function"])) < text.index("Rain?")
        assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>' in text
        assert "<tool_response>\nno\n</tool_response>" in text
        assert json.dumps(TIME["function"]) in chat.prompt([said("user", "Rain?")], [TIME]).text


def test_what_a_template_refuses_is_one_line() -> None:
    with pytest.raises(ChatError, match="refuses this conversation: no system messages here"):
        chat_with(PICKY).prompt([said("system", "x")])
    with pytest.raises(ChatError, match="empty"):
        chat_with(CHATML).prompt([])
    with pytest.raises(ChatError, match="no tokenizer"):
        Chat(Model(None))


def answer(tokenizer, ids: list[int], finish: str) -> Completion:
    text = tokenizer.decode([token for token in ids if token != EOS])
    return Completion(
        0.0, [*(Piece(token, "", 0.0, 0.0) for token in ids[:-1]), Piece(ids[-1], text, 0.0, 0.0, finish)]
    )


@pytest.mark.parametrize("template", [CHATML, None])
def test_the_next_turn_has_the_answer_s_own_tokens(template: str | None) -> None:
    """A model may write a text in other tokens than its tokenizer."""
    tokenizer = tokenizer_with(template)
    chat = Chat(Model(tokenizer))
    odd = [token for letter in " return" for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    assert odd != tokenizer(" return", add_special_tokens=False)["input_ids"]
    first = chat.prompt([said("user", "def f():")])
    chat.remember(first, answer(tokenizer, [*odd, EOS], "eos"))
    turns = [said("user", "def f():"), said("assistant", " return"), said("user", "x = 1")]
    second = chat.prompt(turns)
    assert second.token_ids[: len(first.token_ids) + len(odd)] == (*first.token_ids, *odd)
    assert tokenizer.decode(second.token_ids).removeprefix("<bos>") == second.text
    other = chat.prompt([said("user", "def f():"), said("assistant", " retur"), said("user", "x = 1")])
    assert (
        other.token_ids
        == Chat(Model(tokenizer))
        .prompt([said("user", "def f():"), said("assistant", " retur"), said("user", "x = 1")])
        .token_ids
    )


def test_an_answer_cut_at_a_stop_string_is_not_kept_and_old_ones_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.client.chat.REMEMBERED", 2)
    tokenizer = tokenizer_with(CHATML)
    chat = Chat(Model(tokenizer))
    odd = [token for letter in "return" for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    prompts = [chat.prompt([said("user", f"{n}")]) for n in range(4)]
    for prompt, finish in zip(prompts, ("length", "length", "stop", "length"), strict=True):
        chat.remember(prompt, answer(tokenizer, odd, finish))
    kept = []
    for n, prompt in enumerate(prompts):
        again = chat.prompt([said("user", f"{n}"), said("assistant", "return"), said("user", "?")])
        kept.append(again.token_ids[len(prompt.token_ids) :][: len(odd)] == tuple(odd))
    assert kept == [False, True, False, True]


def test_special_tokens_that_mark_calls_are_text() -> None:
    tokenizer = tokenizer_with("{{ tools }}[TOOL_CALLS]", ("[TOOL_CALLS]", "<|other|>"))
    chat = Chat(Model(tokenizer))
    mark, other = tokenizer.convert_tokens_to_ids(["[TOOL_CALLS]", "<|other|>"])
    assert chat.shown == {mark}
    writer = Writer(tokenizer, [5], GenerationOptions(shown=chat.shown))
    text = "".join(
        writer.write(token, ended=False, last=False)[0] for token in (mark, other, *tokenizer("[]")["input_ids"])
    )
    assert text == "[TOOL_CALLS][]"
    assert chat_with(CHATML).shown == frozenset()


@pytest.mark.parametrize("form", [HERMES, LLAMA, MISTRAL, MISTRAL_NAMED], ids=["hermes", "llama", "mistral", "named"])
@pytest.mark.parametrize("parallel", [False, True])
def test_an_answer_that_must_call_does_whatever_the_model_wants(form, parallel: bool) -> None:
    grammar = must_call(grammars(), form, [WEATHER, TIME] if parallel else [WEATHER], parallel=parallel)
    for seed in range(3):
        text, ended = written(grammar, seed, 200)
        if not ended:
            assert parallel
            continue
        reader = CallReader(form, ("weather", "time"))
        calls = [*reader.push(text), *reader.finish()]
        assert reader.called
        assert parallel or len(calls) == 1
        for call in calls:
            assert call.name in ("weather", "time")
            if call.name == "weather":
                assert re.fullmatch(r".{0,5}", json.loads(call.arguments)["city"], re.DOTALL)


def test_parameters_that_cannot_be_kept_are_an_error() -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
    with pytest.raises(GrammarError, match="nonsense"):
        must_call(grammars(), HERMES, [bad])
    with pytest.raises(GrammarError, match="no tools"):
        must_call(grammars(), HERMES, [])


@pytest.mark.parametrize("form", [HERMES, LLAMA, MISTRAL, MISTRAL_NAMED], ids=["hermes", "llama", "mistral", "named"])
def test_an_answer_in_a_form_may_be_a_call_all_the_same(form) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}
    grammar = must_call(grammars(), form, [TIME], parallel=False, answer=schema)
    kinds = set()
    for seed in range(40):
        text, ended = written(grammar, seed, 200)
        if not ended:
            continue
        reader = CallReader(form, ("time",))
        parts = [*reader.push(text), *reader.finish()]
        kinds.add(reader.called)
        if not reader.called:
            assert json.loads("".join(map(str, parts))) == {"n": 1}
    assert kinds == {True, False}


def test_a_template_s_own_faults_are_told_as_such() -> None:
    for fault in ("{{ 1 / 0 }}", "{{ messages[9].content.x }}", "{{ raise_exception('no') }}"):
        with pytest.raises(ChatError, match="template"):
            chat_with(fault).prompt([said("user", "Hi")])
