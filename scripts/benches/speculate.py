"""Tokens a second over emulated lines with and without guesses that are sent along: `--speculate`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _loop import run
from _report import print_table, write_json
from _swarm import median, tell
from _wan_swarm import SETTINGS, stage
from netlab.namespace import why_not
from shoal.client.generation import Completion, GenerationOptions, generate, prompt_of
from shoal.client.options import SessionOptions

if TYPE_CHECKING:
    from _wan_swarm import Stage

TEXTS = {  # one that goes on as it began, as edits and tables do, and one that does not
    "alike": "class Colors:\n" + "".join(
        f"    def is_{name}(self):\n        return self.color == '{name}'\n\n" for name in ("red", "green", "blue")
    ) + "    def is_yellow(self):\n",
    "free": 'class Config(dict):\n    """Options of a program, read from a file."""\n\n',
}  # fmt: skip
RUNS = 3


async def measure_all(arguments: argparse.Namespace) -> dict[str, float]:
    """Every text in every setting, without and with guesses in turn. Errors: `RuntimeError` where tokens differ."""
    figures: dict[str, float] = {}
    for setting in SETTINGS:
        if setting.name not in arguments.settings:
            continue
        async with stage("demo", setting) as made:
            for text, prompt in TEXTS.items():
                rates: dict[int, list[tuple[float, float]]] = {0: [], arguments.guesses: []}
                tokens = None
                for _ in range(RUNS):
                    for guesses, found in rates.items():
                        tell(f"{text}, {setting.name}, {guesses} guesses")
                        made_tokens, *figure = await one(made, prompt, guesses, arguments.tokens)
                        if tokens not in (None, made_tokens):
                            raise RuntimeError(f"{text}, {setting.name}: other tokens with guesses than without")
                        tokens = made_tokens
                        found.append((figure[0], figure[1]))
                for guesses, found in rates.items():
                    name = f"{text}_{setting.name}_{'guesses' if guesses else 'alone'}"
                    figures[f"tokens_per_s_{name}"] = median([rate for rate, _ in found])
                    figures[f"tokens_per_step_{name}"] = median([each for _, each in found])
                name = f"{text}_{setting.name}"
                alone, guessing = (figures[f"tokens_per_s_{name}_{how}"] for how in ("alone", "guesses"))
                figures[f"speedup_{name}"] = guessing / alone
    return figures


async def one(made: Stage, prompt: str, guesses: int, count: int) -> tuple[list[int], float, float]:
    """A greedy text's tokens, tokens a second after the first one, and tokens a step."""
    model = made.model
    ids = model.tokenizer(prompt)["input_ids"] if model.tokenizer is not None else []
    terms = SessionOptions(len(ids) + count, dtype="float32", wait_s=20, prompt=prompt_of(model.ends.spec, ids))
    completion = Completion(time.perf_counter())
    async with made.swarm.session(terms) as session:
        before = None
        async for piece in generate(
            session, model.ends, model.tokenizer, ids, GenerationOptions(count, speculate=guesses)
        ):
            before = session.stats.steps if before is None else before
            completion.pieces.append(piece)
        steps = session.stats.steps - (before or 0)
    return completion.token_ids, completion.tokens_per_s, (len(completion.pieces) - 1) / max(steps, 1)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="scripts/bench speculate", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--settings", default="1gbit_5ms,100mbit_100ms", help="of bench wan's (default: two of them)")
    parser.add_argument("--guesses", type=int, default=8, help="at most, with each step (default 8)")
    parser.add_argument("--tokens", type=int, default=96, help="of each text (default 96)")
    arguments = parser.parse_args()
    arguments.settings = arguments.settings.split(",")
    if unknown := set(arguments.settings) - {setting.name for setting in SETTINGS}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if reason := why_not():
        sys.exit(f"scripts/bench speculate: {reason}")
    torch.set_num_threads(1)
    figures: dict[str, float] = {}

    async def go() -> None:
        figures.update(await measure_all(arguments))

    run(go())
    columns = ("tokens_per_s_{}_alone", "tokens_per_s_{}_guesses", "tokens_per_step_{}_guesses", "speedup_{}")
    names = [f"{text}_{setting}" for setting in arguments.settings for text in TEXTS]
    rows = [[name.replace("_", " "), *(f"{figures[column.format(name)]:.2f}" for column in columns)] for name in names]
    print_table(["text and line", "tokens/s", f"with {arguments.guesses} guesses", "tokens a step", "times"], rows)
    print(
        "\nThe demo model over 3 peers and a client, each on an emulated host, on this machine's cores; greedy, and the"
    )
    print("same tokens in every run. alike: a text that goes on as it began; free: one that does not.")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
