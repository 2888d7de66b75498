"""Calls of tools read out of a text in whatever pieces it comes, in the forms that models write."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.client.calls import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, Call, CallReader, format_of, new_id

NAMES = ("weather", "time")
ULM = '{"city": "Ulm é"}'
WEATHER, TIME = Call("weather", ULM), Call("time", "{}")
HERMES_ULM = f'<tool_call>\n{{"name": "weather", "arguments": {ULM}}}\n</tool_call>'
HERMES_TIME = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
CASES = [
    (HERMES, "Just text, 1 < 2 <tool", ["Just text, 1 < 2 <tool"]),
    (HERMES, HERMES_ULM, [WEATHER]),
    (HERMES, f"Let me see.\n\n{HERMES_ULM}\n{HERMES_TIME}\n", ["Let me see.", WEATHER, TIME]),
    (HERMES, f"{HERMES_TIME} and then", [TIME, " and then"]),
    (HERMES, HERMES_ULM.removesuffix("</tool_call>"), [WEATHER]),
    (HERMES, '<tool_call>{"name": "weather", "arg', ['<tool_call>{"name": "weather", "arg']),
    (HERMES, "So\n<tool_call>no json</tool_call>", ["So\n<tool_call>no json</tool_call>"]),
    (HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
     ['<tool_call>{"name": "rm", "arguments": {}}</tool_call>']),
    (HERMES, '<tool_call>{"name": "time", "arguments": "{}"}</tool_call>', [TIME]),
    (HERMES, f'<tool_call>[{{"name": "weather", "arguments": {ULM}}}]</tool_call>', [WEATHER]),
    (HERMES, '<tool_call>"weather"</tool_call>', ['<tool_call>"weather"</tool_call>']),
    (HERMES, '<tool_call>["weather", 5]</tool_call>', ['<tool_call>["weather", 5]</tool_call>']),
    (MISTRAL, "[TOOL_CALLS]5", ["[TOOL_CALLS]5"]),
    (LLAMA, '{"name": "time", "parameters": {}}; 5', ['{"name": "time", "parameters": {}}; 5']),
    (HERMES, "ends in space \n", ["ends in space \n"]),
    (MISTRAL, f'[TOOL_CALLS][{{"name": "weather", "arguments": {ULM}}}, {{"name": "time", "arguments": {{}}}}]',
     [WEATHER, TIME]),
    (MISTRAL, "[TOOL", ["[TOOL"]),
    (MISTRAL, "Yes [TOOL_CALLS] no", ["Yes ", "[TOOL_CALLS] no"]),
    (MISTRAL_NAMED, f"[TOOL_CALLS]weather[ARGS]{ULM}[TOOL_CALLS]time[CALL_ID]123456789[ARGS]{{}}", [WEATHER, TIME]),
    (MISTRAL_NAMED, "[TOOL_CALLS]weather", ["[TOOL_CALLS]weather"]),
    (LLAMA, f'{{"name": "weather", "parameters": {ULM}}}', [WEATHER]),
    (LLAMA, f'<|python_tag|>{{"name": "weather", "parameters": {ULM}}}; {{"name": "time", "parameters": {{}}}}',
     [WEATHER, TIME]),
    (LLAMA, '{"a": 1} is JSON', ['{"a": 1} is JSON']),
    (LLAMA, 'So: {"name": "time", "parameters": {}}', ['So: {"name": "time", "parameters": {}}']),
    (LLAMA, "[" * 100000, ["[" * 100000]),
]  # fmt: skip


def joined(parts: list[str | Call]) -> list[str | Call]:
    """Neighbouring texts as one, except where a mark that was none parts them."""
    out: list[str | Call] = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        else:
            out.append(part)
    return out


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_what_is_said_and_what_is_called(form, text: str, expected: list[str | Call], size: int) -> None:
    reader = CallReader(form, NAMES)
    size = max(size, len(text) // 1000)
    parts = [part for at in range(0, len(text), size) for part in reader.push(text[at : at + size])]
    assert joined([*parts, *reader.finish()]) == joined(expected)
    assert reader.called == any(isinstance(part, Call) for part in expected)


@given(st.lists(st.sampled_from(["text ", "<", "tool_call>", "<tool_call>", "</tool_call>", '{"name": "time"}', "\n"])),
       st.lists(st.integers(1, 9), min_size=1))  # fmt: skip
def test_however_it_is_cut_the_same_is_read(parts: list[str], sizes: list[int]) -> None:
    text, whole, cut = "".join(parts), CallReader(HERMES, NAMES), CallReader(HERMES, NAMES)
    got, at = [], 0
    while at < len(text):
        size = sizes[at % len(sizes)]
        got += cut.push(text[at : at + size])
        at += size
    assert joined([*got, *cut.finish()]) == joined([*whole.push(text), *whole.finish()])


def test_text_is_told_at_once_and_what_may_begin_a_call_is_held_back() -> None:
    reader = CallReader(HERMES, NAMES)
    assert reader.push("Well") == ["Well"]
    assert reader.push(" <tool") == []
    assert reader.push("box>") == [" <toolbox>"]
    assert reader.push(HERMES_ULM[:-1]) == []
    assert reader.push(">") == [WEATHER]


def test_arguments_are_json_again() -> None:
    assert json.loads(WEATHER.arguments) == {"city": "Ulm é"}


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{{ tools }}", HERMES),
        ("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]", MISTRAL),
        ("[TOOL_CALLS]{{ name }}[ARGS]", MISTRAL_NAMED),
        ('{{ tools }}<|python_tag|>{"name": f, "parameters": p}', LLAMA),
    ],
)  # fmt: skip
def test_a_template_shows_its_form(template: str, form) -> None:
    assert format_of(template) == form


def test_calls_are_named_as_a_model_s_template_takes_it() -> None:
    """Mistral's refuse a name that is not of 9 letters and digits."""
    for form in (MISTRAL, MISTRAL_NAMED):
        assert len(new_id(form)) == 9
        assert new_id(form).isalnum()
    assert new_id(HERMES).startswith("call_")
    assert new_id(HERMES) != new_id(HERMES)
