#!/usr/bin/env python3
"""Makes the demo model in three steps: `collect` the corpus (anywhere), `train` on it (a GPU), `card` to write it up.

    scripts/train_demo_model.py collect --work .carry
    scripts/train_demo_model.py train --work .carry --out blocks/demo_model
    scripts/train_demo_model.py card --work .carry --out blocks/demo_model

`measure` says what the model that is there comes to on the held-out files of `collect`, and writes nothing.

Owns the order of the steps and the model's folder; each step's substance is in the demo_model_*.py beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import demo_model_corpus as corpora
from demo_model_tokens import EOS, PAD, save_tokenizer, train_tokenizer

SHARD_BYTES = "12MB"
SAMPLED_FUNCTIONS = 100
SAMPLE_TOKENS = 256
SAMPLE_TEMPERATURE = 0.2
CARD_TOKENS = 96


def collect(args: argparse.Namespace) -> None:
    """Writes ``corpus.jsonl.xz`` and ``tokenizer.json``, the tokenizer made from the training files alone."""
    args.work.mkdir(parents=True, exist_ok=True)
    corpus = corpora.collect()
    manifest = corpora.save(corpus, args.work / "corpus.jsonl.xz")
    tokenizer = train_tokenizer((source.text for source in corpus.sources if source.split == "train"), args.vocab)
    tokenizer.save(str(args.work / "tokenizer.json"))
    print(json.dumps({key: manifest[key] for key in ("files", "bytes", "left_out")}))


def encoded(tokenizer: Any, texts: list[str]) -> list[Any]:
    """uint16 ids of each text between <bos> and <eos>."""
    import numpy as np

    eos = tokenizer.token_to_id(EOS)
    ids = []
    for first in range(0, len(texts), 256):
        found = tokenizer.encode_batch_fast(texts[first : first + 256])
        ids += [np.array([*encoding.ids, eos], dtype=np.uint16) for encoding in found]
    return ids


def train(args: argparse.Namespace) -> None:
    """Trains, saves the model's folder and measures what was saved."""
    from demo_model_fit import Recipe, fit
    from demo_model_net import NetConfig, as_llama
    from tokenizers import Tokenizer

    begun = time.monotonic()
    manifest, sources = corpora.load(args.work / "corpus.jsonl.xz")
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    texts = {split: [s.text for s in sources if s.split == split] for split in ("train", "dev", "test")}
    train_ids, dev_ids = encoded(tokenizer, texts["train"]), encoded(tokenizer, texts["dev"])
    sys.stderr.write(f"{sum(map(len, train_ids))} training tokens after {time.monotonic() - begun:.0f} s\n")
    config = NetConfig(vocab=tokenizer.get_vocab_size(), **json.loads(args.sizes))
    names = {field.name for field in dataclasses.fields(Recipe)} & vars(args).keys()
    recipe = Recipe(**{name: getattr(args, name) for name in names if getattr(args, name) is not None})
    dev_bytes = sum(len(text.encode()) for text in texts["dev"])
    result = fit(config, recipe, train_ids, dev_ids, dev_bytes, args.device)
    if args.trial:
        print(
            json.dumps(dataclasses.asdict(recipe) | {"dev_bits_per_byte": result.dev_bits, "steps": result.steps_run})
        )
        return
    bos, eos = tokenizer.encode("").ids[0], int(tokenizer.token_to_id(EOS) or 0)
    llama = as_llama(config, result.state, bos, eos)
    save(llama, tokenizer, args.out, config.context)
    per_step = recipe.batch_windows * (config.context + 1)
    account = {
        "parameters": sum(p.numel() for p in llama.parameters()),
        "recipe": {key: value for key, value in dataclasses.asdict(recipe).items() if value != float("inf")},
        "training_tokens": sum(map(len, train_ids)),
        "tokens_seen": result.step * per_step,
        "epochs_seen": round(result.step * per_step / sum(map(len, train_ids)), 2),
        "best_step": result.step,
        "steps_run": result.steps_run,
        "steps_planned": result.steps_planned,
        "training_s": round(result.seconds, 1),
        "dev_curve": result.curve,
        **measured(args, tokenizer, sources),
        "corpus": manifest,
    }
    (args.out / "training.json").write_text(json.dumps(account, indent=1) + "\n")
    print(json.dumps({key: account[key] for key in account if key not in ("corpus", "dev_curve")}))


def save(llama: Any, tokenizer: Any, folder: Path, context: int) -> None:
    """Writes the transformers layout in bfloat16; generation is greedy unless asked otherwise."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    llama.generation_config.pad_token_id = tokenizer.token_to_id(PAD)
    llama.config.pad_token_id = llama.generation_config.pad_token_id
    llama.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD_BYTES)
    save_tokenizer(tokenizer, folder, context)


def measured(args: argparse.Namespace, tokenizer: Any, sources: list[corpora.Source]) -> dict[str, Any]:
    """Figures of the saved folder, read back by transformers, on the held-out files."""
    import torch
    from transformers import AutoTokenizer

    model = saved(args)
    figures = {"device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu"}
    reader = AutoTokenizer.from_pretrained(args.out)
    figures |= held_out(model, tokenizer, sources, ("dev", "test"))
    return figures | parse_share(model, reader, [s.text for s in sources if s.split == "test"], args.out)


def measure(args: argparse.Namespace) -> None:
    """Prints bits per byte of the model that is there, on the held-out files of ``corpus.jsonl.xz``: a million bytes
    take minutes on a CPU."""
    from tokenizers import Tokenizer

    _, sources = corpora.load(args.work / "corpus.jsonl.xz")
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    print(json.dumps(held_out(saved(args), tokenizer, sources, (args.split,))))


def saved(args: argparse.Namespace) -> Any:
    """The model of the folder, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32).to(args.device).eval()


