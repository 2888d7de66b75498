"""Owns the card's figures: bits per byte, xz beside them, share of sampled functions that parse. Trains nothing."""

from __future__ import annotations

import ast
import hashlib
import lzma
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ROWS_AT_ONCE = 32
PROMPT_LINES = 40
FUNCTION_LINES = range(4, 31)
FUNCTIONS_PER_FILE = 3


def windows_of(length: int, context: int) -> Iterator[tuple[int, int]]:
    """(start, first scored target) of windows that overlap by half, so that each target is scored once.

    A document of ``length`` ids has targets 1..length-1; past the first window each is predicted from at least
    ``context // 2`` ids.
    """
    start, scored = 0, 1
    while scored < length:
        yield start, scored
        scored = start + context + 1
        start += context // 2


@torch.no_grad()
def bits_of(net: Callable[[Tensor], Tensor], documents: Sequence[np.ndarray], context: int, device: str) -> float:
    """Bits to predict every id of the documents but the first of each, with logits = net(ids [batch, tokens])."""
    rows = [(document, *window) for document in documents for window in windows_of(len(document), context)]
    nats = 0.0
    for first in range(0, len(rows), ROWS_AT_ONCE):
        batch = rows[first : first + ROWS_AT_ONCE]
        width = max(min(context + 1, len(document) - start) for document, start, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        targets = torch.full((len(batch), width), -100)
        for row, (document, start, scored) in enumerate(batch):
            piece = torch.from_numpy(document[start : start + width].astype(np.int64))
            ids[row, : len(piece)] = piece
            targets[row, scored - start : len(piece)] = piece[scored - start :]
        logits = net(ids[:, :-1].to(device)).float()
        wanted = targets[:, 1:].to(device)
        nats += float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum"))
    return nats / math.log(2)


def xz_bits_per_byte(texts: Iterable[str]) -> dict[str, float]:
    """What ``xz -9`` needs: ``together`` for one stream of all files, ``apart`` for a stream per file."""
    raw = [text.encode() for text in texts]
    total = sum(map(len, raw))
    return {
        "together": 8 * len(lzma.compress(b"".join(raw), preset=9)) / total,
        "apart": 8 * sum(len(lzma.compress(piece, preset=9)) for piece in raw) / total,
    }


@dataclass(frozen=True)
class Stub:
    """A held-out function without its body: ``prompt`` ends where the body (after any docstring) begins."""

    prompt: str
    head: str  # the tail of the prompt from ``def`` on
    indent: int  # columns before ``def``


def stubs_of(text: str) -> list[Stub]:
    """The functions of a file that are 4 to 30 lines long, at most three, chosen by the hash of their text."""
    lines = text.splitlines(keepends=True)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body_line = _first_body_line(node)
        if body_line is None or (node.end_lineno or 0) - node.lineno + 1 not in FUNCTION_LINES:
            continue
        head = "".join(lines[node.lineno - 1 : body_line - 1])
        before = "".join(lines[max(0, node.lineno - 1 - PROMPT_LINES) : node.lineno - 1])
        found.append(Stub(before + head, head, node.col_offset))
    found.sort(key=lambda stub: hashlib.sha256(stub.prompt.encode()).digest())
    return found[:FUNCTIONS_PER_FILE]


def _first_body_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int | None:
    """The line of the first statement that is no docstring, where it starts a line of its own."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body or body[0].lineno == node.lineno:
        return None
    return (node.body[0].end_lineno or 0) + 1 if body is not node.body else body[0].lineno


def completed(stub: Stub, completion: str) -> str:
    """The function as sampled: up to the first line no deeper than its ``def``, else to the last whole line."""
    kept = []
    for line in completion.splitlines(keepends=True):
        blank = not line.strip()
        if not line.endswith("\n") or (not blank and len(line) - len(line.lstrip()) <= stub.indent):
            break
        kept.append(line)
    return stub.head + "".join(kept)


def parses(stub: Stub, completion: str) -> bool:
    """True if something was written and ``ast.parse`` accepts the function."""
    source = completed(stub, completion)
    if not source[len(stub.head) :].strip():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse("if True:\n" + source if stub.indent else source)
        except (SyntaxError, ValueError):
            return False
    return True


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int, temperature: float) -> list[str]:
    """Completions by transformers' own ``generate``; temperature 0 is greedy. Prompts are cut on the left to fit."""
    room = model.config.max_position_embeddings - new_tokens
    rows = [ids if len(ids) <= room else [ids[0], *ids[1 - room :]] for ids in tokenizer(list(prompts))["input_ids"]]
    inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    out = model.generate(**inputs, max_new_tokens=new_tokens, pad_token_id=tokenizer.pad_token_id, **how)
    return list(tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
