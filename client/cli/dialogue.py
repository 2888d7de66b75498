"""A conversation and how its answers are drawn: what is said, taken back, kept in a file. Knows no model, no terminal.

The file is JSON: `messages` as OpenAI's API writes them, a system message first where there is one, and the `settings`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from shoal.blocks.whole_file import write_whole
from shoal.client.cli.complaint import CommandError
from shoal.client.generation import GenerationError, GenerationOptions
from shoal.client.sampling_options import Sampling, SamplingError

if TYPE_CHECKING:
    from pathlib import Path

MAX_NEW_TOKENS = "max-new-tokens"
OFF = ("off", "none", "random")
Message = dict[str, str]


@dataclass
class Dialogue:
    """`messages` are the user's and the assistant's in turn; `pending`: a question that got no answer."""

    system: str = ""
    messages: list[Message] = field(default_factory=list)
    pending: str | None = None
    options: GenerationOptions = field(default_factory=GenerationOptions)

    def asked(self, question: str) -> list[Message]:
        """Everything that leads up to the answer to `question`."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.messages, {"role": "user", "content": question}]

    def answered(self, question: str, answer: str) -> None:
        """Keep a question with its answer; one without an answer is kept for another try."""
        self.pending = None if answer else question
        if answer:
            self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def take_back(self) -> str:
        """The last question, taken back with its answer. Errors: `CommandError` where there is none."""
        question, self.pending = self.pending, None
        if question is None:
            if not self.messages:
                raise CommandError("nothing has been asked yet")
            question = self.messages[-2]["content"]
            del self.messages[-2:]
        return question

    def clear(self) -> None:
        """Begin anew, with the same system message and settings."""
        self.messages, self.pending = [], None

    def settings(self) -> dict[str, float | None]:
        """By name, as `set` takes them."""
        sampling = {name: getattr(self.options.sampling, kept) for name, kept in _sampling_names().items()}
        return {**sampling, MAX_NEW_TOKENS: self.options.max_new_tokens}

    def set(self, name: str, text: str) -> None:
        """Change one setting. Errors: `CommandError` with what there is, or with the range."""
        name = name.replace("_", "-")
        known = self.settings()
        if name not in known:
            raise CommandError(f"there is no setting {name!r}; there are: {', '.join(known)}")
        whole = name in ("top-k", "seed", MAX_NEW_TOKENS)
        try:
            value = None if name == "seed" and text in OFF else int(text) if whole else float(text)
        except ValueError:
            kind = "a whole number" if whole else "a number"
            raise CommandError(f"{name} must be {kind}{' or off' if name == 'seed' else ''}, not {text!r}") from None
        try:
            if name == MAX_NEW_TOKENS:
                self.options = replace(self.options, max_new_tokens=int(value or 0))
            else:
                changed: dict[str, Any] = {_sampling_names()[name]: value}
                sampling = replace(self.options.sampling, **changed)
                self.options = replace(self.options, sampling=sampling)
        except (SamplingError, GenerationError) as error:
            raise CommandError(str(error)) from error

    def save(self, path: Path) -> None:
        """Write it as a whole. Errors: `OSError`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        text = json.dumps({"messages": [*system, *self.messages], "settings": self.settings()}, indent=1)
        write_whole(path, f"{text}\n".encode(), 0o666)

    def load(self, path: Path) -> None:
        """Go on from a file; nothing changes if it is not one of ours. Errors: `OSError`, `CommandError`."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            system, messages = _checked(stored["messages"])
            trial = Dialogue(options=self.options)
            for name, value in stored.get("settings", {}).items():
                trial.set(name, "off" if value is None else str(value))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CommandError(f"{path} is not a conversation that /save wrote") from None
        self.system, self.messages, self.options, self.pending = system, messages, trial.options, None


def _sampling_names() -> dict[str, str]:
    """The settings that are plain numbers, as users write them, and the field of each."""
    plain = (field for field in fields(Sampling) if field.name == "seed" or isinstance(field.default, int | float))
    return {field.name.replace("_", "-"): field.name for field in plain}


def _checked(stored: list[Message]) -> tuple[str, list[Message]]:
    """System text and messages that take turns, else `ValueError`."""
    messages = [{"role": message["role"], "content": message["content"]} for message in stored]
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
    roles = [message["role"] for message in messages]
    texts = [system, *(message["content"] for message in messages)]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not all(isinstance(text, str) for text in texts):
        raise ValueError("not a conversation")
    "".join(texts).encode()  # JSON can hold halves of characters
    return system, messages
