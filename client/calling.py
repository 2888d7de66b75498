"""The grammar of an answer that must call tools, in the form in which the model writes calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.client.calls import Style
from shoal.client.grammar import GrammarError, quoted, within
from shoal.client.harmony import CHANNEL, CONSTRAIN, MESSAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.client.calls import CallFormat
    from shoal.client.grammar import Grammar, Grammars


def must_call(
    grammars: Grammars, form: CallFormat, tools: Sequence[Mapping[str, Any]], *, parallel: bool = True,
    answer: Mapping[str, Any] | None = None,
) -> Grammar:  # fmt: skip
    """One call of one of `tools` (as OpenAI's API has them), or several if `parallel`, or else what fits the JSON
    schema `answer`, and nothing else.

    Errors: `GrammarError`, also where a tool's parameters are a schema that cannot be kept.
    """
    functions = [tool["function"] for tool in tools]
    if not functions:
        raise GrammarError("A call was asked for, but there are no tools to call.")
    rules = _RULES[form.style](grammars, form, functions, parallel)
    if answer is not None:
        final = header(grammars, "final") if form.style is Style.ADDRESSED else ""
        rules = f"start: answer | calls\nanswer: {final} {within(answer)}\n{rules.replace('start:', 'calls:', 1)}"
    return grammars.lark(rules)


_ANY = {"type": "object"}


def _object(function: Mapping[str, Any], form: CallFormat) -> dict[str, Any]:
    parameters = dict(function.get("parameters") or _ANY)
    shared = {key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters}  # named from the root
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, form.arguments: parameters},
        "required": ["name", form.arguments],
        "additionalProperties": False,
        **shared,
    }


def _alternatives(functions: Sequence[Mapping[str, Any]], form: CallFormat) -> str:
    rules = [f"call{n}: {within(_object(function, form))}" for n, function in enumerate(functions)]
    return "\n".join([f"call: {' | '.join(f'call{n}' for n in range(len(rules)))}", *rules])


def _tagged(grammars: Grammars, form: CallFormat, functions: Sequence[Mapping[str, Any]], parallel: bool) -> str:
    start, end, line = grammars.marker(form.start), grammars.marker(form.end), quoted("\n")
    more = f" ({line} block)*" if parallel else ""
    return f"start: block{more}\nblock: {start} {line} call {line} {end}\n{_alternatives(functions, form)}"


def _bare(_: Grammars, form: CallFormat, functions: Sequence[Mapping[str, Any]], parallel: bool) -> str:
    more = f" ({quoted('; ')} call)*" if parallel else ""
    return f"start: call{more}\n{_alternatives(functions, form)}"


def _listed(grammars: Grammars, form: CallFormat, functions: Sequence[Mapping[str, Any]], parallel: bool) -> str:
    more = f" ({quoted(', ')} call)*" if parallel else ""
    return f'start: {grammars.marker(form.start)} "[" call{more} "]"\n{_alternatives(functions, form)}'


def _named(grammars: Grammars, form: CallFormat, functions: Sequence[Mapping[str, Any]], parallel: bool) -> str:
    start, end = grammars.marker(form.start), grammars.marker(form.end)
    rules = [
        f"call{n}: {start} {quoted(function['name'])} {end} {within(function.get('parameters') or _ANY)}"
        for n, function in enumerate(functions)
    ]
    names = " | ".join(f"call{n}" for n in range(len(rules)))
    return "\n".join([f"start: call{'+' if parallel else ''}", f"call: {names}", *rules])


def _addressed(grammars: Grammars, _: CallFormat, functions: Sequence[Mapping[str, Any]], parallel: bool) -> str:  # noqa: ARG001
    """One call, whatever `parallel` says: its end is the answer's."""
    json_type = f"{grammars.marker(CONSTRAIN)} {quoted('json')}"
    rules = [
        f"call{n}: {header(grammars, _to(function), json_type)} {within(function.get('parameters') or _ANY)}"
        for n, function in enumerate(functions)
    ]
    return "\n".join([f"start: {' | '.join(f'call{n}' for n in range(len(rules)))}", *rules])


def _to(function: Mapping[str, Any]) -> str:
    return f"commentary to=functions.{function['name']} "


def header(grammars: Grammars, channel: str, form: str = "") -> str:
    """What begins a message of gpt-oss in a channel, as a Lark grammar writes it."""
    return f"{grammars.marker(CHANNEL)} {quoted(channel)} {form} {grammars.marker(MESSAGE)}"


_RULES = {
    Style.TAGGED: _tagged, Style.BARE: _bare, Style.LISTED: _listed, Style.NAMED: _named, Style.ADDRESSED: _addressed,
}  # fmt: skip
