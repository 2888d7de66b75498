"""Held-out perplexity and bytes per parameter under each quantization of the blocks' matrices."""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _lean  # noqa: F401
import torch
from _int8 import SCHEMES, RoundedLinear
from _quant_result import LABELS, Inputs, Result, print_results
from _report import write_json
from shoal.blocks.checkpoint import resolve
from shoal.blocks.errors import BlocksError
from shoal.blocks.quantize import quantize_, replace_matrices
from shoal.blocks.quantize_linear import four_bit_linear
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HELD_OUT = Path(__file__).parents[2] / "tests" / "data" / "held_out.jsonl"
BATCH = 8  # windows a forward; "by tensor" takes one scale for all of them


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        model, windows = _load(options)
    except (BlocksError, OSError) as error:
        print(f"bench quant: {error}", file=sys.stderr)
        return 1
    inputs = _inputs(model, windows)
    reference = list(_predictions(model, windows))
    results = {name: _measure(name, model, windows, reference) for name in LABELS}
    print_results(results, inputs, windows)
    figures = {f"ppl_{name}": result.perplexity for name, result in results.items()}
    figures |= {f"kl_{name}": result.divergence for name, result in results.items()}
    figures |= {f"bytes_per_param_{name}": result.bytes_per_param for name, result in results.items()}
    write_json(options.json, figures | inputs.figures() | {"tokens": windows.numel() - len(windows)})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench quant", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as one JSON object")
    parser.add_argument("--model", default="demo", help="directory, hub name or demo (default)")
    parser.add_argument("--text", type=Path, default=HELD_OUT, help="held-out text, or .jsonl with a text a line")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of it to score (default: %(default)s)")
    parser.add_argument("--context", type=int, default=256, help="tokens in a window (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    return parser


def _load(options: argparse.Namespace) -> tuple[nn.Module, torch.Tensor]:
    """The model in fp32 and the text as windows [n, context] of token ids, both on the device."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = resolve(options.model).path
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()
    ids = _token_ids(AutoTokenizer.from_pretrained(path, trust_remote_code=False), options.text)
    count = min(len(ids), options.tokens) // options.context
    if count < 2:
        raise OSError(f"{options.text} has only {len(ids)} tokens: two windows of {options.context} are needed.")
    windows = torch.tensor(ids[: count * options.context]).reshape(count, options.context)
    return model.to(options.device), windows.to(options.device)


def _token_ids(tokenizer: Any, path: Path) -> list[int]:
    """The texts one after the other, with the tokenizer's end of text (where it has one) between them."""
    content = path.read_text("utf-8")
    texts = [json.loads(line)["text"] for line in content.splitlines()] if path.suffix == ".jsonl" else [content]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [token for text in texts for token in (*tokenizer(text, verbose=False)["input_ids"], *end)]


def _blocks(model: Any) -> nn.Module:
    base = model.base_model
    blocks: nn.Module = base.h if hasattr(base, "h") else base.layers
    return blocks


def _matrices(model: nn.Module) -> list[Any]:
    return [module for module in _blocks(model).modules() if _is_matrix(getattr(module, "weight", None))]


def _is_matrix(weight: object) -> bool:
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def _measure(name: str, original: nn.Module, windows: torch.Tensor, reference: list[torch.Tensor]) -> Result:
    model = copy.deepcopy(original)
    n_weights = sum(module.weight.numel() for module in _matrices(model))
    _VARIANTS[name](model, windows.device)
    stored = sum(_stored_bytes(module) for module in _blocks(model).modules())
    return Result(*_scores(model, windows, reference), stored / n_weights)


def _as_dtype(dtype: torch.dtype, model: nn.Module, device: torch.device) -> None:
    quantize_(model, "none", device, dtype)


def _rounded(name: str, model: nn.Module, _: torch.device) -> None:
    replace_matrices(_blocks(model), functools.partial(RoundedLinear, scheme=SCHEMES[name]))


def _kind(kind: str, model: nn.Module, device: torch.device) -> None:
    quantize_(_blocks(model), kind, device, torch.float32)


def _nf4_single(model: nn.Module, device: torch.device) -> None:
    make = functools.partial(four_bit_linear, device=device, dtype=torch.float32, code="nf4", double=False)
    replace_matrices(_blocks(model), make)


_VARIANTS: dict[str, Callable[[nn.Module, torch.device], object]] = {
    "fp32": functools.partial(_as_dtype, torch.float32),
    "bf16": functools.partial(_as_dtype, torch.bfloat16),
    **{name: functools.partial(_rounded, name) for name in SCHEMES},
    "llm_int8": functools.partial(_kind, "int8"),
    "fp4": functools.partial(_kind, "fp4"),
    "nf4": _nf4_single,
    "nf4_dq": functools.partial(_kind, "nf4"),
}


def _stored_bytes(module: Any) -> int:
    """Bytes of a matrix as it is held: its codes and their scales."""
    if isinstance(module, RoundedLinear):
        return module.stored_bytes
    weight: Any = getattr(module, "weight", None)
    if getattr(weight, "SCB", None) is not None:
        return _bytes(weight, weight.SCB)
    if getattr(weight, "quant_state", None) is not None:
        state = weight.quant_state
        return _bytes(weight, state.absmax, *([state.state2.absmax] if state.nested else []))
    return _bytes(weight) if _is_matrix(weight) else 0


def _bytes(*tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _scores(
    model: nn.Module, windows: torch.Tensor, reference: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss, and divergence from the reference's predictions, of each window, in nats a token."""
    losses, divergences = [], []
    for batch, predicted, expected in zip(
        torch.split(windows, BATCH), _predictions(model, windows), reference, strict=True
    ):
        losses.append(-predicted.gather(-1, batch[:, 1:, None]).mean((1, 2)))
        divergences.append((expected.exp() * (expected - predicted)).sum(-1).mean(1))
    return torch.cat(losses).cpu(), torch.cat(divergences).cpu()


@torch.inference_mode()
def _predictions(model: nn.Module, windows: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logarithms of the probabilities of each next token, [windows, context - 1, vocabulary] a batch."""
    for batch in torch.split(windows, BATCH):
        yield model(batch).logits[:, :-1].float().log_softmax(-1)


@torch.inference_mode()
def _inputs(model: nn.Module, windows: torch.Tensor) -> Inputs:
    """One batch, looked at on its way into each matrix."""
    inputs = Inputs()
    hooks = [module.register_forward_pre_hook(inputs.see) for module in _matrices(model)]
    model(windows[:BATCH])
    for hook in hooks:
        hook.remove()
    return inputs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
