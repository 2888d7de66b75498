"""The demo model that ships in the package: its layout, figures and tokenizer, and the rules its training followed."""

import ast
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "blocks" / "demo_model"
SAMPLE = ROOT / "tests" / "data" / "held_out.jsonl"
ACCOUNT = json.loads((MODEL / "training.json").read_text())
sys.path.insert(0, str(ROOT / "scripts"))

import demo_model_corpus as corpora  # noqa: E402
import train_demo_model  # noqa: E402
from demo_model_fit import Fit, Recipe, fit, shortened  # noqa: E402
from demo_model_measure import Stub, bits_of, completed, parses, stubs_of, windows_of  # noqa: E402
from demo_model_net import DemoNet, NetConfig, as_llama  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def held_out():
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


def test_shards_are_small_and_more_than_one():
    shards = sorted(MODEL.glob("*.safetensors"))
    assert len(shards) >= 2
    assert all(shard.stat().st_size <= 15_000_000 for shard in shards)
    index = json.loads((MODEL / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    for shard in shards:
        with safe_open(shard, "pt") as tensors:
            assert {index["weight_map"][name] for name in tensors.keys()} == {shard.name}  # noqa: SIM118


def test_no_span_of_three_blocks_needs_every_shard():
    weight_map = json.loads((MODEL / "model.safetensors.index.json").read_text())["weight_map"]
    for start in range(0, 12, 3):
        prefixes = tuple(f"model.layers.{block}." for block in range(start, start + 3))
        needed = {shard for name, shard in weight_map.items() if name.startswith(prefixes)}
        assert len(needed) < len(set(weight_map.values()))


def test_architecture_is_a_llama_of_12_blocks_with_grouped_queries(model):
    config = model.config
    assert isinstance(config, LlamaConfig)
    assert config.num_hidden_layers == 12
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.hidden_size % 64 == 0
    assert config.intermediate_size % 64 == 0
    assert config.max_position_embeddings >= 1024
    parameters = sum(p.numel() for p in model.parameters())
    assert 10_000_000 <= parameters <= 25_000_000
    assert parameters == ACCOUNT["parameters"]


def test_held_out_sample_was_not_in_the_training_part(held_out):
    assert {corpora.Source(**row).split for row in held_out} == {"test"}


def ids_of(tokenizer, text):
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


@pytest.fixture(scope="module")
def scored(model, tokenizer, held_out):
    """Of each file of the sample its ids, and the log-probabilities that transformers gives for each next one."""
    found = []
    for row in held_out:
        ids = ids_of(tokenizer, row["text"])
        assert ids[0] == tokenizer.bos_token_id
        assert len(ids) <= model.config.max_position_embeddings
        with torch.no_grad():
            found.append((ids, model(torch.tensor([ids])).logits[0].log_softmax(-1)))
    return found


def bits_by(scores, ids):
    return -float(scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum()) / math.log(2)


def test_bits_per_byte_of_the_sample_are_what_the_account_says(scored, held_out):
    bits = sum(bits_by(scores, ids) for ids, scores in scored)
    size = sum(len(row["text"].encode()) for row in held_out)
    stated = ACCOUNT["sample"]
    assert stated["bytes"] == size
    assert bits / size == pytest.approx(stated["bits_per_byte"], abs=stated["tolerance"])


def test_the_model_that_is_there_can_be_measured_anew(scored, held_out, tmp_path, capsys):
    """The last file under a name that is none of the standard library's."""
    foreign = next(name for name in (f"pkg/{n}.py" for n in range(2000)) if corpora.Source(name, "").split == "test")
    sources = [corpora.Source(**row) for row in held_out[:-1]] + [corpora.Source(foreign, held_out[-1]["text"])]
    corpora.save(corpora.Corpus(sources=sources), tmp_path / "corpus.jsonl.xz")
    arguments = train_demo_model.parser().parse_args(["measure", "--work", str(tmp_path), "--out", str(MODEL)])
    arguments.run(arguments)
    measured, stated = json.loads(capsys.readouterr().out), ACCOUNT["sample"]
    found = measured["test"]
    assert (found["files"], found["bytes"]) == (len(sources), stated["bytes"])
    assert found["bits_per_byte"] == pytest.approx(stated["bits_per_byte"], abs=stated["tolerance"])
    found, size = measured["test_cpython"], sum(len(row["text"].encode()) for row in held_out[:-1])
    assert (found["files"], found["bytes"]) == (len(sources) - 1, size)
    bits = sum(bits_by(scores, ids) for ids, scores in scored[:-1])
    assert found["bits_per_byte"] == pytest.approx(bits / size, abs=1e-3)


def test_account_reaches_the_bar():
    test = ACCOUNT["test"]
    assert test["bits_per_byte"] <= 0.70
    assert test["bits_per_byte"] < test["xz_together"] < test["xz_apart"]
    assert ACCOUNT["corpus"]["held_out_known_share"] < 0.1


def test_card_states_the_figures_of_the_account():
    card = (MODEL / "README.md").read_text()
    for scope in ("dev", "test", "dev_cpython", "test_cpython"):
        figures = ACCOUNT[scope]
        shown = f"**{figures['bits_per_byte']:.3f}** | {figures['xz_together']:.3f} | {figures['xz_apart']:.3f}"
        assert shown in card
    assert f"{ACCOUNT['tokens_seen']:,}" in card
    assert f"in {100 * ACCOUNT['parse_share']:.0f} %" in card
    for package in ACCOUNT["corpus"]["packages"]:
        assert f"| {package['name']} | {package['version']} | {package['licence']} |" in card
    assert str(Path.home()) not in card


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x\n",
        "\tif a:\n\t\tb  =  1   # c\n\n\n\n        y\n",
        "x = 'é ☃ 🐟'\r\n  \n\x0c",
        " leading and trailing ",
        "0x1234567890 1_000_000.25e-3",
        "",
    ],
)
def test_tokenizer_gives_back_every_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_gives_back_this_file_and_cuts_at_line_ends(tokenizer):
    text = Path(__file__).read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    pieces = re.findall(r"\n+|[^\n]+", text)
    assert [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]] == ids