def held_out(model: Any, tokenizer: Any, sources: list[corpora.Source], splits: tuple[str, ...]) -> dict[str, Any]:
    """By split, and by what of it is the standard library's: bits per byte, and what xz needs."""
    from demo_model_measure import bits_of, xz_bits_per_byte

    figures: dict[str, Any] = {}
    for split in splits:
        for scope, prefix in ((split, ""), (f"{split}_cpython", "cpython/")):
            texts = [s.text for s in sources if s.split == split and s.name.startswith(prefix)]
            size = sum(len(text.encode()) for text in texts)
            if not size:
                continue
            bits = bits_of(
                lambda ids: model(ids).logits,
                encoded(tokenizer, texts),
                model.config.max_position_embeddings,
                str(model.device),
            )
            xz = xz_bits_per_byte(texts)
            figures[scope] = {"files": len(texts), "bytes": size, "bits_per_byte": round(bits / size, 4)}
            figures[scope] |= {f"xz_{name}": round(value, 4) for name, value in xz.items()}
    return figures


def parse_share(model: Any, tokenizer: Any, texts: list[str], folder: Path) -> dict[str, Any]:
    """Share of functions of the test files whose sampled bodies parse; the samples go to a file beside the folder."""
    import torch
    from demo_model_measure import completed, parses, sample, stubs_of

    stubs = sorted(
        (stub for text in texts for stub in stubs_of(text)), key=lambda s: hashlib.sha256(s.prompt.encode()).digest()
    )
    stubs = stubs[:SAMPLED_FUNCTIONS]
    torch.manual_seed(0)
    completions: list[str] = []
    for first in range(0, len(stubs), 50):
        prompts = [stub.prompt for stub in stubs[first : first + 50]]
        completions += sample(model, tokenizer, prompts, SAMPLE_TOKENS, SAMPLE_TEMPERATURE)
    verdicts = [parses(stub, text) for stub, text in zip(stubs, completions, strict=True)]
    shown = [
        f"# parses: {ok}\n{completed(stub, text)}" for ok, stub, text in zip(verdicts, stubs, completions, strict=True)
    ]
    folder.with_name(folder.name + "-samples.txt").write_text("\n".join(shown))
    return {"sampled_functions": len(stubs), "parse_share": round(sum(verdicts) / max(1, len(stubs)), 4)}


def card(args: argparse.Namespace) -> None:
    """Adds greedy completions and the committed sample's figure to ``training.json``; writes ``README.md`` from it."""
    import torch
    from demo_model_card import PROMPTS, render
    from demo_model_measure import bits_of, sample
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    account = json.loads((args.out / "training.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    account["greedy"] = {prompt: sample(model, tokenizer, [prompt], CARD_TOKENS, 0.0)[0] for prompt in PROMPTS}
    texts = [json.loads(line)["text"] for line in args.sample.read_text(encoding="utf-8").splitlines()]
    ids = encoded(Tokenizer.from_file(str(args.out / "tokenizer.json")), texts)
    bits = bits_of(lambda batch: model(batch).logits, ids, model.config.max_position_embeddings, "cpu")
    size = sum(len(text.encode()) for text in texts)
    account["vocab"], account["shards"] = model.config.vocab_size, len(list(args.out.glob("model-*.safetensors")))
    account["sample"] = {
        "file": args.sample.name,
        "bytes": size,
        "bits_per_byte": round(bits / size, 4),
        "tolerance": 0.005,
    }
    (args.out / "training.json").write_text(json.dumps(account, indent=1) + "\n")
    (args.out / "README.md").write_text(render(account))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = top.add_subparsers(required=True)
    for name, function in (("collect", collect), ("train", train), ("card", card), ("measure", measure)):
        step = steps.add_parser(name, help=function.__doc__)
        step.set_defaults(run=function)
        step.add_argument("--work", type=Path, default=Path(".carry"), help="folder of the corpus")
        step.add_argument("--out", type=Path, default=Path("blocks/demo_model"), help="the model's folder")
        if name == "collect":
            step.add_argument("--vocab", type=int, default=8192)
        if name == "card":
            step.add_argument("--sample", type=Path, default=Path("tests/data/held_out.jsonl"), help="held-out files")
        if name in ("train", "measure"):
            default = "cuda" if name == "train" else "cpu"
            step.add_argument("--device", default=default, choices=("cuda", "cpu"))
        if name == "measure":
            step.add_argument("--split", default="test", choices=("dev", "test"), help="which files (default test)")
        if name == "train":
            step.add_argument("--sizes", default="{}", help="JSON of NetConfig fields that differ from its defaults")
            step.add_argument("--trial", action="store_true", help="only say what the dev files come to; write nothing")
            step.add_argument("--optimizer", choices=("adamw", "muon"))
            for option in ("epochs", "learning-rate", "weight-decay", "dropout", "average", "limit-s"):
                step.add_argument(f"--{option}", type=float)
            for option in ("batch-windows", "seed"):
                step.add_argument(f"--{option}", type=int)
    return top


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.run(arguments)
