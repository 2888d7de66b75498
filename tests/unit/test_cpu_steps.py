"""Short steps in our own C against the same layer in torch's operations; and what happens without a C compiler."""

from __future__ import annotations

import logging
import platform
import shutil

import pytest
import torch
from full_disk import full_disk
from shoal.blocks import parts
from shoal.blocks.checkpoint import resolve
from shoal.blocks.cpu import compiled, short
from shoal.blocks.cpu.compiled import library
from shoal.blocks.packed import can_pack
from shoal.blocks.span import Row, Span, SpanOptions, load_span
from tiny_models import save_tiny

pytestmark = pytest.mark.skipif(not any(map(shutil.which, compiled.COMPILERS)), reason="needs a C compiler")

PAGES = ([5, 3, 9, 1], [2, 8, 4, 20])
VARIANTS = ("llama", "gemma2", "gemma3", "olmo2", "glm4", "phi3-longrope", "granite", "mistral")
FORWARDS = (  # a prompt; a decode with a chunk; a decode with the rest of it; two decodes, far past the window
    [Row(PAGES[0], 0, 7, 7)],
    [Row(PAGES[0], 7, 1), Row(PAGES[1], 0, 5, 20)],
    [Row(PAGES[0], 8, 1), Row(PAGES[1], 5, 15, 20)],
    [Row(PAGES[0], 9, 1), Row(PAGES[1], 20, 1)],
)
INTEL = platform.machine() in ("x86_64", "AMD64")


def load(folder, dtype: torch.dtype = torch.float32, **options: object) -> Span:
    return load_span(resolve(str(folder)), range(1, 3), SpanOptions(kv_pages=24, dtype=dtype, **options))


def spoil(span: Span) -> Span:
    """What the last owner of a page left behind must not show."""
    for index in span.blocks:
        span.kv.block(index).keys.fill_(torch.nan)
        span.kv.block(index).values.fill_(torch.nan)
    return span


