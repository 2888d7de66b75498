"""The Python API against three real peers: what it computes is what transformers computes whole in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from processes import MARK, Processes
from python_swarm import start_swarm, whole_model
from shoal.blocks.checkpoint import DEMO_PATH
from shoal.client import (
    AutoDistributedModel,
    AutoDistributedModelForCausalLM,
    AutoDistributedModelForSequenceClassification,
    InferenceSession,
    RemoteSequential,
    open_model,
)
from shoal.client.generation import GenerationOptions
from shoal.client.model.background import background
from shoal.dht.identity import Identity
from shoal.peer.errors import SessionClosed
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    StoppingCriteria,
    TextIteratorStreamer,
    set_seed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.client.model.heads import DistributedModelForCausalLM

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

PROMPT = "class Point:\n    def __init__(self, x, y):\n"
TEXTS = [PROMPT, "import", "def f(x):\n    return", "for i in range(10):\n    print(i)\n    if i", "x = 1\ny ="]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


@pytest.fixture(scope="module")
def invite(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> str:
    return start_swarm(processes, tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def whole() -> Iterator[torch.nn.Module]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # beside three peers, more of them wait for each other
    yield whole_model()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(invite: str) -> Iterator[DistributedModelForCausalLM]:
    with AutoDistributedModelForCausalLM.from_pretrained("demo", join=invite, dtype=torch.float32) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO_PATH, padding_side="left")


@pytest.fixture(scope="module")
def prompt(tokenizer) -> torch.Tensor:
    return tokenizer(PROMPT, return_tensors="pt").input_ids


def until_leases(model: DistributedModelForCausalLM, *, wanted: bool) -> None:
    """Wait until some peer announces leases, or none does."""
    end = time.monotonic() + 15
    while time.monotonic() < end:
        view = background().run(model.loaded.connection.swarm.refresh())
        if any(peer.queue for peer in view.peers) == wanted:
            return
        time.sleep(0.1)
    raise AssertionError([(peer.start, peer.stop, peer.queue) for peer in view.peers])


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.9, "top_p": 0.95},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    ],
    ids=["greedy", "sampling", "beams"],
)
def test_generate_finds_the_tokens_of_transformers(model, whole, prompt, how) -> None:
    found = []
    for each in (whole, model):
        set_seed(11)
        found.append(each.generate(prompt, max_new_tokens=24, **how))
    assert torch.equal(*found)


def test_a_batch_of_five_with_left_padding(model, whole, tokenizer) -> None:
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    expected = whole.generate(**batch, max_new_tokens=16, do_sample=False)
    assert torch.equal(model.generate(**batch, max_new_tokens=16, do_sample=False), expected)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        error = (model(**inputs).logits - whole(**inputs).logits).abs()
    assert error[inputs["attention_mask"].bool()].max() < 1e-3


def test_streamer_and_stopping_criteria(model, whole, prompt, tokenizer) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    how = {"max_new_tokens": 20, "do_sample": False}
    thread = threading.Thread(target=model.generate, args=(prompt,), kwargs={**how, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    expected = whole.generate(prompt, **how)
    assert "".join(pieces) == tokenizer.decode(expected[0, prompt.shape[1] :])
    assert len(pieces) > 5

    class Enough(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return torch.full((len(input_ids),), input_ids.shape[1] >= prompt.shape[1] + 3)

    assert torch.equal(model.generate(prompt, stopping_criteria=[Enough()], **how), expected[:, : prompt.shape[1] + 3])


def test_a_session_over_several_calls(model, whole, prompt) -> None:
    expected = whole.generate(prompt, max_new_tokens=12, do_sample=False)
    with model.inference_session(max_length=64) as session:
        assert isinstance(session, InferenceSession)
        first = model.generate(prompt, max_new_tokens=5, do_sample=False)
        second = model.generate(None, max_new_tokens=7, do_sample=False)
        assert torch.equal(torch.cat([first, second], dim=1), expected)
        assert session.stats[0].steps <= 1 + 12
        session.position = prompt.shape[1]
        assert torch.equal(model.generate(max_new_tokens=12, do_sample=False), expected[:, prompt.shape[1] :])
        hops = session.routes[0]
        assert [hops[0].start, hops[-1].stop] == [0, 12]


def test_a_prompt_that_peers_know_from_before_is_not_run_again(model, whole, tokenizer) -> None:
    ids = tokenizer(PROMPT * 8, return_tensors="pt").input_ids
    expected = whole.generate(ids, max_new_tokens=8, do_sample=False)
    known = []
    for _ in range(4):  # from the second on, unless another route is the better one by far
        with model.inference_session(max_length=200) as session:
            assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)
            known.append(session.stats[0].cached_tokens)
    assert known[0] == 0
    assert max(known) >= 64


def test_blocks_alone_and_sub_ranges(invite, model, whole, prompt) -> None:
    with torch.no_grad():
        states = whole(prompt, output_hidden_states=True).hidden_states
    blocks = RemoteSequential.from_pretrained("demo", join=invite, dtype="float32", start_block=3, end_block=9)
    try:
        assert len(blocks) == 6
        assert (blocks(states[3]) - states[9]).abs().max() < 1e-3
        with blocks[1:4].inference_session(max_length=32) as session:
            parts = [session.step(states[4][:, :2]), *(session.step(states[4][:, at : at + 1]) for at in range(2, 6))]
            session.position = 4
            parts[-2:] = [session.step(states[4][:, 4:6])]
        assert (torch.cat(parts, dim=1) - states[7][:, :6]).abs().max() < 1e-3
    finally:
        blocks.close()
    assert (model.transformer.h[5](states[5]) - states[6]).abs().max() < 1e-3


def test_without_a_head(invite, whole, prompt) -> None:
    with AutoDistributedModel.from_pretrained(join=invite, torch_dtype="float32") as model, torch.no_grad():
        found = model(prompt).last_hidden_state
        assert (found - whole.model(prompt).last_hidden_state).abs().max() < 1e-3


def test_sequence_classification(tmp_path) -> None:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_labels=3, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    whole = LlamaForSequenceClassification(config).eval()
    whole.save_pretrained(tmp_path / "model")
    batch = torch.tensor([[0, 0, 5, 6, 7], [11, 12, 13, 14, 15]])
    given = {"input_ids": batch, "attention_mask": (batch > 0).long()}
    with Processes() as running, torch.no_grad():
        join = start_swarm(running, tmp_path, str(tmp_path / "model"), ("0:1", "1:2"))
        with AutoDistributedModelForSequenceClassification.from_pretrained(join=join, dtype="float32") as model:
            found = model(**given).logits
    assert found.shape == (2, 3)
    assert (found - whole(**given).logits.detach()).abs().max() < 1e-4


def test_closing_a_model_ends_what_goes_on_in_another_thread(invite, prompt) -> None:
    model = AutoDistributedModelForCausalLM.from_pretrained("demo", join=invite, dtype="float32")
    begun = threading.Event()

    class Begun(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            begun.set()
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(model.generate, prompt, max_new_tokens=1500, stopping_criteria=[Begun()], eos_token_id=None)
        assert begun.wait(20)
        model.close()
        with pytest.raises(SessionClosed):
            long.result(20)
    with pytest.raises(SessionClosed, match="The model was closed"):
        model(prompt)


def test_many_sessions_in_threads(model, whole, tokenizer) -> None:
    prompts = [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda ids: model.generate(ids, max_new_tokens=12, do_sample=False), prompts))
    for ids, tokens in zip(prompts, found, strict=True):
        assert torch.equal(tokens, whole.generate(ids, max_new_tokens=12, do_sample=False))


async def test_inside_a_running_loop_as_in_a_notebook(model, whole, prompt) -> None:
    found = model.generate(prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(found, whole.generate(prompt, max_new_tokens=6, do_sample=False))
    both = await asyncio.gather(
        *(asyncio.to_thread(model.generate, prompt, max_new_tokens=6, do_sample=False) for _ in range(2))
    )
    assert all(torch.equal(found, each) for each in both)


async def test_the_async_api(invite, whole, prompt) -> None:
    async with open_model("demo", join=invite, dtype="float32") as model:
        completion = await model.complete(PROMPT, GenerationOptions(8))
        again = [piece.token_id async for piece in model.generate(prompt[0].tolist(), GenerationOptions(8))]
    expected = whole.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :].tolist()
    assert completion.token_ids == again == expected


def test_initial_peers_in_place_of_an_invite(invite, whole, prompt) -> None:
    from shoal.dht.invite import Invite

    known = Invite.parse(invite)
    with AutoDistributedModelForCausalLM.from_pretrained("demo", initial_peers=known.peers, dtype="float32") as model:
        assert (model(prompt).logits - whole(prompt).logits).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("kind", "options", "error", "says"),
    [
        (AutoDistributedModelForCausalLM, {}, ValueError, "Say which swarm"),
        (AutoDistributedModelForCausalLM, {"join": "word"}, Exception, "not an invite"),
        (AutoDistributedModelForCausalLM, {"joined": "x"}, TypeError, "Did you mean join"),
        (AutoDistributedModelForCausalLM, {"join": None, "initial_peers": ["x"]}, Exception, "not a peer's address"),
        (AutoDistributedModelForCausalLM, {"dtype": "float8"}, ValueError, "must be float32"),
        (AutoDistributedModelForCausalLM, {"codec": "zip"}, ValueError, "must be one of"),
        (AutoDistributedModelForCausalLM, {"tuning_mode": "ptune"}, NotImplementedError, "not there yet"),
        (AutoDistributedModelForCausalLM, {"revision": "0" * 16}, Exception, "wanted is 0000"),
        (AutoDistributedModelForSequenceClassification, {}, Exception, "no score head"),
        (RemoteSequential, {"start_block": 9, "end_block": 4}, ValueError, "no range of blocks"),
    ],
)
def test_wrong_arguments_are_one_clear_error(invite, kind, options, error, says) -> None:
    join = {} if set(options) & {"join", "joined", "initial_peers"} or says == "Say which swarm" else {"join": invite}
    with pytest.raises(error, match=says) as caught:
        kind.from_pretrained("demo", **join, **options)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, BaseExceptionGroup)


SCRIPT = """
import sys, torch
from shoal.client import AutoDistributedModelForCausalLM
model = AutoDistributedModelForCausalLM.from_pretrained("demo", join=sys.argv[1], dtype="float32")
with model.inference_session(max_length=1500):
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)
    print("begun", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "go on":
        print("on", flush=True)
        model.generate(max_new_tokens=1400, min_new_tokens=1400)
    session = model.inference_session(max_length=50).__enter__()  # left open
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)
"""


@pytest.mark.parametrize("way", ["go on", "end"])
def test_ctrl_c_and_an_end_without_close_free_the_leases(invite, model, processes, way) -> None:
    environment = {**os.environ, MARK: processes.mark, "OMP_NUM_THREADS": "1"}
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, invite, way], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert script.stdout.readline() == "begun\n"
        until_leases(model, wanted=True)
        script.stdin.write("\n")
        script.stdin.flush()
        if way == "go on":
            assert script.stdout.readline() == "on\n"
            time.sleep(0.3)
            script.send_signal(signal.SIGINT)
        _, errors = script.communicate(timeout=30)
    finally:
        script.kill()
    assert ("KeyboardInterrupt" in errors) == (way == "go on"), errors
    assert (script.returncode == 0) == (way == "end"), errors
    assert "Exception ignored" not in errors
    until_leases(model, wanted=False)


def test_a_peer_that_dies_in_the_midst_changes_no_token(model, whole, prompt, processes) -> None:
    expected = whole.generate(prompt, max_new_tokens=40, do_sample=False)
    peers = {}
    for running in processes.running[1:]:
        key = Path(running.argv[running.argv.index("--identity") + 1])
        peers[Identity.load_or_create(key).peer_id] = running

    class Kill(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            if input_ids.shape[1] == prompt.shape[1] + 10:
                peers[session.routes[0][-1].peer_id].process.kill()
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with model.inference_session(max_length=64) as session:
        found = model.generate(prompt, max_new_tokens=40, do_sample=False, stopping_criteria=[Kill()])
        assert session.stats[0].repairs >= 1
    assert torch.equal(found, expected)