PROMPTS = (
    "class Stack:\n    def",
    "class Point:\n    def __init__(self, x, y):",
    "class LRUCache:\n    def __init__(self, maxsize):",
    "class Vector:\n    def __init__(self, x, y):\n",
    "import os\n\ndef read_lines(path):",
    "import argparse\n\ndef main():",
    "def is_prime(n):\n",
    "def read_json(path):\n",
)


def greedy(model, tokenizer, prompts, tokens):
    """Prompts with their completions, all in one batch."""
    ids = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    texts = tokenizer.batch_decode(out, skip_special_tokens=True)
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
    return texts


def whole_lines(text, prompt):
    """Up to the last line with which it parses; None if no line beyond the prompt is left."""
    whole = text[: text.rindex("\n") + 1]
    while whole.count("\n") > prompt.count("\n") + 1:
        if _parses(whole):
            return whole
        whole = whole[: whole.rindex("\n", 0, -1) + 1]
    return None


def test_greedy_completion_parses_up_to_its_last_whole_block(model, tokenizer):
    """Seven of the eight must; a completion that loops in its docstring, or in an open bracket, does not."""
    texts = greedy(model, tokenizer, PROMPTS, 48)
    found = [whole_lines(text, prompt) for text, prompt in zip(texts, PROMPTS, strict=True)]
    good = [whole for whole, prompt in zip(found, PROMPTS, strict=True) if whole and len(whole) > len(prompt) + 20]
    assert len(good) >= 7, texts


def test_a_loop_in_a_docstring_is_not_whole():
    assert whole_lines('class A:\n    """\n    a\n    a\n    a', "class A:") is None
    assert whole_lines("class A:\n    x = 1\n    y = (\n", "class A:") == "class A:\n    x = 1\n"


def test_the_demos_own_prompt_is_continued_without_repetition(model, tokenizer):
    from shoal.client.cli.demo import PROMPT

    text = whole_lines(greedy(model, tokenizer, [PROMPT], 96)[0], PROMPT)
    (book,) = ast.parse(text).body
    methods = [statement.name for statement in book.body if isinstance(statement, ast.FunctionDef)]
    assert len(methods) >= 6
    assert len(methods) == len(set(methods))


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


TINY = NetConfig(vocab=64, hidden=64, intermediate=64, blocks=2, heads=2, kv_heads=1, context=16)


