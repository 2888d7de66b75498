"""The grammar of what a model thinks before an answer in a form: free up to the mark that ends it.

The form's grammar binds behind that mark, and from the first token on where the model begins with anything else than
the mark that begins a thought. What is thought must end where `client.reasoning` reads its end, however the marks are
cut into tokens: so they are part of the grammar. The model's end tokens are not allowed before the form.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shoal.client.calling import header
from shoal.client.grammar import quoted
from shoal.client.harmony import BREAKS, END, START
from shoal.client.thinking import Tags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client.grammar import Grammars
    from shoal.client.reasoning import Forethought

GAP = r"/\n{1,2}/"  # as models have it between their thoughts and what they say


def after(grammars: Grammars, thought: Forethought | None, *, calls: bool = False) -> Grammars:
    """For forms behind what may be thought first, if anything may. `calls`: the forms have their own headers where
    a model writes them."""
    if thought is None:
        return grammars
    if isinstance(thought.reading, Tags):
        return grammars.behind(_tagged(grammars, thought.reading, begun=thought.begun))
    return grammars.behind(_channelled(grammars, begun=thought.begun, final="" if calls else header(grammars, "final")))


def _tagged(grammars: Grammars, tags: Tags, *, begun: bool) -> str:
    before = "rest GAP?" if begun else f"({grammars.marker(tags.opening)} rest GAP?)?"
    return f"start: {before} @form\nGAP: {GAP}\n{_rest(grammars, tags.closing, [tags.closing])}"


def _channelled(grammars: Grammars, *, begun: bool, final: str) -> str:
    """Any number of messages of reasoning."""
    next_ = f"{grammars.marker(START)} {quoted('assistant')}"
    before = f"rest {next_} thought*" if begun else "thought*"
    thought = f"thought: {header(grammars, 'analysis')} rest {next_}"
    return f"start: {before} {final} @form\n{thought}\n{_rest(grammars, END, BREAKS)}"


def _rest(grammars: Grammars, end: str, breaks: Sequence[str]) -> str:
    """The rule `rest`: a thought and the mark `end`, one of those at which a reader takes it to end. Where that is
    a token, letters cannot write any of them."""
    marks = "|".join(re.escape(mark).replace("/", r"\/") for mark in breaks)
    text = f"TEXT: /(?s:.+)/ & ~/(?s:.*)({marks})(?s:.*)/"
    visible = grammars.visible(breaks)
    free = f"(TEXT? {visible})*" if visible else ""
    if grammars.mark(end) is not None:
        return f"rest: {free} TEXT? {grammars.marker(end)}\n{text}"
    last = f"last[suffix={quoted(end)}]: /(?s:.*)/"
    return f"rest: {free} last\n{last}" + (f"\n{text}" if visible else "")
