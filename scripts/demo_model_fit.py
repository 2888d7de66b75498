"""Owns the training loop: recipe, order of data, optimizers, averaging, early stop. Knows no files, no tokenizer."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from demo_model_measure import bits_of
from demo_model_net import DemoNet, NetConfig
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TIMED_STEPS = range(30, 60)  # by then everything is compiled
PATIENCE = 3


@dataclass(frozen=True)
class Recipe:
    """How to train. ``muon`` moves the blocks' matrices by orthogonalised momentum and everything else by AdamW."""

    optimizer: str = "adamw"
    epochs: float = 12.0
    batch_windows: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    average: float = 0.998
    evals_per_epoch: int = 1
    limit_s: float = math.inf
    seed: int = 0


@dataclass
class Fit:
    """The best averaged weights by bits per byte on the dev files, and how they were reached."""

    state: dict[str, Tensor] = field(default_factory=dict)
    dev_bits: float = math.inf
    step: int = 0
    steps_run: int = 0
    steps_planned: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def stuck(self) -> bool:
        """True when three evaluations have passed since the best one."""
        return sum(step > self.step for step, _ in self.curve) >= PATIENCE


def batches(documents: Sequence[np.ndarray], recipe: Recipe, context: int) -> Iterator[Tensor]:
    """Endless [batch, context + 1] ids: every epoch the documents in a new order, end to end, cut at a new offset."""
    rng = np.random.default_rng(recipe.seed)
    span = context + 1
    while True:
        order = rng.permutation(len(documents))
        stream = np.concatenate([documents[i] for i in order])[int(rng.integers(span)) :]
        windows = stream[: len(stream) // span * span].reshape(-1, span)
        windows = windows[rng.permutation(len(windows))]
        for first in range(0, len(windows) - recipe.batch_windows + 1, recipe.batch_windows):
            yield torch.from_numpy(windows[first : first + recipe.batch_windows].astype(np.int64))


def optimizers_of(net: DemoNet, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov and Hutter, 2019), with Muon (Jordan et al., 2024) for the blocks' matrices where asked for."""
    matrices = [p for name, p in net.named_parameters() if p.ndim == 2 and "embed" not in name]
    embedding = [net.model.embed_tokens.weight]
    norms = [p for p in net.parameters() if p.ndim == 1]
    fused = next(net.parameters()).is_cuda
    rate, decay = recipe.learning_rate, recipe.weight_decay
    adamed: list[dict[str, Any]] = [{"params": norms, "weight_decay": 0.0}, {"params": embedding}]
    muons: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "muon":
        muons = [torch.optim.Muon(matrices, lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")]
    else:
        adamed.append({"params": matrices})
    return [torch.optim.AdamW(adamed, lr=rate, weight_decay=decay, betas=(0.9, 0.95), fused=fused), *muons]


def rate_at(step: int, steps: int) -> float:
    """Share of the full learning rate: linear warm-up over the first 3 %, then a cosine down to 1 %."""
    warm = max(1, steps * 3 // 100)
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Training:
    """One run: the net, its running average and the account of it."""

    def __init__(self, config: NetConfig, recipe: Recipe, device: str) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        self.recipe, self.device = recipe, device
        self.net = DemoNet(config, recipe.dropout).to(device).train()
        self.averaged = DemoNet(config).to(device).eval().requires_grad_(False)
        self.averaged.load_state_dict(self.net.state_dict())
        self.optimizers = optimizers_of(self.net, recipe)
        self.loss = torch.compile(self.net.loss) if device == "cuda" else self.net.loss
        self.fit = Fit()

    def step(self, ids: Tensor, number: int, steps: int) -> Tensor:
        """One update; returns the loss in nats per token, still on the device."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * rate_at(number, steps)
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.loss(ids.to(self.device, non_blocking=True))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        keep = min(self.recipe.average, (1 + number) / (10 + number))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.net.parameters()), 1 - keep)
        return loss.detach()

    def evaluate(self, dev: Sequence[np.ndarray], dev_bytes: int, number: int) -> float:
        """Bits per byte of the averaged weights on the dev files; keeps the weights if they are the best so far."""
        with torch.autocast(self.device, torch.bfloat16):
            bits = bits_of(self.averaged, dev, self.averaged.config.context, self.device) / dev_bytes
        self.fit.curve.append((number, round(bits, 4)))
        if bits < self.fit.dev_bits:
            self.fit.dev_bits, self.fit.step = bits, number
            self.fit.state = {name: value.detach().clone() for name, value in self.averaged.state_dict().items()}
        return bits


def shortened(steps: int, number: int, step_s: float, left_s: float) -> int:
    """The steps that fit into the time left after step ``number``, 3 % of it kept for evaluations."""
    return steps if left_s == math.inf else min(steps, number + max(1, int(left_s / step_s * 0.97)))


def fit(
    config: NetConfig,
    recipe: Recipe,
    train: Sequence[np.ndarray],
    dev: Sequence[np.ndarray],
    dev_bytes: int,
    device: str,
) -> Fit:
    """Trains until the epochs are done, the time is up (the schedule is shortened to end then) or dev stops falling."""
    run = Training(config, recipe, device)
    per_epoch = sum(map(len, train)) // ((config.context + 1) * recipe.batch_windows)
    steps = max(1, round(per_epoch * recipe.epochs))
    every = max(1, per_epoch // recipe.evals_per_epoch)
    begun = timed_from = time.monotonic()
    for number, ids in enumerate(batches(train, recipe, config.context), start=1):
        loss = run.step(ids, number - 1, steps)
        if number in (TIMED_STEPS.start, TIMED_STEPS.stop):
            loss.item()  # waits for the device
            now = time.monotonic()
            if number == TIMED_STEPS.stop:
                steps = shortened(steps, number, (now - timed_from) / len(TIMED_STEPS), recipe.limit_s - (now - begun))
                sys.stderr.write(f"{steps} steps of {per_epoch} an epoch\n")
            timed_from = now
        if number % every == 0 or number >= steps:
            bits = run.evaluate(dev, dev_bytes, number)
            sys.stderr.write(f"step {number}/{steps}: train {float(loss):.3f} nats, dev {bits:.4f} bits per byte\n")
        if number >= steps or run.fit.stuck():
            break
    run.fit.steps_run, run.fit.steps_planned, run.fit.seconds = number, steps, time.monotonic() - begun
    return run.fit
