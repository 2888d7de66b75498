"""`shoal chat` with models that think: what is shown where, what the conversation keeps, and what scripts get."""

from __future__ import annotations

import io
import json
from functools import cache

import pytest
from scripted_model import DEEPSEEK_R1, GPT_OSS, PLAIN, QWEN3, scripted, thinking_model
from shoal.client.cli.conversation import Conversation, Voice
from shoal.client.cli.dialogue import Dialogue
from shoal.client.cli.talk import Talk
from shoal.client.generation import GenerationOptions

TEXTS = {
    QWEN3: "<think>\nWell <\n</think>\n\nIt is fine.<|im_end|>",
    DEEPSEEK_R1: "Well <\n</think>\n\nIt is fine.<|im_end|>",
    GPT_OSS: (
        "<|channel|>analysis<|message|>Well <<|end|><|start|>assistant<|channel|>final<|message|>It is fine.<|return|>"
    ),
}
THINKERS = pytest.mark.parametrize("template", TEXTS, ids=["qwen3", "r1", "gpt-oss"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@cache
def model_of(template: str):
    return thinking_model(template)


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """A question in a new conversation: the conversation, stdout, stderr and the swarm that was asked."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("NO_COLOR", raising=False)

    def asked(template: str, text: str = "", *, tokens: int = 99, terminal: bool = True, **voice: bool):
        serving = scripted(model_of(template), text or TEXTS[template])
        talk = Talk(serving, background=False, activations="auto")
        how = Voice(json=voice.get("json", False), quiet=True, interactive=voice.get("interactive", terminal))
        conversation = Conversation(talk, Dialogue(options=GenerationOptions(tokens)), how, "demo")
        out, err = io.StringIO(), Terminal() if terminal else io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", out)
            patch.setattr("sys.stderr", err)
            conversation._take("How is it?")
        return conversation, out.getvalue(), err.getvalue(), serving.swarm

    return asked


def undimmed(text: str) -> str:
    """What stands dimmed in a terminal's text, after what rich drew while nothing was there."""
    return "".join(part.split("\x1b[0m")[0] for part in text.split("\x1b[2m")[1:])


@THINKERS
def test_at_a_terminal_reasoning_is_dimmed_and_the_answer_is_not(ask, template: str) -> None:
    conversation, out, err, swarm = ask(template)
    assert out == "It is fine.\n"
    assert undimmed(err) == "Well <"
    assert err.endswith("\x1b[0m\n\n")
    assert [message["content"] for message in conversation._dialogue.messages] == ["How is it?", "It is fine."]
    conversation._take("And now?")
    prompt = model_of(template).tokenizer.decode(swarm.asked[-1])
    assert "It is fine." in prompt
    assert "Well" not in prompt


@THINKERS
def test_without_colours_it_says_that_it_thinks(ask, template: str, monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, err, _ = ask(template)
    assert out == "It is fine.\n"
    assert err.count("(thinking)\n") == 1
    assert "Well" not in err
    assert "\x1b[2m" not in err


@THINKERS
def test_through_a_pipe_comes_the_answer_alone(ask, template: str) -> None:
    _, out, err, _ = ask(template, terminal=False)
    assert (out, err) == ("It is fine.\n", "")
    _, out, err, _ = ask(template, interactive=False)
    assert (out, "Well" in err) == ("It is fine.\n", False)
    _, out, _, _ = ask(template, terminal=False, json=True)
    told = json.loads(out)
    assert (told["text"], told["reasoning"], told["finish"]) == ("It is fine.", "Well <", "eos")


@THINKERS
def test_reasoning_that_is_cut_off_is_no_answer(ask, template: str, monkeypatch) -> None:
    begun = model_of(template).tokenizer(TEXTS[template].partition(" <")[0], add_special_tokens=False)["input_ids"]
    conversation, out, err, _ = ask(template, tokens=len(begun))
    assert out == ""
    assert undimmed(err) == "Well"
    assert conversation._dialogue.messages == []
    assert conversation._dialogue.pending == "How is it?"
    monkeypatch.setattr(conversation, "_voice", Voice(json=False, quiet=False, interactive=False))
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    conversation._take("/retry")
    assert "cut at max-new-tokens or the context's end, before the answer began" in shown.getvalue()


def test_a_model_that_does_not_think_is_shown_as_it_writes(ask) -> None:
    text = "<think>\nWell.\n</think>\n It is.\n"
    conversation, out, err, _ = ask(PLAIN, text + "<|im_end|>")
    assert out == f"{text}\n"
    assert "\x1b[2m" not in err
    assert conversation._dialogue.messages[-1]["content"] == text
    _, out, _, _ = ask(PLAIN, text + "<|im_end|>", json=True)
    assert "reasoning" not in json.loads(out)
