"""The `openai` package against `shoal api` over three real peers: what works with OpenAI's service works here."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from typing import TYPE_CHECKING, Any

import openai
import pytest
import torch
from python_swarm import whole_model
from shoal.blocks.checkpoint import DEMO_PATH
from transformers import AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api_server import Server

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(200)]

PROMPT = "class Point:\n    def __init__(self, x, y):\n"
HELLO: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Write a loop."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {side: {"type": "integer", "minimum": 0, "maximum": 9} for side in ("a", "b")},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(api_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api_server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO_PATH)


@pytest.fixture(scope="module")
def whole() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield whole_model()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected(whole: Any, tokenizer: Any) -> tuple[list[int], torch.Tensor]:
    """What transformers goes on with, 12 tokens, greedily; and the log-probabilities of every position."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    made = whole.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)[0]
    with torch.inference_mode():
        return made.tolist(), whole(made[None]).logits[0].log_softmax(-1)


# -- completions ----------------------------------------------------------------------------------------------------


def test_a_completion_is_what_transformers_makes(client, expected, tokenizer) -> None:
    ids, logprobs = expected
    start = len(ids) - 12
    raw = client.completions.with_raw_response.create(
        model="demo", prompt=PROMPT, max_tokens=12, temperature=0, logprobs=3, echo=True
    )
    found = raw.parse()
    choice = found.choices[0]
    assert choice.text == PROMPT + tokenizer.decode(ids[start:])
    assert (choice.finish_reason, found.usage.prompt_tokens, found.usage.completion_tokens) == ("length", start, 12)
    assert choice.logprobs.token_logprobs[0] is None
    for at, (given, top) in enumerate(zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True)):
        if at:
            assert given == pytest.approx(logprobs[at - 1, ids[at]].item(), abs=1e-3)
            assert max(top.values()) == pytest.approx(logprobs[at - 1].max().item(), abs=1e-3)
    for text, offset in list(zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True))[1:]:
        assert choice.text[offset : offset + len(text)] == text
    check_provenance(found.shoal, raw.headers)


def check_provenance(shoal: dict[str, Any], headers: Any = None) -> None:
    for answer in shoal["answers"]:
        blocks = [hop["blocks"] for hop in answer["route"]]
        assert (blocks[0][0], blocks[-1][1]) == (0, 12)
        assert {hop["peer"] for hop in answer["route"]} <= set(shoal["peers"])
    assert 0 < shoal["ttft_s"] <= shoal["total_s"]
    if headers is not None:
        assert headers["x-shoal-peers"].split(", ") == shoal["peers"]
        assert headers["x-request-id"].startswith("req_")


def test_prompts_come_in_every_form(client, expected, tokenizer) -> None:
    ids, _ = expected
    start = len(ids) - 12
    how: Any = {"model": "demo", "max_tokens": 12, "temperature": 0}
    for prompt in (ids[:start], [ids[:start]], [PROMPT, "import"], [ids[:start], ids[:5]]):
        found = client.completions.create(prompt=prompt, **how)
        assert found.choices[0].text == tokenizer.decode(ids[start:])
        assert [choice.index for choice in found.choices] == list(range(len(found.choices)))
    assert len(found.choices) == 2


def test_a_stream_says_the_same_in_pieces(client, expected, tokenizer) -> None:
    ids, _ = expected
    how: Any = {"model": "demo", "prompt": [PROMPT, "import"], "max_tokens": 12, "temperature": 0, "logprobs": 1}
    events = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **how))
    text = "".join(choice.text for event in events for choice in event.choices if choice.index == 0)
    assert text == tokenizer.decode(ids[-12:])
    reasons = [choice.finish_reason for event in events for choice in event.choices if choice.finish_reason]
    assert reasons == ["length", "length"]
    logprobs = [choice.logprobs for event in events for choice in event.choices if choice.index == 0]
    assert sum(len(one.tokens) for one in logprobs) == 12
    assert [event.usage is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].usage.completion_tokens == 24
    check_provenance(events[-2].shoal)


