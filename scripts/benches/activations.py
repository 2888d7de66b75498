"""Held-out perplexity with hidden states coded between spans, in each form in which they travel, and bytes a token."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _report import print_table, write_json
from quant import HELD_OUT, _blocks, _load, _predictions, _scores
from shoal.blocks.activations import pack, unpack
from shoal.blocks.errors import BlocksError
from shoal.blocks.formats import FORMS, row_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        model, windows = _load(options)
    except (BlocksError, OSError) as error:
        print(f"bench activations: {error}", file=sys.stderr)
        return 1
    blocks: Any = _blocks(model)
    width, cuts = model.config.hidden_size, range(0, len(blocks), options.span)
    reference = list(_predictions(model, windows))
    rows, figures = [], {"tokens": windows.numel() - len(windows), "boundaries": len(cuts) + 1}
    for form in FORMS:
        hooks = _coded(blocks, cuts, form)
        losses, divergences = _scores(model, windows, reference)
        for hook in hooks:
            hook.remove()
        figures |= {f"ppl_{form}": float(losses.mean().exp()), f"kl_{form}": float(divergences.mean())}
        figures[f"bytes_per_token_{form}"] = row_bytes(form, width)
        cells = f"{figures[f'ppl_{form}']:.4f}", f"{figures[f'kl_{form}']:.2e}", str(row_bytes(form, width))
        rows.append((form, *cells))
    print(f"{figures['tokens']} tokens, {figures['boundaries']} boundaries coded, hidden size {width}")
    print_table(("form", "perplexity", "KL from float32 (nats)", "bytes a token"), rows)
    write_json(options.json, figures)
    return 0


def _coded(blocks: Any, cuts: Sequence[int], form: str) -> list[Any]:
    """What enters the first block of every span, and what leaves the last one, passes through the code and back."""

    def through(states: torch.Tensor) -> torch.Tensor:
        flat = states.reshape(-1, states.shape[-1])
        return unpack(pack(flat, form), form, states.shape[-1]).to(states.dtype).view_as(states)

    def enter(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return through(inputs[0]), *inputs[1:]

    def leave(_module: Any, _inputs: Any, output: Any) -> Any:
        return (through(output[0]), *output[1:]) if isinstance(output, tuple) else through(output)

    return [*(blocks[cut].register_forward_pre_hook(enter) for cut in cuts), blocks[-1].register_forward_hook(leave)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench activations", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as one JSON object")
    parser.add_argument("--model", default="demo", help="directory, hub name or demo (default)")
    parser.add_argument("--text", type=Path, default=HELD_OUT, help="held-out text, or .jsonl with a text a line")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of it to score (default: %(default)s)")
    parser.add_argument("--context", type=int, default=256, help="tokens in a window (default: %(default)s)")
    parser.add_argument("--span", type=int, default=3, help="blocks of a span (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
