"""Reasoning, answers and calls told apart in whatever pieces a text comes; templates of models that think."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import DEEPSEEK_R1, GPT_OSS, PLAIN, QWEN3, thinking_model, thinking_tokenizer
from shoal.client.calling import must_call
from shoal.client.calls import HARMONY_CALLS, HERMES, Call, format_of
from shoal.client.chat import Chat
from shoal.client.generation import Completion, GenerationOptions, Piece
from shoal.client.grammar import Grammars
from shoal.client.reasoning import HARMONY, TAGS, AnswerReader, AnswerStops, Forethought, Thought, reading_of
from shoal.client.sampling import Sampler
from shoal.client.sampling_options import Sampling
from shoal.client.spans import Kind
from shoal.client.writer import Writer

THINK, MISTRAL = TAGS
NAMES = ("weather", "time")
ULM = '{"city": "Ulm é"}'
HERMES_ULM = f'<tool_call>\n{{"name": "weather", "arguments": {ULM}}}\n</tool_call>'
ANALYSIS = "<|channel|>analysis<|message|>Rain?\n\nI look.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
COMMENTARY = "<|start|>assistant<|channel|>commentary"
ARGUMENTS = f"<|constrain|>json<|message|>{ULM}"
TIME = "<|channel|>commentary to=functions.time json<|message|>{}<|call|>"
RAIN = Thought("Rain?\n\nI look.")
CASES = [
    (THINK, "", "<think>\nWell, 1 < 2.\n</think>\n\nHi </b>", [Thought("Well, 1 < 2."), "Hi </b>"]),
    (THINK, "", "  <think>a</think>b", [Thought("a"), "b"]),
    (THINK, "", "<think>\n\n</think>\n\nHi", ["Hi"]),
    (THINK, "", "<think>\nWell, <i", [Thought("Well, <i")]),
    (THINK, "", "<think>\nWell.\n</think>\n\n", [Thought("Well.")]),
    (THINK, "", " Hi <think>x</think>\n", [" Hi <think>x</think>\n"]),
    (THINK, "", "<thin", ["<thin"]),
    (THINK, "", "<think>a</think>b</think>c", [Thought("a"), "b</think>c"]),
    (THINK, "", f"<think>a</think>So:\n{HERMES_ULM}", [Thought("a"), "So:", Call("weather", ULM)]),
    (THINK, "", f"<think>{HERMES_ULM}</think>b", [Thought(HERMES_ULM), "b"]),
    (THINK, "", "", []),
    (THINK, "<think>", "\n Well.\n</think>\n\nHi", [Thought("Well."), "Hi"]),
    (THINK, "<think>", "<think>\nWell.</think>Hi", [Thought("Well."), "Hi"]),
    (THINK, "<think>", "Well", [Thought("Well")]),
    (THINK, "<think>.", " and well.</think>Hi", [Thought(" and well."), "Hi"]),
    (THINK, ".", "<think> is a tag", ["<think> is a tag"]),
    (MISTRAL, "", "[THINK]a[/THINK]b [x", [Thought("a"), "b [x"]),
    (HARMONY, "", f"{ANALYSIS}{FINAL}Hi <|x\n", [RAIN, "Hi <|x\n"]),
    (HARMONY, "", f"{ANALYSIS}{FINAL}Hi<|return|>", [RAIN, "Hi"]),
    (HARMONY, "", "<|channel|>final<|message|>Hi", ["Hi"]),
    (HARMONY, "", ANALYSIS.removesuffix("<|end|>"), [RAIN]),
    (HARMONY, "", f"{ANALYSIS}<|start|>assistant<|channel|>fi", [RAIN]),
    (HARMONY, "", "<|chan", []),
    (HARMONY, "", f"{ANALYSIS}{COMMENTARY} to=functions.weather {ARGUMENTS}", [RAIN, Call("weather", ULM)]),
    (HARMONY, "", f" to=functions.weather<|channel|>commentary {ARGUMENTS}<|call|>", [Call("weather", ULM)]),
    (HARMONY, "", f"{TIME}{COMMENTARY} to=functions.weather {ARGUMENTS}", [Call("time", "{}"), Call("weather", ULM)]),
    (HARMONY, "", f"{ANALYSIS}{COMMENTARY}<|message|>I look.<|end|>{COMMENTARY} to=functions.weather {ARGUMENTS}",
     [RAIN, "I look.", Call("weather", ULM)]),
    (HARMONY, "", f"<|channel|>commentary to=functions.rm {ARGUMENTS}<|call|>", [ULM]),
    (HARMONY, "", '<|channel|>commentary to=functions.weather json<|message|>{"ci', ['{"ci']),
    (HARMONY, "", "<|channel|>commentary to=functions.weather json<|message|>5<|call|>", ["5"]),
    (HARMONY, "", f"{ANALYSIS}<|start|>assistant{ANALYSIS}{FINAL}a<|end|>{FINAL}b",
     [Thought("Rain?\n\nI look.\n\nRain?\n\nI look."), "a\n\nb"]),
    (HARMONY, "", f"<|channel|>analysis to=browser.search code<|message|>rain<|call|>{FINAL}a", [Thought("rain"), "a"]),
    (HARMONY, "", "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b", [Thought("a"), "b"]),
    (HARMONY, "", "No header, to=x <i>", ["No header, to=x <i>"]),
    (HARMONY, "", "to", ["to"]),
    (HARMONY, "<|channel|>final<|message|>", " it is.", [" it is."]),
]  # fmt: skip


def reader_of(reading, begun: str) -> AnswerReader:
    return AnswerReader(reading, begun, HARMONY_CALLS if reading is HARMONY else HERMES, NAMES)


def joined(parts: list[str | Thought | Call]) -> list[str | Thought | Call]:
    out: list[str | Thought | Call] = []
    for part in parts:
        if out and type(part) is type(out[-1]) and not isinstance(part, Call):
            out[-1] = out[-1] + part if isinstance(part, str) else Thought(out[-1].text + part.text)
        else:
            out.append(part)
    return out


def read(reading, begun: str, pieces: list[str]) -> list[str | Thought | Call]:
    reader = reader_of(reading, begun)
    return joined([*(part for piece in pieces for part in reader.push(piece)), *reader.finish()])


@pytest.mark.parametrize(("reading", "begun", "text", "expected"), CASES)
def test_what_is_thought_said_and_called_wherever_it_is_cut(reading, begun: str, text: str, expected) -> None:
    assert read(reading, begun, [text]) == expected
    assert read(reading, begun, list(text)) == expected
    for at in range(len(text)):
        assert read(reading, begun, [text[:at], text[at:]]) == expected, text[at:]


@given(
    st.sampled_from([(THINK, ""), (THINK, "<think>"), (HARMONY, ""), (HARMONY, "<|channel|>final<|message|>")]),
    st.lists(st.sampled_from([*THINK.marks, *HARMONY.marks, "a", " ", "\n", "<", "|>", "analysis", "final", "assistant",
                              "commentary", " to=functions.time", " to=x", "{}", "</", "to"])),
    st.lists(st.integers(1, 9), min_size=1),
)  # fmt: skip
def test_however_it_is_cut_the_same_is_read_and_nothing_is_lost(how, parts: list[str], sizes: list[int]) -> None:
    (reading, begun), text, pieces, at = how, "".join(parts), [], 0
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    assert read(reading, begun, pieces) == read(reading, begun, [text])
    scanner = reading.scanner(NAMES)
    scanner.push(begun)
    spans = [span for piece in pieces for span in scanner.push(piece)] + scanner.finish()
    assert "".join(span.text for span in spans) == text
    if reading is HARMONY:
        assert not any(mark in span.text for span in spans if span.kind is not Kind.MARK for mark in HARMONY.marks[-3:])


def test_parts_are_told_at_once_and_what_may_be_a_mark_is_held_back() -> None:
    reader = reader_of(THINK, "")
    assert reader.push("<think>\n") == []
    assert reader.thinking
    assert reader.push("Well") == [Thought("Well")]
    assert reader.push(" \n</thi") == []
    assert reader.push("s>") == [Thought(" \n</this>")]
    assert reader.thinking
    assert reader.push("</think>\n") == []
    assert not reader.thinking
    assert reader.push("\nHi") == ["Hi"]
    reader = reader_of(HARMONY, "")
    for piece in ("<|channel|>", "analysis", "<|message|>"):
        assert (reader.push(piece), reader.thinking) == ([], piece == "<|message|>")
    assert reader.push("Well <") == [Thought("Well ")]
    assert (reader.push("|end|>"), reader.thinking) == ([], False)


def test_without_a_form_of_reasoning_all_is_the_answer() -> None:
    text = "<think>a</think><|channel|>final<|message|> b\n"
    assert AnswerReader(None).push(text) == [text]
    assert AnswerReader(None, "", HERMES, NAMES).push(f"<think>{HERMES_ULM}") == ["<think>", Call("weather", ULM)]


@pytest.mark.parametrize("size", [1, 4, 1 << 20])
@pytest.mark.parametrize(
    ("reading", "text", "passed"),
    [
        (THINK, "<think>\nEND\n</think>\n\nIt END s", "<think>\nEND\n</think>\n\nIt "),
        (THINK, "<think>E", "<think>E"),
        (HARMONY, f"<|channel|>analysis<|message|>assistant END<|end|>{FINAL}An ENd END s",
         f"<|channel|>analysis<|message|>assistant END<|end|>{FINAL}An ENd "),
        (HARMONY, f"{FINAL}An assistant", f"{FINAL}An "),
        (HARMONY, f"{FINAL}An EN", f"{FINAL}An EN"),
    ],
)  # fmt: skip
def test_stop_strings_are_looked_for_in_what_is_said(reading, text: str, passed: str, size: int) -> None:
    stops = AnswerStops(reading, "", ("END", "assistant", "\n\n"))
    got = "".join(stops.push(text[at : at + size]) for at in range(0, len(text), size))
    assert (got + stops.finish(), stops.stopped) == (passed, passed != text)


# -- templates --------------------------------------------------------------------------------------------------------


@cache
def chat_with(template: str) -> Chat:
    return Chat(thinking_model(template))


def said(role: str, content: str, **more) -> dict[str, object]:
    return {"role": role, "content": content, **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Ulm", "Bonn"]}}, "required": ["city"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
OFF = {"reasoning_effort": "none"}
CALLED = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}


@pytest.mark.parametrize(
    ("template", "reading"),
    [(QWEN3, THINK), (DEEPSEEK_R1, THINK), (GPT_OSS, HARMONY), (PLAIN, None), ("", None), ("[/THINK]", MISTRAL)],
)
def test_a_template_shows_its_form(template: str, reading) -> None:
    assert reading_of(template) == reading
    assert (format_of(template) == HARMONY_CALLS) == (reading is HARMONY)


@pytest.mark.parametrize(
    ("template", "options", "ends", "begun"),
    [
        (QWEN3, {}, "assistant\n", ""),
        (QWEN3, {"continues": True}, "assistant\nWell,", "."),
        (QWEN3, {"forced": True}, "assistant\n", ""),
        (QWEN3, {"options": {"enable_thinking": False}}, "</think>\n\n", ""),
        (DEEPSEEK_R1, {}, "<|Assistant|><think>\n", "<think>"),
        (DEEPSEEK_R1, {"forced": True}, "<|Assistant|><think>\n", "<think>"),
        (DEEPSEEK_R1, {"forced": True, "options": OFF}, "<|Assistant|><think>\n\n</think>\n\n", ""),
        (GPT_OSS, {}, "<|start|>assistant", ""),
        (GPT_OSS, {"continues": True}, "final<|message|>Well,", "<|channel|>final<|message|>"),
        (GPT_OSS, {"forced": True}, "<|start|>assistant", ""),
        (GPT_OSS, {"forced": True, "options": OFF}, "assistant<|channel|>final<|message|>",
         "<|channel|>final<|message|>"),
        (GPT_OSS, {"forced": True, "options": OFF, "tools": [WEATHER]}, "<|start|>assistant", ""),
        (PLAIN, {"forced": True}, "<|im_start|>assistant", ""),
    ],
)  # fmt: skip
def test_a_prompt_says_where_its_answer_begins(template: str, options, ends: str, begun: str) -> None:
    talk = [said("user", "Hi <think>"), *([said("assistant", "Well,")] if "continues" in options else [])]
    prompt = chat_with(template).prompt(talk, **options)
    assert prompt.text.endswith(ends)
    assert prompt.begun == begun
    assert prompt.token_ids == tuple(thinking_tokenizer(template)(prompt.text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("template", "options", "thought"),
    [
        (QWEN3, {}, Forethought(THINK, begun=False)),
        (QWEN3, {"options": {"enable_thinking": False}}, None),
        (QWEN3, {"options": OFF}, None),
        (QWEN3, {"continues": "Well,"}, None),
        (QWEN3, {"continues": "<think>\nWell,"}, Forethought(THINK, begun=True)),
        (QWEN3, {"continues": "<think>\nWell,", "options": OFF}, Forethought(THINK, begun=True)),
        (DEEPSEEK_R1, {}, Forethought(THINK, begun=True)),
        (DEEPSEEK_R1, {"options": {"thinking": False}}, None),
        (DEEPSEEK_R1, {"options": {"reasoning_effort": "low"}}, Forethought(THINK, begun=True)),
        (GPT_OSS, {}, Forethought(HARMONY, begun=False)),
        (GPT_OSS, {"tools": [WEATHER]}, Forethought(HARMONY, begun=False)),
        (GPT_OSS, {"options": OFF}, None),
        (GPT_OSS, {"options": OFF, "tools": [WEATHER]}, None),
        (GPT_OSS, {"continues": "Well,"}, None),
        (GPT_OSS + "<|channel|>analysis<|message|>", {}, Forethought(HARMONY, begun=True)),
        (PLAIN, {}, None),
    ],
)
def test_a_prompt_says_what_may_come_before_a_form(template: str, options, thought: Forethought | None) -> None:
    talk = [said("user", "Hi"), *([said("assistant", options["continues"])] if "continues" in options else [])]
    options = {**options, "continues": "continues" in options}
    assert chat_with(template).prompt(talk, forced=True, **options).thought == thought
    assert chat_with(template).prompt(talk, **options).thought is None


def test_reasoning_goes_back_under_the_name_that_the_template_reads() -> None:
    thought = {"reasoning_content": "Rain?"}
    called = said("assistant", "", tool_calls=[CALLED], **thought)
    turns = [said("user", "Ulm?"), called, said("tool", "no")]
    for template, shown in ((QWEN3, "<think>\nRain?\n</think>\n\n<tool_call>"),
                            (GPT_OSS, "<|channel|>analysis<|message|>Rain?<|end|><|start|>assistant to=")):  # fmt: skip
        assert shown in chat_with(template).prompt(turns, [WEATHER]).text
    both = [said("user", "Ulm?"), {**called, "content": "I look."}, said("tool", "no")]
    assert "Rain?" not in chat_with(GPT_OSS).prompt(both, [WEATHER]).text  # its template refuses both
    for template in (DEEPSEEK_R1, PLAIN):
        plain = [said("user", "Ulm?"), said("assistant", "No."), said("user", "Bonn?")]
        given = [plain[0], {**plain[1], **thought}, plain[2]]
        assert chat_with(template).prompt(given) == chat_with(template).prompt(plain)


def text_of(chat: Chat, text: str) -> str:
    """As generation tells it, of a model that writes `text`."""
    tokenizer, prompt = thinking_tokenizer(GPT_OSS), chat.prompt([said("user", "Hi")])
    writer = Writer(tokenizer, prompt.token_ids, chat.options(GenerationOptions(), prompt, calls=False))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return "".join(writer.write(token, ended=False, last=False)[0] for token in ids)


def test_marks_are_in_the_text_to_be_read_and_other_special_tokens_are_not() -> None:
    text = f"{ANALYSIS}<|im_end|>{FINAL}Hi<eos>"
    assert text_of(chat_with(GPT_OSS), text) == f"{ANALYSIS}{FINAL}Hi"
    plain = chat_with(PLAIN)
    assert plain.options(GenerationOptions(), plain.prompt([said("user", "x")]), calls=False) == GenerationOptions()


def test_a_turn_with_a_call_has_the_answer_s_own_tokens() -> None:
    """Qwen3's template writes the reasoning of the turn that goes on."""
    model = thinking_model(QWEN3)
    chat, tokenizer = Chat(model), model.tokenizer
    marked = ["<think>", "\n", *"Rain?", "\n", "</think>", "\n\n"]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    odd = [token for part in (*marked, call) for token in tokenizer(part, add_special_tokens=False)["input_ids"]]
    text = tokenizer.decode(odd)
    assert odd != tokenizer(text, add_special_tokens=False)["input_ids"]
    first = chat.prompt([said("user", "Ulm?")], [WEATHER])
    end = Piece(min(model.eos), "", 0.0, 0.0, "eos")
    chat.remember(first, Completion(0.0, [*(Piece(token, "", 0.0, 0.0) for token in odd[:-1]),
                                          Piece(odd[-1], text, 0.0, 0.0), end]))  # fmt: skip
    reader = AnswerReader(chat.reading, first.begun, chat.calls, ["weather"])
    thought, found = joined([*reader.push(text), *reader.finish()])
    told = {"id": "a", "type": "function", "function": {"name": found.name, "arguments": found.arguments}}
    answer = said("assistant", "", reasoning_content=thought.text, tool_calls=[told])
    again = chat.prompt([said("user", "Ulm?"), answer, said("tool", "no")], [WEATHER])
    assert again.token_ids[: len(first.token_ids) + len(odd)] == (*first.token_ids, *odd)
    assert tokenizer.decode(again.token_ids) == again.text


def test_an_answer_that_must_call_does_so_in_the_commentary() -> None:
    model = thinking_model(GPT_OSS)
    grammars = Grammars(model.tokenizer, model.ends.spec.vocab_size, model.eos)
    schema = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}
    found = []
    for seed in range(30):
        grammar = must_call(grammars, HARMONY_CALLS, [WEATHER], answer=schema if seed % 2 else None)
        state, ids, drawn = grammar.begin(), [], Sampler(Sampling(temperature=1.0, seed=seed))
        while not state.ended:
            ids.append(drawn.choose(torch.zeros(model.ends.spec.vocab_size), ids, 0, state.allowed()).token_id)
            state.accept(ids[-1])
        text = model.tokenizer.decode([token for token in ids if token not in model.eos])
        found += read(HARMONY, "", [text])
    assert {json.loads(part.arguments)["city"] for part in found if isinstance(part, Call)} == {"Ulm", "Bonn"}
    assert {str(json.loads(part)) for part in found if isinstance(part, str)} == {"{'n': 1}"}