def test_trained_state_gives_the_same_logits_in_transformers():
    net = DemoNet(TINY).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(64, (2, 16))
    with torch.no_grad():
        llama = as_llama(NetConfig(**{**TINY.__dict__, "context": 128}), net.state_dict(), 0, 1)
        assert torch.allclose(llama(ids).logits, net(ids), atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_and_runs_its_whole_schedule(optimizer):
    net = NetConfig(vocab=64, hidden=32, intermediate=32, blocks=1, heads=2, kv_heads=1, context=16)
    document = np.tile(np.arange(8, dtype=np.uint16), 60)
    recipe = Recipe(optimizer=optimizer, epochs=3, batch_windows=2, dropout=0.0, learning_rate=1e-2, average=0.5)
    found = fit(net, recipe, [document] * 2, [document], 100, "cpu")
    assert found.steps_run == found.steps_planned
    assert [bits for _, bits in found.curve] == sorted((bits for _, bits in found.curve), reverse=True)
    assert found.dev_bits < 0.1 * len(document) * math.log2(64) / 100


def test_early_stop_counts_evaluations_since_the_best():
    found = Fit(dev_bits=0.65006, step=40, curve=[(10, 0.84), (20, 0.71), (30, 0.67), (40, 0.6501)])
    assert not found.stuck()  # each was the best of its time
    found.curve += [(50, 0.66), (60, 0.66)]
    assert not found.stuck()
    found.curve += [(70, 0.651)]
    assert found.stuck()


def test_schedule_is_shortened_to_the_time_left():
    assert shortened(1000, 60, 1.0, math.inf) == 1000
    assert shortened(1000, 60, 1.0, 100.0) == 157
    assert shortened(100, 60, 1.0, 1000.0) == 100


@pytest.mark.parametrize("length", [1, 2, 16, 17, 18, 33, 100])
def test_each_target_is_scored_once(length):
    scored = []
    for start, first in windows_of(length, 16):
        scored += range(first, min(length, start + 17))
    assert scored == list(range(1, length))


def test_bits_of_a_uniform_guess():
    documents = [np.arange(40, dtype=np.uint16), np.arange(5, dtype=np.uint16)]
    assert bits_of(lambda ids: torch.zeros(*ids.shape, 64), documents, 16, "cpu") == pytest.approx(6 * (39 + 4))


FUNCTION = '''import os


class A:
    def f(self):
        """Doc."""
        a = 1
        b = 2
        return a

    x = 1
'''


def test_stub_ends_where_the_body_begins():
    (stub,) = stubs_of(FUNCTION)
    assert stub.head == '    def f(self):\n        """Doc."""\n'
    assert stub.prompt == "import os\n\n\nclass A:\n" + stub.head


@pytest.mark.parametrize(
    ("completion", "accepted"),
    [
        ("        return 1\n\n    x = (\n", True),
        ("        return (1\n        + 2\n", False),
        ("        return 1\n        y = (", True),
        ("        if a:\n    x = 1\n", False),
        ("    x = 1\n", False),
        ("", False),
    ],
)
def test_only_the_sampled_function_is_judged(completion, accepted):
    stub = Stub("", "    def f(self):\n", 4)
    assert parses(stub, completion) is accepted
    assert completed(stub, completion).startswith(stub.head)


def test_held_out_copies_leave_the_training_files():
    body = [f"value_{i} = compute({i}, {i * i})" for i in range(60)]
    names = {split: [] for split in ("train", "dev", "test")}
    for number in range(2000):
        source = corpora.Source(f"pkg/{number}.py", "")
        names[source.split].append(source.name)
    held = corpora.Source(names["test"][0], "\n".join(body))
    copy = corpora.Source(names["train"][0], "\n".join(["import os"] * 3 + body[:30]))
    other = corpora.Source(names["train"][1], "\n".join(f"def g{i}(): return {i}" for i in range(60)))
    twin = corpora.Source(names["train"][2], other.text + "\nx = 1\n")
    corpus = corpora.Corpus()
    assert corpora.separated(corpus, [copy, held, other, twin]) == [other, held]
    assert corpus.left_out["training file close to a held-out one"] == 1
    assert corpus.left_out["duplicate or near-duplicate"] == 1


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"License-Expression": "MIT OR Apache-2.0"}, "MIT OR Apache-2.0"),
        ({"License-Expression": "MPL-2.0 AND MIT"}, None),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, "BSD-3-Clause"),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)", "License": "GPL"}, None),
        ({"License": "Apache 2.0 License"}, "Apache-2.0"),
        ({}, None),
    ],
)
def test_only_permissive_licences_are_read(metadata, licence):
    from email.message import Message

    message = Message()
    for key, value in metadata.items():
        message[key] = value
    assert corpora.licence_of(message) == licence


def test_tables_and_generated_files_are_left_out():
    code = (
        "def f(a):\n    if a:\n        return 1\n    return 2\n\n\ndef g(b):\n    x = b\n    y = x\n    return f(y)\n"
    )
    assert corpora.fault_of("p/a.py", code) is None
    assert corpora.fault_of("p/a.py", "# Automatically generated, do not edit\n" + code)
    assert corpora.fault_of("p/_vendor/a.py", code)
    assert corpora.fault_of("p/a.py", "T = [\n" + "    1, 2, 3,\n" * 50 + "]\n")
    assert corpora.fault_of("p/a.py", code + "def (\n")
    assert (
        corpora.without_licence("#!/usr/bin/python\n# Copyright X\n# All rights reserved\n\n# A note.\nx = 1\n")
        == "# A note.\nx = 1\n"
    )
