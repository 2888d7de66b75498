"""What the quantization benchmark found: a table of each scheme's figures, and whether the published order holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from _report import print_table
from shoal.blocks.quantize_linear import INT8_THRESHOLD

if TYPE_CHECKING:
    import torch
    from torch import nn

NEXT_TO = 0.005  # nats a token: half a percent of perplexity
LABELS = {
    "fp32": "fp32",
    "bf16": "bf16",
    "int8_tensor": "int8, absmax by tensor",
    "int8_row": "int8, absmax by row",
    "int8_vector": "int8, absmax by vector (row x column)",
    "int8_zeropoint": "int8, zeropoint",
    "llm_int8": "LLM.int8()",
    "fp4": "FP4",
    "nf4": "NF4",
    "nf4_dq": "NF4, double quantization",
}


@dataclass(frozen=True)
class Result:
    """Of each window the mean loss and the mean divergence from fp32's predictions (Kullback-Leibler), both in nats a
    token, and the bytes that a weight of the blocks' matrices takes."""

    losses: torch.Tensor
    divergences: torch.Tensor
    bytes_per_param: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.losses.mean().item())

    @property
    def divergence(self) -> float:
        return self.divergences.mean().item()

    def further(self, other: Result) -> tuple[float, float]:
        """How much more it diverges from fp32 than another on the same windows, and twice its standard error."""
        return _mean_and_error(self.divergences - other.divergences)

    def above(self, other: Result) -> tuple[float, float]:
        """Mean loss above another's on the same windows, and twice its standard error."""
        return _mean_and_error(self.losses - other.losses)


def _mean_and_error(each: torch.Tensor) -> tuple[float, float]:
    return each.mean().item(), 2 * each.std().item() / math.sqrt(len(each))


@dataclass
class Inputs:
    """What goes into the matrices: its peaks against its root mean square, and columns past the threshold."""

    peak_ratio: list[float] = field(default_factory=list)
    outlier_columns: int = 0
    columns: int = 0

    def see(self, _: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        x = given[0].detach().flatten(0, -2).abs().float()
        self.peak_ratio.append((x.max() / x.square().mean().sqrt()).item())
        self.outlier_columns += int((x.amax(0) >= INT8_THRESHOLD).sum())
        self.columns += x.shape[1]

    def figures(self) -> dict[str, float]:
        return {
            "peak_over_rms_max": max(self.peak_ratio),
            "peak_over_rms_mean": sum(self.peak_ratio) / len(self.peak_ratio),
            "outlier_column_share": self.outlier_columns / self.columns,
        }


def print_results(results: dict[str, Result], inputs: Inputs, windows: torch.Tensor) -> None:
    """The table and its footnotes on stdout."""
    rows = []
    for name, result in results.items():
        excess, error = result.above(results["fp32"])
        figures = (result.perplexity, 1000 * excess, 1000 * error, 1000 * result.divergence, result.bytes_per_param)
        rows.append([LABELS[name], "{:.4f}|{:+.2f}|{:.2f}|{:.3f}|{:.4f}".format(*figures)])
    header = [
        "weights of the blocks",
        "perplexity",
        "loss above fp32, mnat",
        "2 s.e.",
        "KL, mnat",
        "bytes per parameter",
    ]
    print_table(header, [[label, *figures.split("|")] for label, figures in rows])
    print(f"{windows.numel() - len(windows)} tokens scored in windows of {windows.shape[1]}.")
    for line in _notes(results, inputs):
        print(line)


def _notes(results: dict[str, Result], inputs: Inputs) -> list[str]:
    """Whether the published order appeared, and where it did not, what the model's activations say about it."""
    share = inputs.outlier_columns / inputs.columns
    notes = [
        "KL is the divergence of the predictions from fp32's: it shows distances that chance hides in the loss.",
        _next_to_float(results),
        f"{share:.1%} of the columns going into matrices reach {INT8_THRESHOLD:g}; LLM.int8() keeps them in 16 bits.",
        _better(results, "nf4", "fp4"),
        *(_better(results, name, "int8_tensor") for name in ("int8_row", "int8_vector", "llm_int8")),
    ]
    worst = max(results, key=lambda name: results[name].divergence)
    return notes if worst == "int8_tensor" else [*notes, _why_not_worst(worst, inputs)]


def _next_to_float(results: dict[str, Result]) -> str:
    excess, error = results["llm_int8"].above(results["fp32"])
    near = abs(excess) < max(error, NEXT_TO)
    said = f"LLM.int8() loses {1000 * excess:.2f} mnat to fp32 (2 s.e. {1000 * error:.2f})"
    return f"{said}: next to float, as published." if near else f"{said}: not next to float, unlike what is published."


def _better(results: dict[str, Result], first: str, second: str) -> str:
    """The verdict on two schemes, of which the first is published as the better one."""
    gain, error = results[second].further(results[first])
    said = f"{LABELS[first]} against {LABELS[second]}: KL lower by {1000 * gain:.3f} mnat (2 s.e. {1000 * error:.3f})"
    if gain > error:
        return f"{said}, as published."
    return f"{said}, {'the reverse of what is published' if gain < -error else 'not to be told apart on this text'}."


def _why_not_worst(worst: str, inputs: Inputs) -> str:
    figures = inputs.figures()
    mean, most = figures["peak_over_rms_mean"], figures["peak_over_rms_max"]
    return (
        f"Absmax by tensor is not the worst of all, {LABELS[worst]} is: what goes into a matrix here peaks at "
        f"{mean:.0f} times its root mean square (mean; {most:.0f} at most), so one of its 127 steps is "
        f"{mean / 127:.2f} of that. The published loss comes with higher peaks, which larger models have and which "
        "leave most values no steps."
    )
