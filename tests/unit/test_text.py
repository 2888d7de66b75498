"""Detokenizer and stop filter: whatever way the tokens fall, the text is the text."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.client.text import CONTEXT_TOKENS, REPLACEMENT, UNFINISHED_CHARS, Detokenizer, StopFilter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE = "def prüfe(größe): # 価格は€5です 🐟🐠 naïve — über 👩‍💻 and so on, def prüfe(größe): 🐟🐠 価格\n" * 3


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE, as GPT-2's and Llama 3's: merges may end in mid-character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return tokenizer


@cache
def byte_fallback() -> Tokenizer:
    """SentencePiece's manner, as Llama 2's: words carry their leading space, rare characters are bytes."""
    words = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "▁der", "▁Fisch", "und", "e", "s", ".", "\n"]
    tokenizer = Tokenizer(models.BPE({w: n for n, w in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def feed(decode: Callable[[list[int]], str], ids: list[int], prompt: list[int]) -> list[str]:
    detokenizer = Detokenizer(decode, prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


byte_level_ids = st.lists(st.integers(0, 329), max_size=120)


@given(byte_level_ids)
@settings(max_examples=200, deadline=None)
def test_any_byte_level_tokens_give_the_text_of_all(ids: list[int]) -> None:
    assert "".join(feed(byte_level().decode, ids, [])) == byte_level().decode(ids)


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_honest_text_is_said_whole_and_never_broken(prompt: str, text: str) -> None:
    ids = byte_level().encode(text).ids
    pieces = feed(byte_level().decode, ids, byte_level().encode(prompt).ids)
    assert "".join(pieces) == text
    assert REPLACEMENT in text or not any(REPLACEMENT in piece for piece in pieces)


@given(byte_level_ids)
@settings(max_examples=100, deadline=None)
def test_nothing_final_is_held_back(ids: list[int]) -> None:
    detokenizer, said = Detokenizer(byte_level().decode), ""
    for n, token in enumerate(ids, 1):
        said += detokenizer.push(token)
        text = byte_level().decode(ids[:n])
        finished = text.rstrip(REPLACEMENT)
        assert text.startswith(said)
        assert len(said) >= max(len(finished), len(text) - UNFINISHED_CHARS)


@given(
    st.text(max_size=30), st.lists(st.sampled_from(["▁der", "▁Fisch", "und", "e", "s", ".", "\n", "▁"]), max_size=60)
)
@settings(max_examples=150, deadline=None)
def test_byte_fallback_keeps_spaces_and_characters(strange: str, words: list[str]) -> None:
    tokenizer = byte_fallback()
    half = [tokenizer.token_to_id(word) for word in words]
    ids = [*half, *(tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in strange.encode("utf-8")), *half]
    prompt = [tokenizer.token_to_id("▁der")]
    pieces = feed(tokenizer.decode, ids, prompt)
    assert "".join(pieces) == tokenizer.decode([*prompt, *ids]).removeprefix("der")
    assert REPLACEMENT in strange or not any(REPLACEMENT in piece for piece in pieces)


@pytest.mark.parametrize("prompt", [f"{'👩' * 5}{more}" for more in ("a", "é", "価")] + ["価格" * 4])
def test_a_context_that_begins_inside_a_character_hides_nothing(prompt: str) -> None:
    """Of the prompt's bytes only the last are shown to the tokenizer, wherever those begin."""
    before, after = (
        [byte_fallback().token_to_id(f"<0x{byte:02X}>") for byte in text.encode()] for text in (prompt, "🐟に")
    )
    assert byte_fallback().decode(before[-CONTEXT_TOKENS:]) == REPLACEMENT * CONTEXT_TOKENS
    assert feed(byte_fallback().decode, after, before) == ["", "", "", "🐟", "", "", "に", ""]


def fallback_ids(data: bytes) -> list[int]:
    return [byte_fallback().token_to_id(f"<0x{byte:02X}>") for byte in data]