def states(span: Span, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((tokens, span.spec.hidden_size), generator=torch.Generator().manual_seed(seed))


def difference(span: Span, plain: Span) -> float:
    """The greatest relative one over FORWARDS, KV of earlier ones included."""
    worst = 0.0
    for seed, rows in enumerate(FORWARDS):
        hidden = states(plain, sum(row.count for row in rows), seed)
        wanted, found = plain.forward(hidden, rows), span.forward(hidden.to(span.dtype), rows)
        assert found.dtype == span.dtype
        worst = max(worst, float((found.float() - wanted).norm() / wanted.norm()))
    return worst


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_c_computes_what_the_layer_computes(variant: str, tmp_path) -> None:
    save_tiny(variant, tmp_path)
    span, plain = spoil(load(tmp_path)), load(tmp_path, short=False)
    assert span._short is not None
    assert plain._short is None
    assert plain.fused
    assert 0 < difference(span, plain) < 2e-6


@pytest.mark.parametrize("option", ["-DBF16", "-mno-avx512f", "-mno-avx"])
def test_every_kind_of_processor_and_bfloat16(option: str, llama, monkeypatch) -> None:
    if not INTEL and option != "-DBF16":
        pytest.skip("another processor's instructions")
    dtype = torch.bfloat16 if option == "-DBF16" else torch.float32
    monkeypatch.setattr(parts, "short_library", lambda _: short.declared(library("step.c", option)))
    assert (
        0
        < difference(spoil(load(llama, dtype)), load(llama, short=False))
        < (0.02 if dtype == torch.bfloat16 else 2e-6)
    )


@pytest.mark.parametrize("kind", ["", "-DBF16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_side_by_side_and_far_apart_give_the_same_numbers(kind: str, threads: int) -> None:
    near, far = (short.declared(library("step.c", *filter(None, [kind, f"-DFAR_ROWS={far}"]))) for far in (0, 1))
    for rows, width in ((64, 512), (208, 1024), (80, 2064)):
        weight, bias = torch.randn(rows, width).to(torch.bfloat16 if kind else torch.float32), torch.randn(rows)
        for tokens in (1, 2, 3, 5, 9, 33, 70):
            given, found = torch.randn(tokens, width), []
            for library_ in (near, far):
                found.append(torch.full((tokens, rows), torch.nan))
                library_.product(
                    weight.data_ptr(), bias.data_ptr(), rows, width, given.data_ptr(), found[-1].data_ptr(), tokens,
                    threads,
                )  # fmt: skip
            assert torch.equal(*found)
            assert torch.allclose(found[0], given @ weight.float().T + bias, atol=2e-3)


def test_a_token_s_numbers_do_not_depend_on_those_beside_it(llama) -> None:
    span = load(llama)
    pages = [[4 * i, 4 * i + 1] for i in range(5)]
    prompts, steps = states(span, 25), states(span, 5, 1)
    together = [Row(held, 0, 5) for held in pages]
    first = span.forward(prompts, together)
    after = span.forward(steps, [Row(held, 5, 1) for held in pages])
    for i, held in enumerate(pages):
        assert torch.equal(span.forward(prompts[5 * i : 5 * i + 5], [Row(held, 0, 5)]), first[5 * i : 5 * i + 5])
        assert torch.equal(span.forward(steps[i : i + 1], [Row(held, 5, 1)]), after[i : i + 1])


def test_matrices_alone_where_attention_is_torch_s(llama, monkeypatch) -> None:
    span, plain = load(llama), load(llama, short=False)
    monkeypatch.setattr(short, "MOST_PAIRS", 0)
    assert 0 < difference(spoil(span), plain) < 2e-6
    monkeypatch.setattr(short, "MOST_TOKENS", 0)
    assert 0 <= difference(spoil(span), plain) < 2e-6


def test_threads_change_no_number(llama, monkeypatch) -> None:
    one = load(llama)
    monkeypatch.setattr(short, "SHARED_WEIGHTS", 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        three = load(llama)
        assert three._short._threads == 3
        for rows in FORWARDS:
            hidden = states(one, sum(row.count for row in rows))
            assert torch.equal(one.forward(hidden, rows), three.forward(hidden, rows))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so_and_in_its_row(number: float, llama) -> None:
    span = load(llama)
    hidden = states(span, 3)
    hidden[1, 7] = number
    out = span.forward(hidden, [Row([i], 0, 1) for i in range(3)])
    assert out.isfinite().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_lone_token_from_bytes_to_bytes_gives_the_same_numbers(variant: str, tmp_path) -> None:
    """Where the rotations depend on the length alone it is left to `forward`."""
    save_tiny(variant, tmp_path)
    span, other = spoil(load(tmp_path)), spoil(load(tmp_path))
    prompt = states(span, 7)
    span.forward(prompt, [Row(PAGES[0], 0, 7)])
    other.forward(prompt, [Row(PAGES[0], 0, 7)])
    for position in range(7, 30):
        state = states(span, 1, position)
        found = span.single(memoryview(state.numpy().tobytes()), Row(PAGES[0], position, 1), 1, 3)
        if variant == "phi3-longrope":
            assert found is None
            continue
        assert found is not None
        wanted = other.forward(state, [Row(PAGES[0], position, 1)])
        assert found == (wanted.numpy().tobytes(), True)
        for index in span.blocks:
            held, kept = span.kv.block(index), other.kv.block(index)
            assert torch.equal(held.keys.nan_to_num(), kept.keys.nan_to_num())
            assert torch.equal(held.values.nan_to_num(), kept.values.nan_to_num())


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_of_a_lone_token_it_is_told_what_is_not_finite(number: float, llama) -> None:
    span, state = load(llama), states(load(llama), 1)
    state[0, 7] = number
    assert span.single(memoryview(state.numpy().tobytes()), Row([0], 0, 1), 1, 3)[1] is False


def test_a_lone_token_that_does_not_fit_is_refused(llama) -> None:
    span = load(llama)
    state = memoryview(states(span, 1).numpy().tobytes())
    for row in (Row([24], 0, 1), Row([-1], 0, 1), Row([0], 16, 1), Row([0], -1, 1)):
        with pytest.raises(ValueError, match="row"):
            span.single(state, row, 1, 3)
    with pytest.raises(ValueError, match="not in this span"):
        span.single(state, Row([0], 0, 1), 0, 3)
    assert span.single(state[4:], Row([0], 0, 1), 1, 3) is None
    assert load(llama, torch.bfloat16).single(state, Row([0], 0, 1), 1, 3) is None


def test_what_is_received_is_left_as_it_was(llama) -> None:
    span = load(llama)
    hidden = states(span, 2)
    kept = hidden.clone()
    span.forward(hidden, [Row([0], 0, 2)])
    assert torch.equal(hidden, kept)


def test_long_chunks_and_other_kv_go_through_torch(llama) -> None:
    span = load(llama)
    assert span._short.takes(_batch([Row([0, 1], 20, 1), Row([2], 0, 16)]))
    assert span._short.takes(_batch([Row(range(24), 100, 60)]))
    assert not span._short.takes(_batch([Row(range(24), 300, 60)]))
    assert not span._short.takes(_batch([Row([i], 0, 1) for i in range(short.MOST_TOKENS + 1)]))
    assert load(llama, kv_dtype="int8")._short is None
    assert load(llama, quantization="nf4")._short is None
    assert (load(llama, torch.bfloat16)._short is None) == can_pack(torch.bfloat16)


def test_sizes_that_are_no_whole_vectors_go_through_torch(tmp_path) -> None:
    save_tiny("llama-tied", tmp_path)  # heads of 24
    assert (load(tmp_path)._short is None) == bool(24 % library("step.c").lanes())


@pytest.mark.parametrize("compiler", ["missing", "refuses", "removes"])
def test_without_a_compiler_torch_does_it_and_one_line_says_so(compiler, llama, monkeypatch, tmp_path, caplog) -> None:
    own = tmp_path / "broken-cc"
    remove = 'for each; do case $each in *.so) rm -f "$each" ;; esac; done'  # as linkers do
    own.write_text(f"#!/bin/sh\n{remove if compiler == 'removes' else ':'}\necho no such target >&2\nexit 1\n")
    own.chmod(0o755)
    monkeypatch.setattr(compiled, "COMPILERS", () if compiler == "missing" else (str(own),))
    monkeypatch.setattr(compiled, "_processor", lambda: compiler)  # nothing is kept for it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    compiled.library.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            span = load(llama)
        assert span._short is None
        assert span.forward(states(span, 1), [Row([0], 0, 1)]).isfinite().all()
        (line,) = (record.getMessage() for record in caplog.records if record.name.startswith("shoal.blocks.cpu"))
        assert ("there is no C compiler" if compiler == "missing" else "no such target") in line
        assert "\n" not in line
        assert list(tmp_path.iterdir()) == [own]
    finally:
        compiled.library.cache_clear()


def test_what_is_compiled_is_kept_where_there_is_room(tmp_path) -> None:
    """A folder that cannot be written (here: it is a file) costs nothing but the place."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    made = compiled._compile(compiled.Path(compiled.__file__).with_name("step.c"), ())
    kept = compiled._keep(made, (blocked / "below", tmp_path / "cache"), "step-1.so")
    assert kept == tmp_path / "cache" / "step-1.so"
    assert compiled._load(kept).lanes() in (4, 8, 16)
    made.unlink()


def test_a_full_disk_keeps_nothing_half_and_what_was_compiled_is_used(tmp_path, caplog) -> None:
    made = tmp_path / "made.so"
    made.write_bytes(bytes(100))
    folders = tmp_path / "first", tmp_path / "second"
    with caplog.at_level(logging.INFO), full_disk():
        assert compiled._keep(made, folders, "step-1.so") == made
    assert [list(folder.iterdir()) for folder in folders] == [[], []]
    (line,) = (record.getMessage() for record in caplog.records)
    assert "compiled at each start" in line
    assert str(folders[1]) in line


def test_without_room_for_temporary_files_there_is_no_library(monkeypatch) -> None:
    def full(**_: str) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")  # as tempfile says it

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(compiled.CompileError, match=r"no room.*No usable temporary directory"):
        compiled._compile(compiled.Path(compiled.__file__).with_name("step.c"), ())


def test_a_library_that_was_spoilt_is_compiled_anew(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(compiled, "_processor", lambda: "another")
    places = [tmp_path / "first", tmp_path / "second"]
    try:
        for place in places:
            monkeypatch.setattr(compiled, "_folders", lambda _, place=place: (place,))
            compiled.library.cache_clear()
            assert compiled.library("step.c").lanes() in (4, 8, 16)
            (made,) = place.iterdir()
            assert made.stat().st_size > 1000
            places[1].mkdir(exist_ok=True)
            if place is places[0]:
                (places[1] / made.name).write_bytes(b"not a library")
    finally:
        compiled.library.cache_clear()


def _batch(rows):
    from shoal.blocks.batch import make_batch

    return make_batch(tuple(rows), torch.device("cpu"))
