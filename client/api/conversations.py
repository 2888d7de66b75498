"""Conversations to prompts, off the event loop and one after the other: a long one takes its time."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shoal.client.api.errors import ApiError, refuse
from shoal.client.chat import Chat, ChatError

if TYPE_CHECKING:
    from shoal.client.api.chat_request import ChatRequest
    from shoal.client.calls import CallFormat
    from shoal.client.chat import ChatPrompt
    from shoal.client.generation import GenerationOptions
    from shoal.client.local import ClientModel
    from shoal.client.reasoning import Reading
    from shoal.client.serving import Answer


class Conversations:
    """The conversations of one model. `close` ends the thread that reads them."""

    def __init__(self, model: ClientModel) -> None:
        self._thread = ThreadPoolExecutor(1, "conversations")
        self._chat = Chat(model) if model.tokenizer is not None else None

    @property
    def calls(self) -> CallFormat:
        """How the model writes calls of tools. Errors: `ApiError` 400 for a model that cannot chat."""
        return self._able().calls

    @property
    def reading(self) -> Reading | None:
        """How the model writes its reasoning, if it does. Errors: as `calls`."""
        return self._able().reading

    def options(self, options: GenerationOptions, prompt: ChatPrompt, *, calls: bool) -> GenerationOptions:
        """See `Chat.options`. Errors: as `calls`."""
        return self._able().options(options, prompt, calls=calls)

    async def prompt(self, asked: ChatRequest) -> ChatPrompt:
        """What the model reads. Errors: `ApiError` 400."""
        chat = self._able()
        tools = asked.tools if asked.tool_choice != "none" else []

        def read() -> ChatPrompt:
            return chat.prompt(
                asked.messages, tools, continues=asked.continues, options=asked.template_options, forced=asked.forced
            )

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, read)
        except ChatError as error:
            refuse("messages", str(error))

    def remember(self, prompt: ChatPrompt, answer: Answer) -> None:
        """Keep an answer's tokens for the next turn."""
        self._thread.submit(self._able().remember, prompt, answer)

    async def close(self, _: object = None) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _able(self) -> Chat:
        if self._chat is None:
            raise ApiError(400, "This model has no tokenizer, so it cannot chat: send token ids to /v1/completions.")
        return self._chat
