"""A model that writes what a test wants, token by token, through the client's own generation; and the templates of
models that think, shortened."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Self

import torch
from shoal.blocks.checkpoint import DEMO_PATH, resolve
from shoal.blocks.spec import spec_of
from shoal.client.actions import SessionStats
from shoal.client.local import ClientModel
from shoal.client.serving import Serving
from shoal.peer.wire import Want
from shoal.routing.view import View
from tokenizers import AddedToken
from transformers import AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

QWEN3 = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{"name": <function-name>, "arguments": <args-json-object>} within <tool_call></tool_call><|im_end|>
{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and m.reasoning_content %}
            {{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- m.content.split('</think>')[-1].lstrip('\\n') }}
        {%- for call in m.tool_calls %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
DEEPSEEK_R1 = """\
{%- for m in messages %}
    {%- if m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|im_end|>' }}
    {%- else %}{{ '<|User|>' + m.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""
GPT_OSS = """\
{{- '<|start|>system<|message|>Valid channels: analysis, commentary, final.<|end|>' }}
{%- for tool in tools or [] %}{{ '<|start|>developer<|message|>' + tool.function.name + '<|end|>' }}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' and m.tool_calls %}
        {%- if m.content and m.thinking %}{{ raise_exception('Cannot pass both content and thinking') }}{% endif %}
        {%- if m.thinking %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
        {%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
        {{- call.arguments | tojson + '<|call|>' }}
    {%- elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
    {%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant"
HIDDEN = (
    "<|im_end|>", "<|im_start|>", "<|User|>", "<|Assistant|>", "<|start|>", "<|channel|>", "<|constrain|>",
    "<|message|>", "<|end|>", "<|return|>", "<|call|>",
)  # fmt: skip
ENDS = ("<|im_end|>", "<|return|>", "<|call|>")


def thinking_tokenizer(template: str):
    """As such models have it: marks are single tokens; those of HIDDEN are no text and have no name of their own."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_PATH)
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in HIDDEN], special_tokens=True)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    tokenizer.chat_template = template
    return tokenizer


def thinking_model(template: str) -> ClientModel:
    """A model without weights: `scripted` says what it writes."""
    tokenizer, checkpoint = thinking_tokenizer(template), resolve("demo")
    spec = replace(spec_of(checkpoint), vocab_size=len(tokenizer))
    eos = frozenset(tokenizer.convert_tokens_to_ids(mark) for mark in ENDS)
    ends = SimpleNamespace(
        spec=spec, embed=lambda ids, _: torch.zeros(len(ids), 1),
        logits=lambda hidden: 100.0 * torch.nn.functional.one_hot(hidden[:, 0].long(), spec.vocab_size),
    )  # fmt: skip
    return ClientModel(checkpoint, ends, tokenizer, "float32", eos)


def scripted(model: ClientModel, *texts: str) -> Serving:
    """Answers are `texts` in turn, over no peers; behind its end a text begins anew."""
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return Serving(_Swarm(ids), model)


class _Swarm:
    def __init__(self, scripts: Sequence[Sequence[int]]) -> None:
        self._scripts, self._sessions = scripts, 0
        self.view = View(12, (), 0.0)
        self.presence = SimpleNamespace(there=lambda view: view)
        self.asked: list[tuple[int, ...]] = []  # the prompts
        self.steps: list[range] = []  # the tokens of answers, counted from 0, of which each told the scores

    def session(self, options):
        self.asked.append(options.prompt.token_ids)
        self._sessions += 1
        return _Session(self._scripts[(self._sessions - 1) % len(self._scripts)], self.steps)


class _Session:
    """`StepSession` of which the hidden states are the next token's number, whatever came before it."""

    def __init__(self, script: Sequence[int], steps: list[range]) -> None:
        self._script, self._steps, self._first = script, steps, 0
        self.position, self.route = 0, ()
        self.stats = SessionStats()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def ready(self, _: Sequence[int]) -> None:
        pass

    async def step(self, hidden: torch.Tensor, want: Want, *, prompt: bool = True) -> torch.Tensor:
        self.position += len(hidden)
        self._first = self._first or self.position  # where the prompt ends
        told, stop = len(hidden) if want is Want.ALL else 1, self.position - self._first + 1
        self._steps.append(range(stop - told, stop))
        return torch.tensor([[float(self._script[at % len(self._script)])] for at in self._steps[-1]])

    def recall_with(self, _: object) -> None:
        pass

    def remember(self, _: object) -> None:
        pass
