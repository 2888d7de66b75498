"""`shoal chat` without a model: what is said, taken back and kept, settings, lines of input, commands."""

from __future__ import annotations

import io
import json
import stat
from typing import TYPE_CHECKING

import pytest
from full_disk import full_disk
from shoal.client.cli.complaint import CommandError
from shoal.client.cli.conversation import COMMANDS, Conversation, Voice
from shoal.client.cli.dialogue import Dialogue
from shoal.client.cli.lines import Keyboard, Pipe, message
from shoal.client.cli.talk import suggested
from shoal.client.sampling_options import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def talked() -> Dialogue:
    dialogue = Dialogue("Be brief.")
    dialogue.answered("one?", "1")
    dialogue.answered("two?", "2")
    return dialogue


def test_what_leads_up_to_an_answer() -> None:
    roles = [(said["role"], said["content"]) for said in talked().asked("three?")]
    assert roles == [
        ("system", "Be brief."), ("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2"),
        ("user", "three?"),
    ]  # fmt: skip


def test_taking_back_and_questions_without_an_answer() -> None:
    dialogue = talked()
    dialogue.answered("three?", "")
    assert dialogue.take_back() == "three?"  # it got no answer, and the others stay
    assert dialogue.take_back() == "two?"
    assert dialogue.take_back() == "one?"
    with pytest.raises(CommandError, match="nothing has been asked"):
        dialogue.take_back()
    assert dialogue.system == "Be brief."


def test_settings_have_ranges() -> None:
    dialogue = Dialogue()
    for name, text, value in (("temperature", "0.5", 0.5), ("top_k", "7", 7), ("seed", "3", 3), ("seed", "off", None)):
        dialogue.set(name, text)
        assert dialogue.settings()[name.replace("_", "-")] == value
    dialogue.set("max-new-tokens", "9")
    assert dialogue.options.max_new_tokens == 9
    for name, text, words in (
        ("temperature", "-1", "from 0"), ("temperature", "hot", "a number"), ("top-k", "1.5", "a whole number"),
        ("max-new-tokens", "0", "at least 1"), ("colour", "red", "there are: temperature"), ("top-p", "", "a number"),
    ):  # fmt: skip
        with pytest.raises(CommandError, match=words):
            dialogue.set(name, text)
    assert dialogue.options.sampling == Sampling(0.5, top_k=7)


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    dialogue = talked()
    dialogue.set("temperature", "0.5")
    dialogue.save(tmp_path / "talk.json")
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]
    again = Dialogue()
    again.load(tmp_path / "talk.json")
    assert (again.system, again.messages, again.options) == (dialogue.system, dialogue.messages, dialogue.options)


def test_a_full_disk_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    Dialogue("Be brief.").save(path)
    with full_disk(), pytest.raises(OSError, match=str(path)):
        talked().save(path)
    again = Dialogue()
    again.load(path)
    assert (again.system, again.messages) == ("Be brief.", [])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "stored",
    [
        "", "[]", "{}", '{"messages": 1}', '{"messages": [{"role": "user", "content": "x"}]}',
        '{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}',
        '{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "y"}]}',
        '{"messages": [], "settings": []}',
        '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "y"}]}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_conversation_changes_nothing(tmp_path: Path, stored: str) -> None:
    (tmp_path / "talk.json").write_text(stored)
    dialogue = talked()
    with pytest.raises(CommandError, match="talk\\.json is not a conversation"):
        dialogue.load(tmp_path / "talk.json")
    assert dialogue.messages == talked().messages


# -- lines ------------------------------------------------------------------------------------------------------------


def messages(text: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    lines = Pipe()
    while True:
        try:
            yield message(lines)
        except EOFError:
            return


def test_messages_of_one_line_and_of_many(monkeypatch) -> None:
    text = 'one\n\ntwo \\\nmore\n"""\nthree\n\n  more\n"""\n"""four"""\nlast, without an end of line'
    assert list(messages(text, monkeypatch)) == [
        "one", "", "two \nmore", "three\n\n  more", "four", "last, without an end of line",
    ]  # fmt: skip


def test_history_is_kept_for_its_user_only_once_each_and_not_for_ever(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shoal.client.cli.lines.MAX_HISTORY", 3)
    path = tmp_path / "state" / "history"
    keyboard = Keyboard(path, lambda _: [])
    for text in ("one", "two\nlines", "two\nlines", "", *map(str, range(6))):
        keyboard.remember(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == ["2", "3", "4", "5"] or kept[-3:] == ["3", "4", "5"]
    assert len(kept) <= 6
    path.write_text(path.read_text() + "not an entry\n")
    import readline

    Keyboard(path, lambda _: [])
    assert readline.get_history_item(readline.get_current_history_length()) == "5"


def test_a_history_that_a_full_disk_cannot_shorten_is_left_as_it_was(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shoal.client.cli.lines.MAX_HISTORY", 3)
    path = tmp_path / "history"
    keyboard = Keyboard(path, lambda _: [])
    for text in map(str, range(6)):
        keyboard.remember(text)
    kept = path.read_bytes()
    with full_disk(4):
        keyboard.remember("one more")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == kept


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def conversation(tmp_path, monkeypatch) -> Conversation:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Conversation(None, talked(), Voice(json=False, quiet=False, interactive=True), "demo")


def test_what_a_beginning_may_become(conversation, tmp_path) -> None:
    assert list(conversation.candidates("/")) == list(COMMANDS)
    assert conversation.candidates("/re") == ["/retry"]
    assert conversation.candidates("/set top") == ["/set top-k ", "/set top-p "]
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "one.json").touch()
    assert conversation.candidates("/load ta") == ["/load talks/"]
    assert conversation.candidates("/load talks/o") == ["/load talks/one.json"]
    assert conversation.candidates("hello") == conversation.candidates("") == []


def test_commands_without_a_model(conversation, capsys) -> None:
    for text, words in (
        ("/help", "/undo"), ("/set", "max-new-tokens"), ("/set top-k 3", ""), ("/system", "Be brief."),
        ("/system off", "no system message"), ("/undo", "taken back: two?"), ("/save", "name a file"),
        ("/save a.json", "kept in a.json"), ("/save", "kept in a.json"), ("/new", ""), ("/undo", "nothing has been"),
        ("/load a.json", "1 answer so far"), ("/load none.json", "none.json: No such file"), ("/route", "nothing has"),
        ("/nonsense", "/help lists them"), ("/save .", "shoal: .: "),
    ):  # fmt: skip
        conversation._take(text)
        out, err = capsys.readouterr()
        assert words in err, text
        assert out == ""
    assert conversation._dialogue.settings()["top-k"] == 3


def test_what_the_makers_of_a_model_suggest(tmp_path) -> None:
    file = tmp_path / "generation_config.json"
    assert suggested(tmp_path) == Sampling()
    for text, expected in (
        ('{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}', Sampling(0.6, top_p=0.9)),
        ('{"do_sample": true, "top_k": 20}', Sampling(1.0, top_k=20)),
        ('{"temperature": 0.6}', Sampling()),
        ('{"do_sample": true, "temperature": -3}', Sampling()),
        ("[1]", Sampling()),
        ("{", Sampling()),
    ):
        file.write_text(text)
        assert suggested(tmp_path) == expected, text
