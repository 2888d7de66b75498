"""Each family, cut into three spans with paged KV, against the unsplit model of transformers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from shoal.blocks import batch
from shoal.blocks.checkpoint import resolve
from shoal.blocks.ends import Ends, load_ends
from shoal.blocks.kv import PAGE_TOKENS
from shoal.blocks.span import Row, Span, SpanOptions, load_span
from tiny_models import TINY, VOCAB, answers, save_tiny

PAGES = 24
TOLERANCE = 1e-4
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
CUTS = (range(1), range(1, 3), range(3, 4))


@dataclass
class Split:
    """A model in three spans with its ends, and the unsplit one."""

    model: object
    spans: list[Span]
    ends: Ends
    free: list[int] = field(default_factory=lambda: random.Random(5).sample(range(PAGES), PAGES))

    def run(self, tokens: list[int], rows: list[Row]) -> torch.Tensor:
        positions = torch.cat([torch.arange(row.position, row.position + row.count) for row in rows])
        hidden = self.ends.embed(torch.tensor(tokens), positions)
        for span in self.spans:
            hidden = span.forward(hidden, rows)
        return self.ends.logits(hidden).cpu()

    def take(self, tokens: int) -> list[int]:
        return [self.free.pop() for _ in range(-(-tokens // PAGE_TOKENS))]


@pytest.fixture(scope="module", params=list(TINY))
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = save_tiny(request.param, folder)
    return model, resolve(str(folder))


@pytest.fixture(scope="module", params=DEVICES)
def loaded(tiny, request) -> tuple[list[Span], Ends]:
    _, checkpoint = tiny
    options = SpanOptions(kv_pages=PAGES, dtype=torch.float32, device=request.param)
    ends = load_ends(checkpoint, device=request.param, dtype=torch.float32)
    return [load_span(checkpoint, cut, options) for cut in CUTS], ends


@pytest.fixture
def split(tiny, loaded) -> Split:
    """All pages are free and empty: a test must not read what another one has written into the same."""
    for span in loaded[0]:
        for block in span.blocks:
            for part in (span.kv.block(block).keys, span.kv.block(block).values):
                part.zero_()
    return Split(tiny[0], *loaded)


def random_tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCAB) for _ in range(count)]


def test_prefill_decode_and_greedy_equal_the_unsplit_model(split: Split) -> None:
    prompt, forced = random_tokens(37, 1), random_tokens(6, 2)
    expected, greedy = answers(split.model, prompt, forced, n_greedy=32)
    pages = split.take(80)

    found = [split.run(prompt, [Row(pages, 0, len(prompt))])]
    for step, token in enumerate(forced):
        found.append(split.run([token], [Row(pages, len(prompt) + step, 1)]))
    assert (torch.cat(found) - expected).abs().max() <= TOLERANCE

    picked, position = [int(found[-1][-1].argmax())], len(prompt) + len(forced)
    while len(picked) < len(greedy):
        picked.append(int(split.run(picked[-1:], [Row(pages, position, 1)])[-1].argmax()))
        position += 1
    assert picked == greedy


@pytest.fixture(scope="module")
def alone(tiny) -> tuple[list[list[int]], list[list[int]], list[torch.Tensor]]:
    """Three prompts, how each goes on, and the unsplit model's logits of all that."""
    prompts = [random_tokens(41, 3), random_tokens(5, 4), random_tokens(22, 5)]
    forced = [random_tokens(8, 6 + i) for i in range(3)]
    return prompts, forced, [answers(tiny[0], prompt, more)[0] for prompt, more in zip(prompts, forced, strict=True)]


@pytest.mark.parametrize("row_by_row", [frozenset({"cpu", "cuda"}), frozenset()], ids=["row-by-row", "gathered"])
def test_chunks_and_ragged_batches_equal_each_sequence_alone(split: Split, alone, row_by_row, monkeypatch) -> None:
    """Three sequences in shuffled pages; each forward mixes prompt chunks of several sizes with decode tokens."""
    monkeypatch.setattr(batch, "ROW_BY_ROW", row_by_row)
    prompts, forced, expected = alone
    texts = [prompt + more for prompt, more in zip(prompts, forced, strict=True)]
    pages = [split.take(len(text)) for text in texts]
    found: list[list[torch.Tensor]] = [[], [], []]
    done = [0, 0, 0]

    def step(*counts: int) -> None:
        rows, tokens = [], []
        for i, count in enumerate(counts):
            if count:
                rows.append(Row(pages[i], done[i], count, length=len(prompts[i])))
                tokens += texts[i][done[i] : done[i] + count]
        logits = iter(split.run(tokens, rows).split([row.count for row in rows]))
        for i, count in enumerate(counts):
            if count:
                found[i].append(next(logits))
                done[i] += count

    step(17, 5, 0)
    step(1, 1, 9)
    step(22, 1, 1)
    step(1, 1, 12)
    for _ in range(5):
        step(1, 1, 1)
    step(1, 0, 1)
    step(0, 0, 1)
    step(0, 0, 1)
    for i in range(3):
        assert done[i] >= len(prompts[i]) + 4
        assert (torch.cat(found[i]) - expected[i][: done[i]]).abs().max() <= TOLERANCE
