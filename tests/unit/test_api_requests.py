"""What the HTTP interface takes for a request: JSON, fields and their bounds."""

from __future__ import annotations

import json

import pytest
from shoal.client.api.chat_request import RESERVED, read_chat
from shoal.client.api.completion_request import read_completion
from shoal.client.api.embedding_request import read_embedding
from shoal.client.api.errors import ApiError
from shoal.client.api.jsonbody import MAX_DEPTH, parse
from shoal.client.api.wishes import Shape

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"[1]", "object"),
        (b'{"a":1,"a":2}', "'a' is given twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":1e999}', "too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'\xef\xbb\xbf{"a":1}', "not JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested"),
        (b"{" + b",".join(b'"%d":0' % (n % 99_999) for n in range(100_000)) + b"}", "given twice"),
    ],
)
def test_json_that_may_be_understood_in_two_ways_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        parse(body)
    assert caught.value.status == 400


def test_plain_json_is_read() -> None:
    given = {"a": [1, -2.5, "\U0001f41f", None, True], "b": {"c": 10**20}}
    assert parse(json.dumps(given).encode()) == given
    deep = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse(deep)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "prompt"),
        ({"promt": "x"}, "prompt"),
        ({"prompt": "x", "temprature": 1}, "temprature"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["x", 1]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [True, False]}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": "5"}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 0, "echo": True, "stream": True}, "stream"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 10**30}, "max_tokens"),
        ({"prompt": "x", "temperature": -0.1}, "temperature"),
        ({"prompt": "x", "top_p": 1.1}, "top_p"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 2, "best_of": 1}, "best_of"),
        ({"prompt": "x", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "x", "stop": ["a", ""]}, "stop[1]"),
        ({"prompt": "x", "stop": ["a"] * 99}, "stop"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "x", "stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
         "response_format.json_schema.schema"),
        ({"prompt": "x", "response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format"),
        ({"prompt": "x", "seed": 1 << 63}, "seed"),
        ({"prompt": "x", "store": True}, "store"),
    ],
)  # fmt: skip
def test_a_completion_that_cannot_be_done_names_the_field(given: dict, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_completion(given)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_completion_is_read() -> None:
    given = {
        "model": "m", "prompt": [[1, 2], [3]], "max_tokens": 7, "n": 2, "best_of": 3, "stop": "x", "top_p": 0,
        "top_k": -1, "seed": -1, "logit_bias": {"5": -100}, "logprobs": 0, "echo": True, "user": "u", "metadata": {},
        "stream": False, "temperature": None, "service_tier": "flex", "guided_choice": ["a", "b"],
    }  # fmt: skip
    found = read_completion(given)
    assert (found.prompts, found.best_of, found.echo) == (((1, 2), (3,)), 3, True)
    wishes = found.wishes
    assert (wishes.n, wishes.max_tokens, wishes.stops, wishes.top_k, wishes.top_logprobs) == (2, 7, ("x",), 0, 0)
    assert wishes.seed == (1 << 63) - 1
    assert 0 < wishes.top_p < 1e-6
    assert wishes.logit_bias == {5: -100.0}
    assert (wishes.temperature, wishes.background) == (1.0, True)
    assert wishes.shape == Shape("choice", ("a", "b"))


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].tool_call_id"),
        ({"messages": HELLO, "top_logprobs": 3}, "top_logprobs"),
        ({"messages": HELLO, "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"messages": HELLO, "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"messages": HELLO, "tools": [TOOL, TOOL]}, "tools"),
        ({"messages": HELLO, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
        ({"messages": HELLO, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}},
         "tool_choice"),
        ({"messages": HELLO, "functions": [{}]}, "functions"),
        ({"messages": HELLO, "modalities": ["audio"]}, "modalities[0]"),
        ({"messages": HELLO, "continue_final_message": True}, "continue_final_message"),
        ({"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"messages": HELLO, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
        ({"messages": HELLO, "tools": [TOOL], "response_format": {"type": "json_object"}, "tool_choice": "required"},
         "response_format"),
    ],
)  # fmt: skip
def test_a_chat_that_cannot_be_done_names_the_field(given: dict, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_chat(given)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_nothing_that_transformers_takes_for_itself_comes_from_a_request() -> None:
    """A template in a request would be a program: it could compute for hours."""
    from inspect import signature

    from transformers import PreTrainedTokenizerBase

    own = {*signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"kwargs"}
    assert own <= RESERVED


def test_an_answer_of_openai_s_own_client_is_read_again() -> None:
    function = {"name": "add", "arguments": "{}", "parsed_arguments": {}}
    answer = {"role": "assistant", "content": None, "parsed": None,
              "tool_calls": [{"id": "1", "type": "function", "function": function}]}  # fmt: skip
    read = read_chat({"messages": [*HELLO, answer], "tools": [TOOL]})
    assert read.messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}


def test_a_chat_is_read() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    given = {
        "messages": [
            {"role": "developer", "content": "be short"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "eve"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
        ],
        "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}, "logprobs": True,
        "max_completion_tokens": 9, "reasoning_effort": "low", "stop": None,
    }  # fmt: skip
    found = read_chat(given)
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant", "tool"]
    assert (found.messages[1]["content"], found.messages[1]["name"]) == ("a\nb", "eve")
    assert found.messages[2]["tool_calls"] == [call]
    assert (found.tool_choice, found.named_tool, found.wishes.max_tokens) == ("required", "add", 9)
    assert (found.wishes.top_logprobs, found.template_options) == (0, {"reasoning_effort": "low"})
    assert read_chat({"messages": HELLO, "tools": [TOOL]}).tool_choice == "auto"


def test_an_embedding_is_read() -> None:
    found = read_embedding({"input": ["a", "b"], "encoding_format": "base64"})
    assert (found.inputs, found.base64, found.normalize) == (("a", "b"), True, True)
    with pytest.raises(ApiError, match="encoding_format"):
        read_embedding({"input": "a", "encoding_format": "hex"})
