"""Grammars for the forms that answers must have, made once each; knows no request but its `Shape`."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shoal.client.api.errors import refuse
from shoal.client.calling import must_call
from shoal.client.forethought import after
from shoal.client.grammar import GrammarError, Grammars

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.client.api.wishes import Shape
    from shoal.client.calls import CallFormat
    from shoal.client.grammar import Grammar
    from shoal.client.local import ClientModel
    from shoal.client.reasoning import Forethought

KEPT = 64


class Shapes:
    """Makes the grammars of one model. All of it happens off the event loop: the first takes up to a second."""

    def __init__(self, model: ClientModel) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._grammars: Grammars | None = None
        self._compiled = lru_cache(maxsize=KEPT)(self._compile)

    async def grammar(self, shape: Shape | None, thought: Forethought | None = None) -> Grammar | None:
        """What a text of this shape may be, behind what is thought first. Errors: `ApiError` 400."""
        if shape is None:
            return None
        if self._model.tokenizer is None:
            refuse("response_format", "This model has no tokenizer, so its answers have no form.")
        try:
            return await asyncio.to_thread(self._compiled, shape.kind, json.dumps(shape.value), thought)
        except GrammarError as error:
            refuse("response_format", str(error))

    async def calls(
        self, form: CallFormat, tools: Sequence[Mapping[str, Any]], *, parallel: bool, instead: Shape | None = None,
        thought: Forethought | None = None,
    ) -> Grammar:  # fmt: skip
        """Calls of these tools, or else JSON of the shape `instead`, and nothing else but what is thought first.
        Errors: `ApiError` 400."""
        answer = None
        if instead is not None:
            answer = {"type": "object"} if instead.kind == "json_object" else instead.value

        def make() -> Grammar:
            return must_call(after(self.grammars(), thought, calls=True), form, tools, parallel=parallel, answer=answer)

        try:
            return await asyncio.to_thread(make)
        except GrammarError as error:
            refuse("tools", str(error))

    def grammars(self) -> Grammars:
        """Those of the model, made when they are first needed; it takes its time. Errors: `GrammarError`."""
        with self._lock:
            if self._grammars is None:
                model = self._model
                self._grammars = Grammars(model.tokenizer, model.ends.spec.vocab_size, model.eos)
            return self._grammars

    def _compile(self, kind: str, value: str, thought: Forethought | None) -> Grammar:
        made, wanted = after(self.grammars(), thought), json.loads(value)
        make: dict[str, Any] = {"json_schema": made.json_schema, "regex": made.regex, "choice": made.choice}
        found: Grammar = made.json_object() if kind == "json_object" else make[kind](wanted)
        return found
