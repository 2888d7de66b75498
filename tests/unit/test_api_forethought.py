"""Answers in a form by models that think first, through the whole HTTP application."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from scripted_api import HELLO, ask, gathered, length, served
from scripted_model import DEEPSEEK_R1, GPT_OSS, PLAIN, QWEN3
from shoal.client.guess import Guesser

if TYPE_CHECKING:
    from collections.abc import Mapping

# aiohttp 3.14 advises keys that the older releases we run with do not have.
pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")

THOUGHT = "Well, é < ü."
NAMES = ["qwen3", "r1", "gpt-oss"]
BEFORE = {
    QWEN3: f"<think>\n{THOUGHT}\n</think>\n\n",
    DEEPSEEK_R1: f"{THOUGHT}\n</think>\n\n",
    GPT_OSS: f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>",
}
SCHEMA = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
SURE = "Sure, <i>I</i> say it."  # what the model would say
HERMES = '<tool_call>\n{"name": "look", "arguments": {"n": 7}}\n</tool_call>'
TO = "<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
CALLS = {
    QWEN3: BEFORE[QWEN3] + HERMES, DEEPSEEK_R1: BEFORE[DEEPSEEK_R1] + HERMES,
    GPT_OSS: BEFORE[GPT_OSS].replace("<|channel|>final<|message|>", TO) + '{"n": 7}',
}  # fmt: skip
thinkers = pytest.mark.parametrize("template", [*BEFORE], ids=NAMES)


def thought_and(content: str | None) -> Mapping[str, object]:
    return {"role": "assistant", "content": content, "refusal": None, "reasoning_content": THOUGHT}


@thinkers
@pytest.mark.parametrize(
    ("asked", "content"),
    [
        ({"guided_choice": ["yes"]}, "yes"),
        ({"guided_regex": "[a]{3}"}, "aaa"),
        ({"response_format": FORM}, None),
    ],
    ids=["choice", "regex", "schema"],
)
async def test_a_model_thinks_before_its_form(template: str, asked, content: str | None) -> None:
    text = BEFORE[template] + SURE
    free, unforced = await ask(template, text, max_tokens=length(template, BEFORE[template]))
    body, prompts = await ask(template, text, **asked)
    (choice,) = body["choices"]
    said = choice["message"]["content"]
    assert json.loads(said) == {"n": 7} if content is None else said == content
    assert (choice["message"], choice["finish_reason"]) == (thought_and(said), "stop")
    assert prompts == unforced, "nothing is put before the answer"
    events, _ = await ask(template, text, stream=True, stream_options={"include_usage": True}, **asked)
    streamed = gathered(events)
    assert (streamed["reasoning_content"], streamed["finish"]) == (THOUGHT, "stop")
    assert json.loads(streamed["content"]) == {"n": 7} if content is None else streamed["content"] == content
    for usage in (body["usage"], events[-1]["usage"]):
        assert usage["completion_tokens_details"] == free["usage"]["completion_tokens_details"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] > length(template, THOUGHT)


@thinkers
@pytest.mark.parametrize("choice", ["required", "named"])
async def test_a_model_thinks_before_a_call_that_is_asked_for(template: str, choice: str) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    must = {"tools": [TOOL], "tool_choice": named if choice == "named" else choice, "parallel_tool_calls": False}
    begun = CALLS[GPT_OSS].partition(" to=")[0] if template == GPT_OSS else BEFORE[template]
    body, _ = await ask(template, begun + SURE, **must)
    (choice,) = body["choices"]
    (call,) = choice["message"].pop("tool_calls")
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("look", {"n": 7})
    assert (choice["message"], choice["finish_reason"]) == (thought_and(None), "tool_calls")


@thinkers
async def test_a_model_thinks_before_it_calls_or_answers_in_a_form(template: str) -> None:
    either = {"tools": [TOOL], "response_format": FORM, "parallel_tool_calls": False}
    (choice,) = (await ask(template, BEFORE[template] + '{"n": 7}' + SURE, **either))[0]["choices"]
    assert (choice["message"], choice["finish_reason"]) == (thought_and('{"n": 7}'), "stop")
    (choice,) = (await ask(template, CALLS[template] + SURE, **either))[0]["choices"]
    (call,) = choice["message"].pop("tool_calls")
    assert json.loads(call["function"]["arguments"]) == {"n": 7}
    assert (choice["message"], choice["finish_reason"]) == (thought_and(None), "tool_calls")


@thinkers
async def test_a_limit_bounds_thought_and_form(template: str) -> None:
    whole = length(template, BEFORE[template])
    for limit in (1, whole // 2, whole - 3, whole - 1, whole, whole + 2):
        asked = {"guided_choice": ["yes or no"], "max_tokens": limit}
        (choice,) = (await ask(template, BEFORE[template] + SURE, **asked))[0]["choices"]
        message = choice["message"]
        assert choice["finish_reason"] == "length"
        assert THOUGHT.startswith(message.get("reasoning_content", "").rstrip("\ufffd"))
        assert "yes or no".startswith(message["content"])
        assert bool(message["content"]) == (limit > whole)


@thinkers
async def test_the_model_s_end_is_none_in_its_thought(template: str) -> None:
    """It would leave the form out."""
    text = BEFORE[template].replace("Well, ", "Well, <|im_end|>") + SURE
    (choice,) = (await ask(template, text, guided_choice=["yes"], seed=1))[0]["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("yes", "stop")
    assert choice["message"]["reasoning_content"].startswith("Well, ")
    (choice,) = (await ask(template, text))[0]["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"].rstrip()) == ("", "Well,")


@thinkers
async def test_stop_strings_end_the_form_and_no_thought(template: str) -> None:
    asked = {"guided_choice": ["yes or no"], "stop": ["é", "\n", "or", "assistant"]}
    (choice,) = (await ask(template, BEFORE[template] + SURE, **asked))[0]["choices"]
    assert (choice["message"], choice["finish_reason"]) == (thought_and("yes "), "stop")


@thinkers
async def test_each_of_several_answers_has_its_own_thought(template: str) -> None:
    long = BEFORE[template].replace(THOUGHT, f"{THOUGHT} {THOUGHT}")
    for more in ({}, {"stream": True}):
        body, _ = await ask(template, [BEFORE[template] + SURE, long + SURE], n=2, guided_choice=["yes"], **more)
        found = [gathered(body, index) for index in (0, 1)] if more else [one["message"] for one in body["choices"]]
        assert [(one["reasoning_content"], one["content"]) for one in found] == [
            (THOUGHT, "yes"), (f"{THOUGHT} {THOUGHT}", "yes"),
        ]  # fmt: skip


@thinkers
async def test_a_seed_gives_the_same_answer_again(template: str) -> None:
    asked = {"guided_regex": "[a-z]{8}", "return_token_ids": True}
    texts = [(await ask(template, BEFORE[template] + SURE, seed=seed, **asked))[0]["choices"][0] for seed in (3, 3, 4)]
    assert texts[0] == texts[1]
    assert texts[0]["message"]["content"] != texts[2]["message"]["content"]


@thinkers
async def test_guesses_across_a_thought_s_end_are_judged_by_the_form(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt tells what the model would say behind the thought's end, so that this is guessed, and not allowed."""
    monkeypatch.setattr(Guesser, "_worth", lambda _: 16)  # whatever a step takes here
    text = BEFORE[template] + SURE
    told = [{"role": "user", "content": f"{THOUGHT} {THOUGHT} {text}"}]
    asked = {"messages": told, "guided_choice": ["yes it is"], "return_token_ids": True, "temperature": 0}
    (plain,) = (await ask(template, text, **asked))[0]["choices"]
    body, serving = await served(template, text, speculate=16, **asked)
    assert body["choices"] == [plain]
    assert plain["message"] == thought_and("yes it is")
    ends = length(template, BEFORE[template])
    assert any(step.start < ends and step.stop > ends + 1 for step in serving.swarm.steps), "guesses were across it"


