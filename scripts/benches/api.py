"""`shoal api` under load: 32 streaming clients, what a token costs the gateway, 1,000 requests and its memory.

The demo model in fp32, two peers, one thread each, all on this machine. The gateway's own cost of a token is the
processor time of its process per token less that of a process which does the same through the Python client: both
embed, keep the sessions, apply the head and sample, which is the client's part whatever stands before it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import psutil
import torch
from _api_load import PROMPTS, TIMEOUT_S, Load, over_http, over_python, run_clients
from _loop import run
from _report import print_table, write_json
from _swarm import swarm_of, tell
from shoal.blocks.checkpoint import DEMO_PATH
from shoal.client.cli.children import Children
from shoal.client.local import load_model
from shoal.client.options import Model
from shoal.client.serving import Serving
from shoal.client.swarm import join_swarm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from shoal.client.local import ClientModel
    from shoal.dht.invite import Invite

SPANS = ("0:6", "6:12")
WARM_REQUESTS = 200  # before memory is looked at for the first time
SHORT_TOKENS = 8  # of the many requests


def percentile(figures: Sequence[float], share: float) -> float:
    """The figure below which `share` of them lie."""
    return sorted(figures)[min(len(figures) - 1, int(share * len(figures)))] if figures else 0.0


@asynccontextmanager
async def api_process(invite: Invite) -> AsyncIterator[tuple[str, psutil.Process]]:
    """A gateway with one thread for its computing; its URL and process."""
    with tempfile.TemporaryDirectory() as home:
        async with Children({"OMP_NUM_THREADS": "1", "HOME": home}) as children:
            own = ["--model", "demo", "--join", invite.encode(), "--port", "0", "--dtype", "float32", "--json"]
            child = await children.start("api", ["api", *own, "--max-in-flight", "128"])
            url = str((await child.event("event", "serving"))["url"])
            yield url, psutil.Process(child.pid)


def cpu_s(process: psutil.Process) -> float:
    """Processor time of a process, without its children (the network daemon runs beside it either way)."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def python_ms_per_token(invite: Invite, model: ClientModel, clients: int, seconds: float, tokens: int) -> float:
    """Processor time of a token through the Python client, as many answers at a time, in this process."""
    spec = model.ends.spec
    async with join_swarm(invite, Model(spec.n_blocks, spec.hidden_size, model.checkpoint.revision)) as swarm:
        await swarm.wait_covered(60)
        work = over_python(Serving(swarm, model), tokens)
        await run_clients(clients, lambda load: load.requests < clients, work)
        end, began = time.perf_counter() + seconds, time.process_time()
        load = await run_clients(clients, lambda _: time.perf_counter() < end, work)
        return (time.process_time() - began) / load.tokens * 1e3


def transformers_tokens_per_s(model: ClientModel, batch: int, tokens: int) -> float:
    """The same model in one process through transformers, `batch` texts at a time from first to last token."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float32).eval()
    tokenizer = model.tokenizer
    assert tokenizer is not None
    tokenizer.padding_side = "left"
    texts = [PROMPTS[n % len(PROMPTS)] for n in range(batch)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    how = {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.inference_mode():
        whole.generate(**inputs, **{**how, "max_new_tokens": 4, "min_new_tokens": 4})
        began = time.perf_counter()
        whole.generate(**inputs, **how)
    return batch * tokens / (time.perf_counter() - began)


async def measure(arguments: argparse.Namespace, model: ClientModel) -> dict[str, float]:
    """Everything that needs the swarm."""
    clients, seconds, tokens = arguments.clients, arguments.seconds, arguments.tokens
    figures: dict[str, float] = {}
    async with swarm_of(DEMO_PATH, SPANS, kv_tokens=65536) as invite:
        tell(f"{clients} at a time through the Python client ...")
        figures["python_client_ms_per_token"] = await python_ms_per_token(invite, model, clients, seconds / 4, tokens)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            api_process(invite) as (url, process),
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
        ):
            work = over_http(session, url, tokens)
            await run_clients(clients, lambda load: load.requests < clients, work)
            tell(f"{clients} streaming clients for {seconds:.0f} s ...")
            end, began = time.perf_counter() + seconds, cpu_s(process)
            load = await run_clients(clients, lambda _: time.perf_counter() < end, work)
            figures |= of_load(load)
            figures["api_ms_per_token"] = (cpu_s(process) - began) / max(1, load.tokens) * 1e3
            figures["gateway_ms_per_token"] = figures["api_ms_per_token"] - figures["python_client_ms_per_token"]
            tell(f"{arguments.requests} requests ...")
            figures |= await many_requests(arguments, session, url, process)
            figures["errors"] = len(load.errors) + figures.pop("late_errors")
            for line in dict.fromkeys(load.errors):
                tell(line)
    return figures


def of_load(load: Load) -> dict[str, float]:
    """What the clients saw."""
    return {
        "ttft_p50_s": percentile(load.ttft_s, 0.5),
        "ttft_p99_s": percentile(load.ttft_s, 0.99),
        "token_p50_s": percentile(load.gaps_s, 0.5),
        "token_p99_s": percentile(load.gaps_s, 0.99),
        "tokens_per_s": load.tokens_per_s,
        "requests": load.requests,
    }


async def many_requests(
    arguments: argparse.Namespace, session: aiohttp.ClientSession, url: str, process: psutil.Process
) -> dict[str, float]:
    """Short requests after those that warm it up; the memory that the gateway has more at their end."""
    work = over_http(session, url, SHORT_TOKENS)
    warm = await run_clients(arguments.clients, lambda load: load.requests < WARM_REQUESTS, work)
    before = process.memory_info().rss
    load = await run_clients(arguments.clients, lambda load: load.requests < arguments.requests, work)
    grown = (process.memory_info().rss - before) / 2**20
    for line in dict.fromkeys(warm.errors + load.errors):
        tell(line)
    late = len(warm.errors) + len(load.errors)
    return {"many_requests": load.requests, "late_errors": late, "memory_grown_mib": grown}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="scripts/bench api", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--clients", type=int, default=32, help="at a time (default 32)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load (default 60)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (default 64)")
    parser.add_argument("--requests", type=int, default=1000, help="short ones, for errors and memory (default 1000)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("demo", "float32")
    figures: dict[str, float] = {}

    async def go() -> None:
        figures.update(await measure(arguments, model))

    run(go())
    tell("the same model in one process through transformers ...")
    figures["transformers_tokens_per_s"] = transformers_tokens_per_s(model, 1, arguments.tokens)
    figures["transformers_batch_tokens_per_s"] = transformers_tokens_per_s(model, arguments.clients, arguments.tokens)
    print_table(["", ""], [[name, f"{value:.4g}"] for name, value in figures.items()])
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