def test_stops_seeds_biases_and_the_best_of_some(client, expected, tokenizer) -> None:
    ids, _ = expected
    how: Any = {"model": "demo", "prompt": PROMPT, "max_tokens": 12}
    whole_text = tokenizer.decode(ids[-12:])
    stop = whole_text[5:9]
    found = client.completions.create(temperature=0, stop=["\0", stop], **how).choices[0]
    assert (found.text, found.finish_reason) == (whole_text[: whole_text.find(stop)], "stop")
    first = ids[-12]
    banned = client.completions.create(temperature=0, logit_bias={str(first): -100}, logprobs=0, **how).choices[0]
    assert banned.logprobs.tokens[0] != tokenizer.decode([first])
    drawn = [client.completions.create(seed=5, temperature=1.5, **how).choices[0].text for _ in range(2)]
    assert drawn[0] == drawn[1]
    several = client.completions.create(n=3, seed=5, temperature=1.5, **how)
    assert several.choices[0].text == drawn[0]
    assert len({choice.text for choice in several.choices}) == 3
    best = client.completions.create(n=1, best_of=3, seed=5, temperature=1.5, logprobs=0, **how)
    assert best.choices[0].text in {choice.text for choice in several.choices}
    assert best.usage.completion_tokens == several.usage.completion_tokens
    limited = client.completions.create(temperature=1.5, extra_body={"top_k": 1}, **how).choices[0]
    assert limited.text == whole_text
    rows: Any = {"model": "demo", "prompt": "row = [0, 0, 0, 0,", "max_tokens": 40, "temperature": 0}
    repeats = client.completions.create(**rows).choices[0].text
    varies = client.completions.create(frequency_penalty=2, presence_penalty=2, **rows).choices[0].text
    assert len(set(varies.split())) > len(set(repeats.split()))


def test_a_prompt_s_own_likelihood_without_a_token_more(client, expected) -> None:
    ids, logprobs = expected
    how: Any = {"model": "demo", "prompt": [ids], "max_tokens": 0, "echo": True, "logprobs": 1}
    found = client.completions.create(**how).choices[0]
    total = sum(logprobs[at - 1, ids[at]].item() for at in range(1, len(ids)))
    assert sum(found.logprobs.token_logprobs[1:]) == pytest.approx(total, abs=1e-2)


# -- chat -----------------------------------------------------------------------------------------------------------


def test_a_chat_at_once_and_streamed(client) -> None:
    how: Any = {"model": "demo", "messages": HELLO, "max_completion_tokens": 16, "temperature": 0}
    found = client.chat.completions.create(**how)
    message = found.choices[0].message
    assert (message.role, message.tool_calls, found.usage.completion_tokens) == ("assistant", None, 16)
    assert message.content
    check_provenance(found.shoal)
    events = list(client.chat.completions.create(stream=True, **how))
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events) == message.content
    assert events[-1].choices[0].finish_reason == found.choices[0].finish_reason
    check_provenance(events[-1].shoal)


def test_three_answers_with_their_logprobs(client) -> None:
    how: Any = {"model": "demo", "messages": HELLO, "max_tokens": 8, "seed": 1, "n": 3, "temperature": 1.2}
    found = client.chat.completions.create(logprobs=True, top_logprobs=2, **how)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    for choice in found.choices:
        assert len(choice.logprobs.content) == 8
        for token in choice.logprobs.content:
            assert (token.logprob <= 0, len(token.top_logprobs)) == (True, 2)
            assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        joined = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
        assert joined.decode("utf-8", "replace").startswith(choice.message.content[:4])
    assert found.usage.completion_tokens == 24
    with client.chat.completions.create(stream=True, **how) as stream:
        texts = ["", "", ""]
        for event in stream:
            for choice in event.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in found.choices]


def test_json_by_a_schema(client) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    how: Any = {"model": "demo", "messages": HELLO, "max_tokens": 120, "seed": 3}
    found = client.chat.completions.create(response_format=form, n=2, **how)
    for choice in found.choices:
        thing = json.loads(choice.message.content)
        assert (set(thing), choice.finish_reason) == ({"name", "size"}, "stop")
        assert 0 <= thing["size"] <= 99
    chosen = client.chat.completions.create(extra_body={"guided_choice": ["yes", "no"]}, **how)
    assert chosen.choices[0].message.content in ("yes", "no")
    bad: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(response_format=bad, **how)


def test_a_tool_is_called_and_its_result_read(client) -> None:
    how: Any = {"model": "demo", "messages": HELLO, "tools": [ADD], "max_tokens": 120, "temperature": 0}
    one: Any = {**how, "parallel_tool_calls": False}
    found = client.chat.completions.create(tool_choice="required", **one).choices[0]
    call = found.message.tool_calls[0]
    assert (found.finish_reason, call.type, call.function.name) == ("tool_calls", "function", "add")
    numbers = json.loads(call.function.arguments)
    assert set(numbers) == {"a", "b"}
    assert all(0 <= number <= 9 for number in numbers.values())
    named: Any = {"type": "function", "function": {"name": "add"}}
    parts = [
        part
        for event in client.chat.completions.create(tool_choice=named, stream=True, **how)
        for choice in event.choices
        for part in choice.delta.tool_calls or []
        if part.index == 0
    ]
    assert (bool(parts[0].id), parts[0].function.name) == (True, "add")
    assert set(json.loads("".join(part.function.arguments or "" for part in parts))) == {"a", "b"}
    after = [*HELLO, found.message, {"role": "tool", "tool_call_id": call.id, "content": "7"}]
    how["messages"] = after
    assert client.chat.completions.create(tool_choice="none", **how).choices[0].message.content