@pytest.mark.parametrize("thinks", [False, True])
async def test_a_model_that_need_not_think_begins_either_way(thinks: bool) -> None:
    text = (BEFORE[QWEN3] if thinks else "") + '{"n": 7}'
    body, _ = await ask(QWEN3, text, response_format=FORM, return_token_ids=True)
    (choice,) = body["choices"]
    assert choice["message"] == {key: value for key, value in thought_and('{"n": 7}').items()
                                 if thinks or key != "reasoning_content"}  # fmt: skip
    assert len(choice["token_ids"]) == length(QWEN3, text)


@pytest.mark.parametrize("off", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}])
@thinkers
async def test_a_model_that_is_not_to_think_does_not(template: str, off) -> None:
    (choice,) = (await ask(template, BEFORE[template] + SURE, guided_choice=["yes"], **off))[0]["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes", "refusal": None}


async def test_a_thought_that_is_gone_on_with_ends_first() -> None:
    for begun, text, said in (("<think>\nWell", f", é.\n</think>\n\n{SURE}", "yes"), ("Well, ", SURE, "yes")):
        turns = [*HELLO, {"role": "assistant", "content": begun}]
        more = {"messages": turns, "continue_final_message": True, "add_generation_prompt": False}
        (choice,) = (await ask(QWEN3, text, guided_choice=["yes"], **more))[0]["choices"]
        assert choice["message"]["content"] == said
        assert choice["message"].get("reasoning_content") == (", é." if "<think>" in begun else None)


async def test_a_model_that_does_not_think_answers_in_its_form_at_once() -> None:
    (choice,) = (await ask(PLAIN, BEFORE[QWEN3], guided_choice=["yes"]))[0]["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes", "refusal": None}
