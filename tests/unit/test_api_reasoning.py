"""Chats with models that think, through the whole HTTP application: reasoning, content, calls, at once and streamed."""

from __future__ import annotations

import json

import pytest
from scripted_api import HELLO, ask, gathered, length, model_of
from scripted_model import DEEPSEEK_R1, GPT_OSS, PLAIN, QWEN3

# aiohttp 3.14 advises keys that the older releases we run with do not have.
pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")

THINKS = "<think>\nWell, é < ü.\n</think>\n\nIt is fine.<|im_end|>"
HARMONY = (
    "<|channel|>analysis<|message|>Well, é < ü.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is fine.<|return|>"
)
CALLS = (
    "<|channel|>analysis<|message|>Rain?<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Ulm"}<|call|>'
)
HERMES = (
    "<think>\nRain?\n</think>\n\nI look.\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call><|im_end|>'
)
CITY = {"properties": {"city": {"enum": ["Ulm"]}}, "required": ["city"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", **CITY}}}
THINKERS = [(QWEN3, THINKS), (DEEPSEEK_R1, THINKS.removeprefix("<think>\n")), (GPT_OSS, HARMONY)]
NAMES = ["qwen3", "r1", "gpt-oss"]


@pytest.mark.parametrize(("template", "text"), THINKERS, ids=NAMES)
async def test_reasoning_and_answer_come_apart_at_once_and_streamed(template: str, text: str) -> None:
    body, _ = await ask(template, text)
    (choice,) = body["choices"]
    expected = {"role": "assistant", "content": "It is fine.", "refusal": None, "reasoning_content": "Well, é < ü."}
    assert (choice["message"], choice["finish_reason"]) == (expected, "stop")
    events, _ = await ask(template, text, stream=True, stream_options={"include_usage": True})
    assert gathered(events) == {"reasoning_content": "Well, é < ü.", "content": "It is fine.", "tool_calls": [],
                                "finish": "stop"}  # fmt: skip
    assert events[-1]["usage"] == body["usage"]
    assert len([event for event in events if event["choices"]]) > 5, "the text came in pieces"


@pytest.mark.parametrize(("template", "text"), THINKERS, ids=NAMES)
async def test_reasoning_tokens_are_counted_each(template: str, text: str) -> None:
    thought = {QWEN3: "<think>\nWell, é < ü.\n</think>", DEEPSEEK_R1: "Well, é < ü.\n</think>",
               GPT_OSS: "<|message|>Well, é < ü.<|end|>"}[template]  # fmt: skip
    body, _ = await ask(template, text, n=2)
    usage = body["usage"]
    assert usage["completion_tokens"] == 2 * length(template, text)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2 * length(template, thought)}
    each = {"stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": True}}
    events, _ = await ask(template, text, **each)
    counts = [event["usage"]["completion_tokens_details"]["reasoning_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == length(template, thought)


@pytest.mark.parametrize(("template", "text"), THINKERS, ids=NAMES)
async def test_wherever_the_limit_cuts_no_mark_is_seen(template: str, text: str) -> None:
    for limit in range(1, length(template, text)):
        (choice,) = (await ask(template, text, max_tokens=limit))[0]["choices"]
        message = choice["message"]
        assert choice["finish_reason"] == "length"
        assert "Well, é < ü.".startswith(message.get("reasoning_content", "").rstrip("\ufffd"))
        assert "It is fine.".startswith(message["content"])
        assert not message["content"] or message["reasoning_content"] == "Well, é < ü."
    few = length(template, text.partition("Well,")[0] + "Well,")
    events, _ = await ask(template, text, max_tokens=few, stream=True)
    assert gathered(events) == {"reasoning_content": "Well,", "content": "", "tool_calls": [], "finish": "length"}


@pytest.mark.parametrize(("template", "text"), [(QWEN3, HERMES), (GPT_OSS, CALLS)], ids=["qwen3", "gpt-oss"])
async def test_a_model_that_thinks_calls(template: str, text: str) -> None:
    body, _ = await ask(template, text, tools=[TOOL])
    (choice,) = body["choices"]
    (call,) = choice["message"].pop("tool_calls")
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Ulm"}'}
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("I look.", "Rain?")
    assert choice["finish_reason"] == "tool_calls"
    message = gathered((await ask(template, text, tools=[TOOL], stream=True))[0])
    (call,) = message.pop("tool_calls")
    assert (call["index"], call["function"]) == (0, {"name": "weather", "arguments": '{"city": "Ulm"}'})
    assert message == {"reasoning_content": "Rain?", "content": "I look.", "finish": "tool_calls"}
    (choice,) = (await ask(template, text))[0]["choices"]
    assert "tool_calls" not in choice["message"]
    assert '{"city": "Ulm"}' in choice["message"]["content"] or '"arguments": {"city"' in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(("template", "text"), THINKERS, ids=NAMES)
async def test_stop_strings_end_what_is_said(template: str, text: str) -> None:
    for stop, content in ((["ü", "assistant", "\n"], "It is fine."), (["fine", "Well"], "It is ")):
        (choice,) = (await ask(template, text, stop=stop))[0]["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (content, "stop")
        assert choice["message"]["reasoning_content"] == "Well, é < ü."


async def test_two_answers_do_not_mix_and_tokens_are_all_told() -> None:
    texts = [HARMONY, HARMONY.replace("Well", "No").replace("fine", "bad")]
    body, _ = await ask(GPT_OSS, texts, n=2, logprobs=True, return_token_ids=True)
    said = [choice["message"]["reasoning_content"] + choice["message"]["content"] for choice in body["choices"]]
    assert said == ["Well, é < ü.It is fine.", "No, é < ü.It is bad."]
    for choice, text in zip(body["choices"], texts, strict=True):
        assert choice["token_ids"] == model_of(GPT_OSS).tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    events, _ = await ask(GPT_OSS, texts, n=2, logprobs=True, return_token_ids=True, stream=True)
    for index, choice in enumerate(body["choices"]):
        assert gathered(events, index)["content"] == choice["message"]["content"]
        mine = [one for event in events for one in event["choices"] if one["index"] == index]
        assert [token for one in mine for token in one.get("token_ids", [])] == choice["token_ids"]
        scores = [score for one in mine if one["logprobs"] for score in one["logprobs"]["content"]]
        assert scores == choice["logprobs"]["content"]


@pytest.mark.parametrize(("template", "ends"), [
    (QWEN3, "<|im_start|>assistant\n"), (DEEPSEEK_R1, "<think>\n\n</think>\n\n"),
    (GPT_OSS, "<|start|>assistant<|channel|>final<|message|>"),
], ids=NAMES)  # fmt: skip
async def test_where_thinking_is_turned_off_an_answer_in_a_form_begins_at_once(template: str, ends: str) -> None:
    off = {"reasoning_effort": "none"}
    body, prompts = await ask(template, "x", guided_choice=["<b>yes</b>"], **off)
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "<b>yes</b>", "refusal": None}
    assert prompts[0].endswith(ends)
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    for more in ({}, {"tools": [TOOL]}):
        (choice,) = (await ask(template, "x", response_format=form, **more, **off))[0]["choices"]
        if choice["finish_reason"] == "tool_calls":
            continue
        assert json.loads(choice["message"]["content"]) == {"n": 7}
        assert "reasoning_content" not in choice["message"]
    must = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    (choice,) = (await ask(template, "x", **must, **off))[0]["choices"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    assert choice["message"]["content"] is None


async def test_an_answer_goes_on_in_its_channel() -> None:
    begun = [*HELLO, {"role": "assistant", "content": "It is"}]
    for template, text, end in ((QWEN3, "<think> that ends it.", "<|im_end|>"), (GPT_OSS, " to=all.", "<|return|>")):
        more = {"messages": begun, "continue_final_message": True, "add_generation_prompt": False}
        (choice,) = (await ask(template, text + end, **more))[0]["choices"]
        assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_that_comes_back_reaches_the_template(name: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [*HELLO, {"role": "assistant", "content": None, name: "Rain?", "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "a", "content": "no"}]  # fmt: skip
    for template, shown in ((QWEN3, "<think>\nRain?\n</think>"), (GPT_OSS, "analysis<|message|>Rain?<|end|>")):
        assert shown in (await ask(template, "x", messages=turns, tools=[TOOL], max_tokens=1))[1][0]
    turns[1][name] = [{"type": "text", "text": "Rain?"}]  # another server's form
    assert "Rain?" not in (await ask(QWEN3, "x", messages=turns, tools=[TOOL], max_tokens=1))[1][0]


async def test_a_model_that_does_not_think_answers_as_ever() -> None:
    text = "<think>\nWell.\n</think>\n\n It is.\n"
    body, _ = await ask(PLAIN, text + "<|im_end|>", stop=["never"])
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert set(body["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}
    events, _ = await ask(PLAIN, text + "<|im_end|>", stream=True)
    assert gathered(events)["content"] == text
    assert not any("reasoning_content" in choice["delta"] for event in events for choice in event["choices"])
