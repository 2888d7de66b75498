"""transformers beside the span in the engine's benchmark: eager decode steps, and its continuous batching."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from _engine_models import Bench, Figures, Skipped, release, tell
from _engine_time import timed

BLOCKS = 8
CONTEXT = 1024
BATCHING_TIMEOUT_S = 75.0


def build(bench: Bench, blocks: int, attention: str) -> Any:
    """A Llama of transformers with random weights on the device; its vocabulary has 1,024 entries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    config = LlamaConfig(**{k: v for k, v in bench.shape.config(blocks).items() if k != "model_type"})
    config._attn_implementation = attention
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with bench.device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def eager(bench: Bench) -> Figures:
    """Milliseconds a block of a decode step at batch 1, eager, with a DynamicCache, without embedding and head."""
    from transformers import DynamicCache

    model = build(bench, bench.size(BLOCKS, 2), "sdpa")
    blocks, cache = model.config.num_hidden_layers, DynamicCache(config=model.config)
    hidden = torch.randn(1, bench.size(CONTEXT, 32), model.config.hidden_size, device=bench.device, dtype=model.dtype)

    @torch.inference_mode()
    def run(states: torch.Tensor) -> torch.Tensor:
        return model.model(inputs_embeds=states, past_key_values=cache, use_cache=True).last_hidden_state

    run(hidden)
    result = timed(lambda: run(hidden[:, :1]), bench.device, count=bench.size(24, 2))
    return {"hf_eager_ms_per_block": result.wall_ms / blocks, "hf_eager_device_ms_per_block": result.device_ms / blocks}


def batching(bench: Bench) -> Figures:
    """Generated tokens a second of 64 requests, 512 prompt and 128 new tokens, by transformers' continuous batching.

    The second of two runs counts, or the first where no second one ends in time. On a thread, since a run that hangs
    must not take the other parts with it.
    """
    if bench.device.type != "cuda":
        raise Skipped("its continuous batching is measured on a CUDA device")
    found: list[float] = []
    errors: list[BaseException] = []
    thread = threading.Thread(target=_batching, args=(bench, found, errors), daemon=True)
    thread.start()
    thread.join(BATCHING_TIMEOUT_S)
    if not found:
        raise errors[0] if errors else TimeoutError(f"no run ended within {BATCHING_TIMEOUT_S:.0f} s")
    release(bench.device)
    return {"hf_cb_tokens_per_s": max(found)}


def _batching(bench: Bench, found: list[float], errors: list[BaseException]) -> None:
    try:
        model = build(bench, bench.size(BLOCKS, 2), "paged|sdpa")
        for number in range(2):
            tell(f"  transformers' continuous batching, run {number + 1} ...")
            found.append(_batched_rate(bench, model))
    except Exception as error:  # noqa: BLE001 - top of a thread: whoever waits for it raises it
        errors.append(error)


def _batched_rate(bench: Bench, model: Any) -> float:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    requests, prompt, new = bench.size(64, 4), bench.size(512, 16), bench.size(128, 4)
    generation = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching_config = ContinuousBatchingConfig(
        max_memory_percent=0.4, allow_block_sharing=False, max_requests_per_batch=requests
    )
    drawn = torch.randint(3, 1024, (requests, prompt), generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    answers = model.generate_batch(
        drawn.tolist(), generation_config=generation, continuous_batching_config=batching_config, warmup=False
    )
    seconds = time.perf_counter() - started
    made = sum(len(answer.generated_tokens) for answer in answers.values())
    if made < requests * new:
        raise RuntimeError(f"transformers made {made} of {requests * new} tokens")
    return made / seconds
