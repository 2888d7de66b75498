"""How many blocks fit: never more than the memory holds, never without KV, what was asked for or a reason why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.blocks.errors import NoMemory
from shoal.peer.fit import BUFFERS, FEWEST_TOKENS, FLOOR_SHARE, FLOOR_TOKENS, Figures, Wishes, fit

MIB, GIB = 2**20, 2**30
# Llama-3-70B in nf4 beside a 12 GB card: 451 MiB and 4 KiB a token for each of 80 blocks.
LARGE = Figures(
    weights=(451 * MIB,) * 80, kv=(4096,) * 80, reserve=GIB, free=12 * GIB, host_free=64 * GIB, shared=False,
    most_tokens=64 * 8192, page_tokens=16,
)  # fmt: skip


def used(figures: Figures, found, heaviest=max) -> int:
    """Device bytes of a fit of equal blocks, the page that nobody owns included."""
    here = found.blocks - found.streamed + (BUFFERS if found.streamed else 0)
    tokens = found.kv_tokens + figures.page_tokens
    return here * heaviest(figures.weights) + found.blocks * tokens * heaviest(figures.kv)


def test_a_small_card_takes_a_part_of_a_large_model_and_says_why() -> None:
    found = fit(LARGE, Wishes())
    assert (found.blocks, found.streamed) == (21, 0)
    kv = found.blocks * found.kv_tokens * 4096
    assert kv >= (LARGE.free - LARGE.reserve) // FLOOR_SHARE - 21 * 16 * 4096
    assert used(LARGE, found) <= LARGE.free - LARGE.reserve < used(LARGE, found) + 451 * MIB
    assert found.why.startswith("21 of 80 blocks fit: 9.2 GiB of 12.0 GiB for weights, ")
    assert f"for {found.kv_tokens} tokens of KV, 1.0 GiB kept free" in found.why


def test_all_memory_in_weights_would_serve_nobody() -> None:
    """One block more would fit by its weights alone."""
    found = fit(LARGE, Wishes())
    assert (found.blocks + 1) * 451 * MIB + FLOOR_TOKENS * 4096 * (found.blocks + 1) <= LARGE.free - LARGE.reserve
    assert found.kv_tokens >= 2 * FLOOR_TOKENS


def test_a_large_card_takes_everything_and_no_more_kv_than_it_can_use() -> None:
    found = fit(replace(LARGE, free=400 * GIB), Wishes())
    assert (found.blocks, found.kv_tokens) == (80, LARGE.most_tokens)


@pytest.mark.parametrize(
    ("wishes", "blocks"),
    [
        (Wishes(num_blocks=5), 5),
        (Wishes(num_blocks=60), 21),
        (Wishes(blocks=range(3, 20)), 17),
        (Wishes(vram=6 * GIB), 9),
        (Wishes(vram=100 * GIB), 21),
        (Wishes(kv_tokens=1024), 24),
        (Wishes(kv_tokens=100_000), 13),
    ],
    ids=str,
)
def test_wishes_are_honoured(wishes: Wishes, blocks: int) -> None:
    found = fit(LARGE, wishes)
    assert found.blocks == blocks
    assert used(LARGE, found) + LARGE.reserve <= min(LARGE.free, wishes.vram or LARGE.free)
    assert wishes.kv_tokens is None or wishes.kv_tokens <= found.kv_tokens < wishes.kv_tokens + 16


def test_a_bound_holds_what_the_driver_takes_as_well() -> None:
    """It is out of what is free already; so it counts where the bound is what there is to share."""
    figures = replace(LARGE, context=512 * MIB)
    found = fit(figures, Wishes(vram=6 * GIB))
    assert used(figures, found) + figures.reserve + figures.context <= 6 * GIB
    assert found.blocks == fit(LARGE, Wishes(vram=6 * GIB)).blocks - 1
    assert "of 5.5 GiB for weights" in found.why
    assert found.why.endswith("1.0 GiB kept free beside 512.0 MiB for the GPU's driver")
    for wishes in (Wishes(), Wishes(vram=100 * GIB)):
        assert fit(figures, wishes).kv_tokens == fit(LARGE, wishes).kv_tokens
    with pytest.raises(NoMemory, match=r"1\.2 GiB may be used beside 512\.0 MiB for the GPU's driver"):
        fit(figures, Wishes(vram=1700 * MIB))
    with pytest.raises(NoMemory, match=r"0\.0 KiB may be used"):
        fit(figures, Wishes(vram=100 * MIB))


def test_blocks_of_different_sizes_fit_wherever_they_are_chosen() -> None:
    uneven = replace(LARGE, weights=(451 * MIB, 900 * MIB) * 40)
    found = fit(uneven, Wishes())
    heaviest = max(sum(uneven.weights[i : i + found.blocks]) for i in range(80 - found.blocks + 1))
    assert heaviest + found.blocks * (found.kv_tokens + 16) * 4096 <= uneven.free - uneven.reserve
    assert fit(uneven, Wishes(blocks=range(1))).blocks == 1


def test_little_kv_is_better_than_no_peer() -> None:
    tight = replace(LARGE, free=LARGE.reserve + 451 * MIB + 2000 * 4096)
    found = fit(tight, Wishes())
    assert found.blocks == 1
    assert FEWEST_TOKENS <= found.kv_tokens < 2000


@pytest.mark.parametrize(
    ("free", "wishes", "words"),
    [
        (LARGE.reserve + 451 * MIB, Wishes(), "one block: 451.0 MiB for weights, 4.0 MiB for 1024 tokens"),
        (12 * GIB, Wishes(vram=MIB), "1.0 MiB may be used"),
        (12 * GIB, Wishes(blocks=range(40)), "blocks 0:40"),
        (12 * GIB, Wishes(kv_tokens=10**8), "for 100000000 tokens"),
    ],
    ids=["one block", "vram", "blocks", "kv"],
)
def test_what_does_not_fit_is_one_clear_line(free: int, wishes: Wishes, words: str) -> None:
    with pytest.raises(NoMemory) as refused:
        fit(replace(LARGE, free=free), wishes)
    assert words in str(refused.value)
    assert "too little memory for" in str(refused.value)
    assert "\n" not in str(refused.value)


# -- host memory ------------------------------------------------------------------------------------------------------


def test_offload_streams_what_does_not_fit() -> None:
    found = fit(LARGE, Wishes(offload=True))
    here = found.blocks - found.streamed
    assert found.blocks == 80
    assert 0 < here < 21
    assert found.kv_tokens >= FLOOR_TOKENS
    assert used(LARGE, found) <= LARGE.free - LARGE.reserve
    assert f"{found.streamed} of them are streamed from" in found.why


def test_offload_is_bounded_by_host_memory() -> None:
    found = fit(LARGE, Wishes(offload=True, host_memory=10 * GIB))
    assert 21 < found.blocks < 80
    assert found.streamed * 451 * MIB <= 10 * GIB
    assert fit(LARGE, Wishes(offload=True, host_memory=MIB)).streamed == 0


def test_nothing_is_streamed_that_fits() -> None:
    assert fit(LARGE, Wishes(offload=True, num_blocks=21)) == replace(
        fit(LARGE, Wishes(num_blocks=21)), **host_part(fit(LARGE, Wishes(offload=True, num_blocks=21)))
    )


def host_part(found) -> dict[str, int]:
    return {"swap_pages": found.swap_pages, "kept_bytes": found.kept_bytes}


def test_host_memory_holds_swapped_sessions_kept_outputs_and_streamed_blocks() -> None:
    page = 21 * 16 * 4096
    found = fit(LARGE, Wishes(host_memory=8 * GIB))
    assert found.kept_bytes == GIB
    assert 7 * GIB - page < found.swap_pages * page <= 7 * GIB
    small = fit(LARGE, Wishes(host_memory=GIB))
    assert small.kept_bytes == GIB // 4
    assert small.swap_pages * page + small.kept_bytes <= GIB


def test_unasked_swap_is_no_larger_than_the_kv_and_none_where_the_device_is_the_host() -> None:
    found = fit(LARGE, Wishes())
    assert 0 < found.swap_pages <= found.kv_tokens // 16
    on_cpu = replace(LARGE, shared=True)
    assert fit(on_cpu, Wishes()).swap_pages == 0
    assert fit(on_cpu, Wishes(host_memory=GIB)).swap_pages > 0


@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=20),
    kv=st.integers(1, 50),
    free=st.integers(0, 500_000),
    reserve=st.integers(0, 1000),
    context=st.integers(0, 1000),
    wishes=st.builds(
        Wishes,
        vram=st.none() | st.integers(1, 500_000),
        host_memory=st.none() | st.integers(1, 10_000),
        num_blocks=st.none() | st.integers(1, 20),
        kv_tokens=st.none() | st.integers(16, 20_000),
        offload=st.booleans(),
    ),
)
def test_what_is_promised_is_there(
    weights: list[int], kv: int, free: int, reserve: int, context: int, wishes: Wishes
) -> None:
    """In units as small as you like: no choice of consecutive blocks takes more than may be used."""
    figures = Figures(tuple(weights), (kv,) * len(weights), reserve, free, 10_000, False, 65_536, 16, context)
    try:
        found = fit(figures, wishes)
    except NoMemory:
        assert free < reserve + max(weights) + kv * (16 + max(wishes.kv_tokens or 0, FEWEST_TOKENS) + 16) or (
            wishes.vram is not None
        )
        return
    here = found.blocks - found.streamed
    spans = [weights[i : i + found.blocks] for i in range(len(weights) - found.blocks + 1)]
    held = max(sum(span[:here]) for span in spans) + (BUFFERS * max(weights) if found.streamed else 0)
    taken = held + found.blocks * kv * (found.kv_tokens + 16) + reserve
    assert taken <= free
    assert wishes.vram is None or taken + context <= wishes.vram
    assert 1 <= found.blocks <= min(wishes.num_blocks or 20, len(weights))
    assert found.kv_tokens % 16 == 0
    assert found.kv_tokens >= (wishes.kv_tokens or FEWEST_TOKENS)
    streamed = max(sum(span[here:]) for span in spans)
    swapped = found.swap_pages * 16 * kv * found.blocks
    assert found.streamed == 0 or wishes.offload
    assert streamed + swapped + found.kept_bytes <= (wishes.host_memory or 10_000)
