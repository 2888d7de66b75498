"""No request, however malformed, is the server's fault: statuses are 200 or 4xx, errors have OpenAI's shape."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from api_server import Server

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(200)]

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
BASES: dict[str, dict[str, Any]] = {
    PATHS[0]: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    PATHS[1]: {"prompt": "x", "max_tokens": 1},
    PATHS[2]: {"input": "x"},
}
FIELDS = (
    "add_generation_prompt", "audio", "best_of", "chat_template_kwargs", "continue_final_message", "dimensions", "echo",
    "encoding_format", "frequency_penalty", "functions", "guided_choice", "guided_json", "guided_regex", "ignore_eos",
    "input", "logit_bias", "logprobs", "messages", "metadata", "min_p", "modalities", "model", "n",
    "parallel_tool_calls", "presence_penalty", "priority", "prompt", "reasoning_effort", "repetition_penalty",
    "response_format", "return_token_ids", "seed", "service_tier", "stop", "stop_token_ids", "store", "stream",
    "stream_options", "structured_outputs", "suffix", "temperature", "tool_choice", "tools", "top_k", "top_logprobs",
    "top_p", "user",
)  # fmt: skip
WORDS = ("auto", "none", "required", "json_object", "text", "user", "assistant", "tool", "function", "[a-", "(" * 99)
NUMBERS = (-1, 0, 1, 2, 20, 127, 1 << 31, 1 << 63, -(1 << 63), 10**31, 0.5, -0.0, 1e-320, 1e308)
KEYWORDS = (
    "role", "content", "type", "text", "function", "name", "parameters", "arguments", "schema", "json", "json_schema",
    "tool_calls", "tool_call_id", "include_usage", "0", "7", "99999",
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(WORDS),
)
KEYS = st.one_of(st.sampled_from(KEYWORDS), st.text(max_size=4))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
SCHEMA_KEYS = st.sampled_from(["type", "properties", "required", "enum", "pattern", "$ref", "anyOf", "minimum"])
SCHEMAS = st.dictionaries(SCHEMA_KEYS, VALUES, max_size=3)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": VALUES}), max_size=3)
BODIES = st.one_of(st.binary(max_size=40), VALUES.map(lambda value: json.dumps(value).encode()))
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "BREW"])
TARGETS = st.sampled_from(
    [*PATHS, "/", "/health", "/metrics", "/v1/models", "/v1/models/a/b", "/v1/%00", "/%2e%2e", "/v1/models/%ff", "*"]
)
# Not Expect: aiohttp answers it by itself, before the application, with a 500 if it is not ASCII.
HEADERS = st.dictionaries(
    st.sampled_from(["Host", "Origin", "Authorization", "Content-Type", "Content-Encoding", "X-Api-Key"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=12),
    max_size=3,
)
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(path=st.sampled_from(PATHS), changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
def test_any_value_in_any_field(api_server: Server, path: str, changes: dict[str, Any]) -> None:
    check(api_server, path, {**BASES[path], **changes})


@settings(FUZZ, max_examples=60)
@given(schema=SCHEMAS)
def test_any_schema(api_server: Server, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    check(api_server, PATHS[0], {**BASES[PATHS[0]], "response_format": form})


@settings(FUZZ, max_examples=60)
@given(messages=MESSAGES)
def test_any_messages(api_server: Server, messages: list[Any]) -> None:
    check(api_server, PATHS[0], {**BASES[PATHS[0]], "messages": messages})


@settings(FUZZ, max_examples=60)
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_any_bytes(api_server: Server, path: str, body: bytes) -> None:
    check(api_server, path, body)


@settings(FUZZ, max_examples=60)
@given(method=METHODS, path=TARGETS, headers=HEADERS)
def test_any_method_path_and_headers(api_server: Server, method: str, path: str, headers: dict[str, str]) -> None:
    send(api_server, method, path, b"{}", headers)


def check(server: Server, path: str, body: bytes | dict[str, Any]) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer, kind = send(server, "POST", path, data, {"Content-Type": "application/json"})
    if status == 200:
        assert kind.startswith(("application/json", "text/event-stream"))
        assert b'"error"' not in answer.partition(b"choices")[0]
        return
    error = json.loads(answer)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]


def send(server: Server, method: str, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders(data)
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    assert response.status < 500, (method, path, data, headers, answer)
    return response.status, answer, response.headers.get("Content-Type", "")
