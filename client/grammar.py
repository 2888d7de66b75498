"""Which tokens may come next so that a text fits a grammar: JSON, a JSON schema, a regular expression, a choice.

Knows no model's scores and no session. The masks are exact (Koo et al. 2024's automata and an Earley parser, by the
library llguidance): a token is allowed if and only if some text of the grammar goes on with it, and the model's end
where the text so far is one. Where all texts go on alike, the token is the one that the tokenizer would write there.
"""

from __future__ import annotations

import json
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits
from llguidance.hf import from_tokenizer
from shoal.client.text import special_ids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llguidance import LLTokenizer

# Between JSON's tokens: a space, or a new line with its indentation. A model must not be let to go on with it for ever.
SPACE = r"(\x20|\x0A\x20{0,40}|\x0A\x09{0,8})"
LIMITS = LLParserLimits(verbose_errors=False)


class GrammarError(ValueError):
    """A grammar that cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Grammar:
    """A grammar that was found good; `begin` starts a text."""

    _start: LLMatcher
    _vocab: int
    _never: frozenset[int]

    def begin(self) -> Constrained:
        """The state of one completion, at its beginning."""
        return Constrained(self._start.deep_copy(), self._vocab, self._never)


class Constrained:
    """One completion under a grammar: ask what is `allowed`, then `accept` what was chosen."""

    def __init__(self, matcher: LLMatcher, vocab: int, never: frozenset[int]) -> None:
        self._matcher, self._vocab, self._never = matcher, vocab, list(never)

    @property
    def ended(self) -> bool:
        """The text is whole, and nothing may follow it."""
        return self._matcher.is_stopped()

    def allowed(self) -> torch.Tensor:
        """Which tokens may come next, booleans `[vocab]`. Errors: `GrammarError` where the grammar is too complex."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=self._vocab, bitorder="little")
        mask[self._never] = 0
        return torch.from_numpy(mask).view(torch.bool)

    def accept(self, token_id: int) -> None:
        """A token was chosen, of those allowed."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"The grammar cannot be followed further: {_first_line(self._matcher.get_error())}")


class Grammars:
    """Makes the grammars of one model. It takes up to a second to be made: keep it."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos: frozenset[int]) -> None:
        """`vocab_size`: of the scores, which may be more than the tokenizer's. Errors: `GrammarError`."""
        self._vocab, self._tokenizer, self._eos, self._lead = vocab_size, tokenizer, eos, ""
        # Of a model without an end the library gets one of the tokens that are no text, and it is never allowed.
        ends = sorted(eos) or sorted(tokenizer.all_special_ids)[:1]
        self._never = frozenset(ends) - eos
        try:
            self._tokens: LLTokenizer = from_tokenizer(tokenizer, vocab_size, ends)
        except (ValueError, AttributeError) as error:
            raise GrammarError(f"This model's tokenizer allows no grammars: {_first_line(str(error))}") from error

    def behind(self, lead: str) -> Grammars:
        """The same, for texts with something before them: `lead`, a Lark grammar, says `@form` where they begin."""
        found = copy(self)
        found._lead = lead
        return found

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """JSON that fits a schema. Errors: `GrammarError`, also for keywords that cannot be kept."""
        return self._compile(_from_schema(schema), "The JSON schema cannot be used")

    def regex(self, pattern: str) -> Grammar:
        """Texts that match a regular expression as a whole (Rust's syntax, without look-around)."""
        return self._compile(LLMatcher.grammar_from_regex(pattern), "The regular expression cannot be used")

    def choice(self, texts: Sequence[str]) -> Grammar:
        """One of these texts."""
        if not texts or not all(texts):
            raise GrammarError("A choice needs at least one text, and none of them may be empty.")
        return self.lark("start: " + " | ".join(map(quoted, texts)))

    def lark(self, grammar: str) -> Grammar:
        """A grammar in llguidance's dialect of Lark."""
        return self._compile(json.dumps({"grammars": [{"lark_grammar": grammar}]}), "The grammar cannot be used")

    def marker(self, text: str) -> str:
        """How a Lark grammar writes `text`, which is one token and no text of some models, and letters to others."""
        token_id = self.mark(text)
        return quoted(text) if token_id is None else _one_of([token_id])

    def mark(self, text: str) -> int | None:
        """The token that `text` is, if no other tokens may write it. To the library these are the special ones, and
        others in angle brackets that were added to a vocabulary, as Qwen3's `<think>`."""
        token_id = self._tokenizer.convert_tokens_to_ids(text)  # of what is no token, that of <unk>
        own = isinstance(token_id, int) and self._tokenizer.convert_ids_to_tokens(token_id) == text
        return token_id if own and self._tokens.is_special_token(token_id) else None

    def visible(self, without: Sequence[str]) -> str:
        """How a Lark grammar writes any one of the `mark`s that texts show, but for these; "" if there is none."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        marks = {number for number in added if self._tokens.is_special_token(number)}
        found = marks - special_ids(self._tokenizer) - self._eos - {self.mark(text) for text in without}
        return _one_of(sorted(found)) if found else ""

    def _compile(self, grammar: str, wrong: str) -> Grammar:
        matcher = LLMatcher(self._tokens, self._led(grammar, wrong), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise GrammarError(f"{wrong}: {_first_line(matcher.get_error())}")
        return Grammar(matcher, self._vocab, self._never)

    def _led(self, grammar: str, wrong: str) -> str:
        if not self._lead:
            return grammar
        try:
            (form,) = json.loads(grammar)["grammars"]
            return json.dumps({"grammars": [{"lark_grammar": self._lead}, {**form, "name": "form"}]})
        except RecursionError as error:
            raise GrammarError(f"{wrong}: {error}") from error


def _one_of(token_ids: Sequence[int]) -> str:
    return f"<[{','.join(map(str, token_ids))}]>"


def quoted(text: str) -> str:
    """A text as a Lark grammar writes it."""
    return json.dumps(text, ensure_ascii=False)


def within(schema: Mapping[str, Any]) -> str:
    """JSON that fits a schema, as a part of a Lark grammar."""
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": SPACE}})


def _from_schema(schema: Mapping[str, Any]) -> str:
    if not isinstance(schema, dict):
        raise GrammarError(f"A JSON schema is an object, not {json.dumps(schema)[:40]}.")
    try:
        text = json.dumps(schema)
        return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": SPACE})
    except (ValueError, TypeError, RecursionError) as error:
        raise GrammarError(f"The JSON schema cannot be used: {_first_line(str(error))}") from error


def _first_line(text: str) -> str:
    """What a library says, in one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"
