"""The loop of `shoal chat`: messages in, answers out as they come, and the commands in between. Knows no network."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.client.cli.complaint import CommandError, complaint
from shoal.client.cli.lines import Keyboard, Pipe, message, state_folder
from shoal.client.cli.telling import Telling, coloured, dimmed
from shoal.client.cli.terminal import route_json, route_line, tell, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from shoal.client.cli.dialogue import Dialogue
    from shoal.client.cli.talk import Talk
    from shoal.client.serving import Answer

COMMANDS = {
    "/help": "what can be done",
    "/new": "begin anew; the system message and the settings stay",
    "/undo": "take the last question and its answer back",
    "/retry": "answer the last question again",
    "/system": "TEXT: what the model is told first; alone: show it; off: nothing",
    "/set": "NAME VALUE: change how answers are made; alone: show the settings",
    "/save": "FILE: keep the conversation",
    "/load": "FILE: go on with a conversation that was kept",
    "/route": "which peers gave the last answer, and how fast",
    "/quit": "leave (or Ctrl-D)",
}
TYPING = """\
A line that ends with \\ goes on in the next one; three quotes begin and end a text of many lines; Alt-Enter begins a
new line. Ctrl-C stops an answer."""
LEAVING = "(Ctrl-C again, Ctrl-D or /quit leaves)"


@dataclass(frozen=True)
class Voice:
    """How to speak: answers as JSON lines, no figures, to a person at a keyboard or to a script."""

    json: bool
    quiet: bool
    interactive: bool


class Conversation:
    """One run of the command."""

    def __init__(self, talk: Talk, dialogue: Dialogue, voice: Voice, model: str) -> None:
        self._talk, self._dialogue, self._voice, self._model = talk, dialogue, voice, model
        self._file: Path | None = None  # the one saved or loaded last
        self._last: Answer | None = None
        keyboard = voice.interactive
        self._lines = Keyboard(state_folder() / "chat_history", self.candidates) if keyboard else Pipe()
        self._doing: dict[str, Callable[[str], object]] = {
            "/help": self._help, "/new": self._new, "/undo": self._undo, "/retry": self._retry,
            "/system": self._system, "/set": self._set, "/save": self._save, "/load": self._load, "/route": self._route,
        }  # fmt: skip

    def run(self) -> int:
        """Until the user leaves or the pipe ends; the exit status."""
        if self._voice.interactive:
            tell(f"{self._model}, served by {_count(self._talk.peers, 'peer')}. /help lists what can be done.")
        warned = False
        while True:
            try:
                text = message(self._lines)
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if not self._voice.interactive:
                    raise
                tell("" if warned else f"\n{LEAVING}")
                if warned:
                    return 0
                warned = True
                continue
            except CommandError as error:
                if not self._voice.interactive:
                    raise
                tell(str(error))
                continue
            warned = False
            if text == "/quit":
                return 0
            if text:
                self._take(text)

    def candidates(self, begun: str) -> Sequence[str]:
        """What a beginning may become: commands, settings, files."""
        word, space, rest = begun.partition(" ")
        if not space:
            return [name for name in COMMANDS if begun and name.startswith(begun)]
        if word == "/set":
            return [f"/set {name} " for name in self._dialogue.settings() if name.startswith(rest)]
        if word in ("/save", "/load"):
            return [f"{word} {path}" for path in _paths(rest)]
        return []

    def _take(self, text: str) -> None:
        """A message or a command. At a keyboard an error is told and the conversation goes on."""
        try:
            if text.startswith("/"):
                self._command(text)
            else:
                self._ask(text)
        except Exception as error:
            line = complaint(error)
            if line is None or not self._voice.interactive:
                raise
            tell(f"shoal: {line}")

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if name not in self._doing:
            raise CommandError(f"there is no command {name}; /help lists them")
        self._doing[name](rest.strip())

    def _ask(self, question: str) -> None:
        self._dialogue.pending = question
        prompt = self._talk.prompt(self._dialogue.asked(question))
        pieces = self._talk.stream(prompt, self._dialogue.options)
        reader, spoken = self._talk.reader(prompt), self._voice
        thoughts = spoken.interactive and not spoken.json and sys.stderr.isatty()
        telling, finish = Telling(reader, aloud=not spoken.json, thoughts=thoughts), "interrupted"
        try:
            with self._waiting():
                piece = next(pieces, None)
            while piece is not None:
                finish = piece.finish
                telling.push(piece.text)
                piece = next(pieces, None)
        except KeyboardInterrupt:
            if not self._voice.interactive:
                raise
            finish = "interrupted"
        finally:
            with suppress(GeneratorExit):
                pieces.close()  # type: ignore[attr-defined]  # a generator
            telling.finish()
            self._dialogue.answered(question, telling.text)
        self._report(telling, finish, len(prompt.token_ids))

    def _waiting(self) -> AbstractContextManager[Any]:
        """What a person sees until the first token is there."""
        if not self._voice.interactive or self._voice.json or not sys.stderr.isatty():
            return nullcontext()
        from rich.console import Console

        return Console(stderr=True).status("")

    def _report(self, telling: Telling, finish: str, prompt_tokens: int) -> None:
        last = self._last = self._talk.last
        if last is None:
            return
        if self._voice.json:
            thought = {"reasoning": telling.thought} if telling.thought else {}
            write(json.dumps({**as_json(last, telling.text, finish, prompt_tokens), **thought}) + "\n")
        elif not self._voice.quiet:
            line = figures(last, prompt_tokens) + (" · stopped" if finish == "interrupted" else "")
            line += " · cut at max-new-tokens or the context's end" if finish == "length" else ""
            line += ", before the answer began" if finish == "length" and telling.thought and not telling.text else ""
            tell(dimmed(line) if coloured() else line)

    def _help(self, _: str) -> None:
        width = max(map(len, COMMANDS))
        tell("\n".join([*(f"{name:<{width}}  {what}" for name, what in COMMANDS.items()), "", TYPING]))

    def _new(self, _: str) -> None:
        self._dialogue.clear()

    def _undo(self, _: str) -> None:
        tell(f"taken back: {_short(self._dialogue.take_back())}")

    def _retry(self, _: str) -> None:
        self._ask(self._dialogue.take_back())

    def _system(self, text: str) -> None:
        if text:
            self._dialogue.system = "" if text == "off" else text
        tell(self._dialogue.system or "(no system message)")

    def _set(self, rest: str) -> None:
        if not rest:
            width = max(map(len, self._dialogue.settings()))
            tell("\n".join(f"{name:<{width}}  {_value(value)}" for name, value in self._dialogue.settings().items()))
            return
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        self._dialogue.set(name, value.strip())

    def _save(self, name: str) -> None:
        path = self._path(name)
        self._dialogue.save(path)
        self._file = path
        tell(f"kept in {path}")

    def _load(self, name: str) -> None:
        path = self._path(name)
        self._dialogue.load(path)
        self._file = path
        tell(f"{_count(len(self._dialogue.messages) // 2, 'answer')} so far")

    def _path(self, name: str) -> Path:
        if not name and self._file is None:
            raise CommandError("name a file, as in /save talk.json")
        return Path(name).expanduser() if name or self._file is None else self._file

    def _route(self, _: str) -> None:
        if self._last is None or not self._last.route:
            raise CommandError("nothing has been answered yet")
        tell(f"{route_line(self._last.route)}\n{figures(self._last, None)}")


def figures(answer: Answer, prompt_tokens: int | None) -> str:
    """An answer's peers and speed in one line."""
    peers = len({hop.peer_id for hop in answer.route})
    parts = [f"via {_count(peers, 'peer')}", _count(len(answer.pieces), "token")]
    if answer.tokens_per_s:
        parts.append(f"{answer.tokens_per_s:.1f} tokens/s")
    if answer.pieces:
        parts.append(f"first after {answer.ttft_s:.2f} s")
    if answer.cached_tokens:
        of = f" of {prompt_tokens}" if prompt_tokens else ""
        parts.append(f"{answer.cached_tokens}{of} prompt tokens known")
    if replaced := answer.repairs + answer.moves:
        parts.append(f"{_count(replaced, 'hop')} replaced")
    return " · ".join(parts)


def as_json(answer: Answer, text: str, finish: str, prompt_tokens: int) -> dict[str, object]:
    """What `--json` prints of an answer; `tokens` is their number."""
    return {
        "text": text, "finish": finish, "tokens": len(answer.pieces), "prompt_tokens": prompt_tokens,
        "cached_tokens": answer.cached_tokens, "route": route_json(answer.route), "repairs": answer.repairs,
        "moves": answer.moves, "ttft_s": answer.ttft_s, "tokens_per_s": answer.tokens_per_s,
    }  # fmt: skip


def _paths(begun: str) -> list[str]:
    folder, _, name = begun.rpartition("/")
    prefix = f"{folder}/" if "/" in begun else ""
    with suppress(OSError):
        found = sorted(Path(prefix or ".").expanduser().iterdir())
        return [f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in found if path.name.startswith(name)]
    return []


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _value(value: float | None) -> str:
    return "off" if value is None else f"{value:g}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