@pytest.mark.parametrize("before", ["", "é", "der é", "é" * 20, "価格" * 6, f"{'👩' * 5}é", f"{'👩' * 5}a"])
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_run_of_bytes_that_the_prompt_broke_off_is_finished(before: str, missing: int) -> None:
    """Such a decoder shows no character of a run whose last one is unfinished, whole ones before it neither."""
    run, tokenizer = fallback_ids(f"{before}🐟に!".encode()), byte_fallback()
    prompt, answer = run[: -4 - missing], run[-4 - missing :]
    assert tokenizer.decode(prompt).endswith(REPLACEMENT)
    pieces = feed(tokenizer.decode, answer, prompt)
    assert pieces == [*[""] * (missing - 1), "🐟", "", "", "に", "!", ""]
    assert before + "".join(pieces) == tokenizer.decode(run)


@given(st.text("aé価🐟", max_size=12), st.text("aé価🐟", min_size=1, max_size=12), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_a_prompt_may_end_anywhere_in_a_run_of_bytes(prompt: str, text: str, cut: int) -> None:
    """What comes is all beyond the prompt's whole characters, wherever among its bytes the prompt ends."""
    run = f"{prompt}{text}".encode()
    cut = min(cut, len(run))
    whole = run[:cut].decode(errors="ignore")
    pieces = feed(byte_fallback().decode, fallback_ids(run[cut:]), fallback_ids(run[:cut]))
    assert whole + "".join(pieces) == f"{prompt}{text}"


def test_a_character_that_the_prompt_broke_off_for_good_is_no_answer() -> None:
    ids = fallback_ids("é🐟".encode()[:-1])
    assert "".join(feed(byte_fallback().decode, [byte_fallback().token_to_id("e")], ids)) == "e"


def test_a_wrong_byte_after_a_character_takes_nothing_back() -> None:
    tokenizer = byte_fallback()
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode() + b"\xff"]
    ids += [tokenizer.token_to_id("e")]
    assert tokenizer.decode(ids) == REPLACEMENT * 4 + "e"  # the decoder itself would take the character back
    assert "".join(feed(tokenizer.decode, ids, [])) == "€" + REPLACEMENT + "e"


def test_a_character_comes_with_its_last_byte() -> None:
    tokenizer = byte_level()
    letters = {byte: letter for letter, byte in enumerate_bytes()}
    ids = [tokenizer.token_to_id(letters[byte]) for byte in "🐟!".encode()]
    assert feed(tokenizer.decode, ids, []) == ["", "", "", "🐟", "!", ""]


def enumerate_bytes() -> list[tuple[str, int]]:
    """GPT-2's printable letter of each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [(chr(b), b) for b in printable] + [(chr(256 + n), b) for n, b in enumerate(others)]


def test_a_character_that_the_prompt_began_is_finished() -> None:
    tokenizer = byte_level()
    letters = {byte: letter for letter, byte in enumerate_bytes()}
    ids = [tokenizer.token_to_id(letters[byte]) for byte in "a🐟!".encode()]
    assert feed(tokenizer.decode, ids[3:], ids[:3]) == ["", "🐟", "!", ""]


def test_a_long_text_is_decoded_in_short_windows() -> None:
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return byte_level().decode(ids)

    ids = byte_level().encode(SAMPLE * 20).ids
    assert "".join(feed(decode, ids, ids)) == SAMPLE * 20
    assert len(ids) > 1000
    assert longest < 50


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """What a stop filter must give, from the whole text at once: grow it by a character until a stop string ends."""
    for end in range(len(text) + 1):
        if ends := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - len(max(ends, key=len))], True
    return text, False


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
@settings(max_examples=400, deadline=None)
def test_stop_strings_cut_however_the_text_is_chopped(pieces: list[str], stops: list[str]) -> None:
    stop_filter, said = StopFilter(stops), ""
    expected, stopped = cut("".join(pieces), stops)
    for piece in pieces:
        said += stop_filter.push(piece)
        assert expected.startswith(said)
    said += stop_filter.finish()
    assert (said, stop_filter.stopped) == (expected, stopped)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stop_filter = StopFilter(["\n\n", "END"])
    assert stop_filter.push("one\n") == "one"
    assert stop_filter.push("two E") == "\ntwo "
    assert stop_filter.push("N") == ""
    assert stop_filter.push("ough") == "ENough"
    assert stop_filter.push(" END of it") == " "
    assert stop_filter.stopped


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopFilter(["ok", ""])
