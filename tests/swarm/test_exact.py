"""Four peers, each a process, unquantized in fp32: they compute what transformers computes whole in one process."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from processes import Processes
from shoal.blocks.checkpoint import DEMO_PATH, resolve
from shoal.blocks.ends import load_ends
from shoal.blocks.spec import spec_of
from shoal.client.cli.main import main
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import join_swarm
from shoal.dht.invite import Invite
from shoal.peer.wire import Want
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

SPANS = ("0:4", "3:7", "6:10", "8:12")
PROMPT = "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n"
TOKENS = 64
SOURCE = Path(__file__).read_text(encoding="utf-8")[:1500]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


@pytest.fixture(scope="module")
def invite(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A swarm of four peers that covers the demo model."""
    keys = tmp_path_factory.mktemp("keys")
    node = processes.start("bootstrap", "--json", "--identity", str(keys / "bootstrap"))
    token: str = node.event("invite")["invite"]
    options = ["--quant", "none", "--dtype", "float32", "--device", "cpu", "--json"]
    peers = []
    for n, span in enumerate(SPANS):
        own = ["--blocks", span, "--identity", str(keys / f"peer-{n}")]
        peers.append(processes.start("peer", "--model", "demo", "--join", token, *own, *options))
    for peer in peers:
        peer.event("event", "online")
    return token


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float32).eval()


def test_64_greedy_tokens_are_those_of_transformers(processes: Processes, invite: str, whole: torch.nn.Module) -> None:
    done = processes.run(
        "generate", PROMPT, "--model", "demo", "--join", invite, "--max-new-tokens", str(TOKENS), "--dtype", "float32",
        "--wait", "30", "--background", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_PATH)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    expected = whole.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
    )[0, ids.shape[1] :].tolist()
    assert out["prompt_token_ids"] == ids[0].tolist()
    assert out["token_ids"] == expected
    assert out["cached_tokens"] == 0
    assert len(expected) == TOKENS
    assert out["text"] == tokenizer.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert len(out["route"]) >= 3
    assert [hop["blocks"][0] for hop in out["route"]] == [0, *[hop["blocks"][1] for hop in out["route"][:-1]]]


# How hidden states travel, and by how much the logits may then differ: as they are, not but for the order of sums.
@pytest.mark.parametrize(
    ("codec", "at_least", "at_most"), [(None, 0.0, 1e-4), ("bfloat16", 1e-3, 0.5), ("int8", 1e-3, 0.5)]
)
async def test_logits_are_those_of_transformers(
    invite: str, whole: torch.nn.Module, codec: str | None, at_least: float, at_most: float
) -> None:
    checkpoint = resolve("demo")
    spec, ends = spec_of(checkpoint), load_ends(checkpoint, dtype=torch.float32)
    ids = torch.tensor(AutoTokenizer.from_pretrained(DEMO_PATH)(SOURCE)["input_ids"])
    with torch.inference_mode():
        expected = whole(ids[None]).logits[0]
    model = Model(spec.n_blocks, spec.hidden_size, checkpoint.revision)
    async with join_swarm(Invite.parse(invite), model) as swarm:
        await swarm.wait_covered(30.0)
        async with swarm.session(SessionOptions(max_tokens=len(ids), codec=codec, chunk_tokens=64)) as session:
            hidden = ends.embed(ids, torch.arange(len(ids)))
            prompt = await session.step(hidden[:-5], Want.ALL)
            steps = [await session.step(hidden[n : n + 1], Want.ALL) for n in range(len(ids) - 5, len(ids))]
            error = (ends.logits(torch.cat([prompt, *steps])) - expected).abs()
            assert at_least <= float(error.max()) <= at_most, (float(error.max()), float(error.mean()))


@pytest.fixture
def shoal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """Runs a command in this process, so that torch is loaded once; what it wrote on stdout and stderr."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def run(*argv: str) -> tuple[str, str]:
        status = main(list(argv))
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out, said.err

    return run


def test_the_prompt_may_come_from_stdin_and_text_streams_to_stdout(
    shoal: Callable[..., tuple[str, str]], invite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    out, err = shoal("generate", "-", "--join", invite, "--max-new-tokens", "8", "--dtype", "float32")
    assert out.strip()
    assert "tokens/s" in err
    assert "tokens/s" not in out


def test_a_seed_draws_the_same_tokens_through_the_swarm(shoal: Callable[..., tuple[str, str]], invite: str) -> None:
    def draw(seed: str) -> list[int]:
        out, _ = shoal(
            "generate", "--token-ids", "5,6,7", "--join", invite, "--max-new-tokens", "12", "--dtype", "float32",
            "--temperature", "1.2", "--top-p", "0.95", "--seed", seed, "--json",
        )  # fmt: skip
        tokens: list[int] = json.loads(out)["token_ids"]
        return tokens

    assert draw("7") == draw("7") != draw("8")


def test_status_shows_the_swarm(shoal: Callable[..., tuple[str, str]], invite: str) -> None:
    out = json.loads(shoal("status", "--join", invite, "--model", "demo", "--json")[0])
    assert sorted(peer["blocks"] for peer in out["peers"]) == [[0, 4], [3, 7], [6, 10], [8, 12]]
    assert [len(holders) for holders in out["blocks"]] == [1, 1, 1, 2, 1, 1, 2, 1, 2, 2, 1, 1]
    assert out["missing"] == []
    assert all(peer["decode_s_per_block"] > 0 for peer in out["peers"])
    plain, _ = shoal("status", "--join", invite)
    assert "Every block is held" in plain
    assert "\x1b" not in plain
