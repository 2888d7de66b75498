"""Owns the words of the demo model's card. Every figure in it comes from ``training.json``; measures nothing itself."""

from __future__ import annotations

from typing import Any

PROMPTS = (
    "class Stack:\n    def",
    "import os\n\ndef read_lines(path):",
    'import json\n\n\ndef load_config(path):\n    """Read a JSON file and return its content as a dict."""\n',
)
FLAGS = ("optimizer", "learning_rate", "weight_decay", "dropout", "batch_windows", "epochs", "seed")

CARD = """\
# Shoal's demo model

A language model small enough to travel inside the package: {parameters:,} parameters, 12 blocks, trained from
nothing on Python source. It exists so that a swarm can be seen working with no download, no account and no GPU.
It writes text that looks like Python; it does not know what a program is for, soon repeats itself, and nothing
it writes should be run.

| | |
| --- | --- |
| architecture | Llama: hidden 384, intermediate 896, 6 query and 2 key-value heads, context 2,048, tied embeddings |
| tokenizer | byte-level BPE, {vocab:,} tokens, runs of blanks and of newlines kept apart; `<bos>` first, `<eos>` last |
| weights | bfloat16, {shards} safetensors shards |
| training text | {train_mb:.1f} MB in {train_files:,} files, {training_tokens:,} tokens |
| tokens seen | {tokens_seen:,} ({epochs_seen} epochs), {training_s:.0f} s on one {device} |

## How well it predicts

Bits per byte on files it was not trained on, as the saved weights give it in float32 through transformers, in
windows of 2,048 tokens that overlap by half; the end of each file counts. The dev files decided when to stop,
the test files decided nothing.

| files | number | bytes | this model | `xz -9`, all files in one stream | `xz -9`, each file alone |
| --- | --- | --- | --- | --- | --- |
{rows}

{sampled_functions} functions of the test files were given to it up to where their body begins (up to 40 lines
before them, signature, docstring) and the body sampled at temperature 0.2, at most 256 tokens. `ast.parse`
accepted the function in {parse_percent:.0f} %. A body ends at the first line no deeper than its `def`; one that
had not ended by then is cut after its last whole line, which counts against it if a bracket, a string or a
block is open there. An empty body counts against it too.
{note}
## What it was trained on

Files were held out by the hash of their names, one in 50, half of those dev and half test. Left out: whatever
has a header that says it was generated, tables, vendored copies, files that do not parse, and files more than
half of whose three-line runs had been read before. A training file that shares more than a fifth of its
three-line runs (or of a held-out file's) with any one held-out file was dropped; a held-out file that the
remaining training files together cover by more than 30 % is not counted. {known_percent} of the three-line runs
of the held-out files still occur in the training text. Licence headers were cut off before training and
measuring: they are the same everywhere and would flatter the figure.

Only packages whose metadata names permissive licences were read; each keeps its own licence.

| package | version | licence | files |
| --- | --- | --- | --- |
{packages}

## How it was made

    scripts/train_demo_model.py collect
    scripts/train_demo_model.py train {flags}
    scripts/train_demo_model.py card

`collect` needs the packages above; `train` a GPU. `training.json` holds these figures, the recipe and the dev curve.

## What it writes

Greedy, after the first line or lines given:
{samples}"""


def render(account: dict[str, Any]) -> str:
    """The card as Markdown, from the content of ``training.json``."""
    manifest = account["corpus"]
    return CARD.format(
        **{key: account[key] for key in _PLAIN},
        vocab=account["vocab"],
        shards=account["shards"],
        sampled_functions=account["sampled_functions"],
        parse_percent=100 * account["parse_share"],
        train_mb=manifest["bytes"]["train"] / 1e6,
        train_files=manifest["files"]["train"],
        known_percent=f"{100 * manifest['held_out_known_share']:.1f} %",
        rows="\n".join(_row(account, *scope) for scope in _SCOPES),
        packages="\n".join(
            f"| {p['name']} | {p['version']} | {p['licence']} | {p['files']} |" for p in manifest["packages"]
        ),
        flags=" ".join(f"--{flag.replace('_', '-')} {account['recipe'][flag]}" for flag in FLAGS),
        note=f"\n{account['note']}\n" if account.get("note") else "",
        samples="".join(f"\n```python\n{prompt}{text.rstrip()}\n```\n" for prompt, text in account["greedy"].items()),
    )


_PLAIN = ("parameters", "training_tokens", "tokens_seen", "epochs_seen", "training_s", "device")
_SCOPES = (
    ("test", "test"),
    ("test_cpython", "test, standard library alone"),
    ("dev", "dev"),
    ("dev_cpython", "dev, standard library alone"),
)


def _row(account: dict[str, Any], scope: str, name: str) -> str:
    found = account[scope]
    cells = (
        found["files"],
        f"{found['bytes']:,}",
        f"**{found['bits_per_byte']:.3f}**",
        f"{found['xz_together']:.3f}",
        f"{found['xz_apart']:.3f}",
    )
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"