@pytest.mark.alone  # on a busy machine other hops may promise to be sooner than those that know the prompt
def test_a_second_turn_finds_the_first_one_s_kv(client) -> None:
    messages: list[Any] = [{"role": "user", "content": "x = 1\n" * 60}]
    how: Any = {"model": "demo", "max_tokens": 70, "temperature": 0}
    first = client.chat.completions.create(messages=messages, **how)
    messages += [first.choices[0].message, {"role": "user", "content": "go on"}]
    second = client.chat.completions.create(messages=messages, **how)
    assert second.usage.prompt_tokens_details.cached_tokens >= 64


# -- the rest -------------------------------------------------------------------------------------------------------


def test_embeddings_are_the_last_hidden_states(client, whole, tokenizer) -> None:
    texts = [PROMPT, "import os"]
    found = client.embeddings.create(model="demo", input=texts)  # the package asks for base64 and decodes it
    ids = [tokenizer(text).input_ids for text in texts]
    plain = client.embeddings.create(model="demo", input=ids, encoding_format="float")
    for text, one, other in zip(texts, found.data, plain.data, strict=True):
        with torch.inference_mode():
            hidden = whole.model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))[0][0, -1]
        wanted = (hidden / hidden.norm()).tolist()
        assert one.embedding == pytest.approx(wanted, abs=1e-3)
        assert other.embedding == pytest.approx(one.embedding, abs=1e-6)
        assert math.isclose(sum(x * x for x in one.embedding), 1, abs_tol=1e-4)
    assert found.usage.prompt_tokens == sum(len(tokenizer(text).input_ids) for text in texts)
    raw = client.embeddings.with_raw_response.create(model="demo", input=PROMPT, encoding_format="base64")
    body = raw.http_response.json()
    assert len(base64.b64decode(body["data"][0]["embedding"])) == 4 * len(wanted)
    assert body["shoal"]["peers"] == raw.headers["x-shoal-peers"].split(", ")
    blocks = [hop["blocks"] for hop in body["shoal"]["answers"][0]["route"]]
    assert (blocks[0][0], blocks[-1][1]) == (0, 12)
    many = client.embeddings.create(model="demo", input=[f"name {n}" for n in range(20)])
    assert [one.index for one in many.data] == list(range(20))


def test_models_are_listed(client) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").max_model_len == 2048


@pytest.mark.parametrize(
    ("kind", "how", "param"),
    [
        (openai.NotFoundError, {"model": "gpt-9", "prompt": "x"}, "model"),
        (openai.BadRequestError, {"prompt": "x", "temperature": 9}, "temperature"),
        (openai.BadRequestError, {"prompt": [99_999_999]}, "prompt"),
        (openai.BadRequestError, {"prompt": ""}, None),
        (openai.BadRequestError, {"prompt": "x " * 4000}, None),
        (openai.BadRequestError, {"prompt": "x", "logit_bias": {"99999999": 1}}, "logit_bias"),
    ],
)
def test_errors_are_openai_s(client, kind, how, param) -> None:
    if how["prompt"] == "":
        how = {"prompt": [[]]}
    with pytest.raises(kind) as caught:
        client.completions.create(**{"model": "demo", "max_tokens": 2, **how})
    if param:
        assert caught.value.param == param
    assert caught.value.body["message"]


async def test_many_at_once_asynchronously(api_server: Server, expected, tokenizer) -> None:
    ids, _ = expected
    async with openai.AsyncOpenAI(base_url=f"{api_server.url}/v1", api_key="unused", max_retries=0) as client:

        async def one(streamed: bool) -> str:
            how: Any = {"model": "demo", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
            if not streamed:
                return (await client.completions.create(**how)).choices[0].text
            stream = await client.completions.create(stream=True, **how)
            return "".join([choice.text async for event in stream for choice in event.choices])

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one(streamed=n % 2 == 0)) for n in range(12)]
        assert {task.result() for task in running} == {tokenizer.decode(ids[-12:])}
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model="demo", prompt="x", n=0)
