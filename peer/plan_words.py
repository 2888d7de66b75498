"""A plan in words and as JSON; finds nothing out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from shoal.blocks.devices import check_device, device_memory
from shoal.peer.fit import size
from shoal.peer.plan import assumptions, device_name, ends_bytes
from shoal.routing.planner import Route

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.peer.plan import Held, Help, Swarmed
    from shoal.peer.plan_cli import Plan


def as_json(plan: Plan) -> dict[str, object]:
    """What `--json` prints. Bytes and seconds; what is not known is null."""
    spec, memory = plan.shape.spec, device_memory(check_device(plan.terms.device))
    return {
        "model": {
            "name": plan.shape.name, "revision": plan.shape.revision, "blocks": spec.n_blocks,
            "hidden_size": spec.hidden_size, "context": spec.max_position,
            "ends_bytes": ends_bytes(plan.shape, plan.terms),
        },
        "machine": {"device": plan.terms.device, "free_bytes": memory.free, "total_bytes": memory.total},
        "runs_here": any(held.blocks >= spec.n_blocks for held in plan.held),
        "here": [_held_json(held, spec.n_blocks) for held in plan.held],
        "runs_in_swarm": None if plan.swarmed is None else isinstance(plan.swarmed.route, Route),
        "swarm": None if plan.swarmed is None else _swarm_json(plan.swarmed),
        "with_this_machine": [_help_json(one) for one in plan.swarmed.helps] if plan.swarmed else [],
        "measured": measured(plan),
        "assumed": assumptions(plan.shape, plan.held, plan.swarmed, plan.work),
    }  # fmt: skip


def words(plan: Plan) -> str:
    """The plan for people."""
    return "\n".join([*_model(plan), "", *_here(plan), *_swarm(plan), "", *_basis(plan), ""])


def measured(plan: Plan) -> list[str]:
    """What the figures stand on that was measured now, a sentence each."""
    said = [f"the memory of {device_name(plan.terms.device)} that is free now"]
    if timed := [held.quantization for held in plan.held if held.speed]:
        said.append(f"one block with made-up weights on {device_name(plan.terms.device)}, as {', '.join(timed)}")
    if plan.swarmed is not None and plan.swarmed.measured:
        said.append(f"who serves what, and the round trips to {plan.swarmed.measured} of the peers")
    return said


def _held_json(held: Held, n_blocks: int) -> dict[str, object]:
    token_s = held.token_s(n_blocks)
    return {
        "quantization": held.quantization, "weights_bytes": held.weights_bytes, "kv_token_bytes": held.kv_token_bytes,
        "fits_blocks": held.blocks, "kv_tokens": held.room.kv_tokens if held.room else 0, "why": held.why,
        "decode_s_per_block": held.speed.decode_s if held.speed else None,
        "prefill_s_per_token_and_block": held.speed.prefill_s if held.speed else None,
        "tokens_per_s": 1 / token_s if token_s else None,
    }  # fmt: skip


def _swarm_json(swarmed: Swarmed) -> dict[str, object]:
    route = swarmed.route
    found: dict[str, object] = {"peers": len(swarmed.view.peers), "missing": swarmed.view.missing()}
    if isinstance(route, Route):
        hops = [{"peer": hop.peer_id, "blocks": [hop.start, hop.stop]} for hop in route.hops]
        return {**found, "route": hops, "token_s": route.token_s, "prefill_s": route.prefill_s,
                "tokens_per_s": 1 / route.token_s, "reason": None}  # fmt: skip
    return {**found, "route": None, "token_s": None, "prefill_s": None, "tokens_per_s": None, "reason": route.reason}


def _help_json(one: Help) -> dict[str, object]:
    return {"quantization": one.quantization, "blocks": [one.start, one.stop], "why": one.why, **asdict(one.gain)}


def _model(plan: Plan) -> Iterator[str]:
    spec = plan.shape.spec
    yield (
        f"{plan.shape.name}: {spec.n_blocks} blocks of width {spec.hidden_size}, a context of {spec.max_position} "
        f"tokens; a client holds {size(ends_bytes(plan.shape, plan.terms))} of it itself"
    )


def _here(plan: Plan) -> Iterator[str]:
    spec, memory = plan.shape.spec, device_memory(check_device(plan.terms.device))
    yield (f"This machine: {device_name(plan.terms.device)}, {size(memory.free)} of {size(memory.total)} free")
    yield f"  {'weights':<8} {'all blocks':>10}  {'fit here':<12} {'KV here':>13}  {'alone':<16} one block"
    for held in plan.held:
        yield "  " + _row(held, spec.n_blocks)
    tokens = plan.work.prompt_tokens + plan.work.new_tokens
    kv = plan.held[0].kv_token_bytes
    yield f"  KV of all blocks: {size(kv)} a token, {size(kv * tokens)} for a conversation of {tokens} tokens"
    yield f"  {_verdict(plan)}"


def _row(held: Held, n_blocks: int) -> str:
    fits = "all" if held.blocks >= n_blocks else f"{held.blocks} of {n_blocks}"
    room = f"{held.room.kv_tokens} tokens" if held.room else "-"
    token_s = held.token_s(n_blocks)
    alone = f"{1 / token_s:.3g} tokens/s" if token_s else "-" if held.blocks < n_blocks else "not measured"
    block = f"{1e3 * held.speed.decode_s:.3g} ms" if held.speed else "-"
    weights = size(held.weights_bytes)
    return f"{held.quantization:<8} {weights:>10}  {fits:<12} {room:>13}  {alone:<16} {block}"


def _verdict(plan: Plan) -> str:
    n_blocks = plan.shape.spec.n_blocks
    whole = [held for held in plan.held if held.blocks >= n_blocks]
    if not whole:
        most = max(plan.held, key=lambda held: held.blocks)
        if not most.blocks:
            return f"It does not run here, not even one block: {most.why}"
        return f"It does not run here alone; {most.blocks} of {n_blocks} blocks fit as {most.quantization}: serve them"
    best = min(whole, key=lambda held: held.token_s(n_blocks) or float("inf"))
    token_s = best.token_s(n_blocks)
    speed = f", at about {1 / token_s:.3g} tokens/s" if token_s else ""
    return f"It runs here alone with its weights as {best.quantization}{speed}"


def _swarm(plan: Plan) -> Iterator[str]:
    if plan.swarmed is None or plan.invite is None:
        return
    route, view = plan.swarmed.route, plan.swarmed.view
    yield ""
    yield f"The swarm {plan.invite.swarm!r} of {plan.invite.model}: {len(view.peers)} peers"
    if isinstance(route, Route):
        peers = f"{len(route.hops)} peer{'' if len(route.hops) == 1 else 's'}"
        yield (
            f"  It runs there: about {1 / route.token_s:.3g} tokens/s ({1e3 * route.token_s:.3g} ms a token) through "
            f"{peers}; the first of them after {route.prefill_s:.2g} s"
        )
    else:
        yield f"  It does not run there now: {route.reason}"
    for one in plan.swarmed.helps:
        gain = one.gain
        yield f"  With this machine too, as {one.quantization}: blocks {one.start}:{one.stop}, since {one.why}"
        yield (
            f"    a token takes {_ms(gain.token_before_s)} now, {_ms(gain.token_after_s)} then; the slowest blocks "
            f"give {gain.bottleneck_before:.3g} tokens/s now, {gain.bottleneck_after:.3g} then"
        )


def _basis(plan: Plan) -> Iterator[str]:
    yield from (f"measured: {line}" for line in measured(plan))
    yield from (f"assumed: {line}" for line in assumptions(plan.shape, plan.held, plan.swarmed, plan.work))


def _ms(seconds: float | None) -> str:
    return "for ever" if seconds is None else f"{1e3 * seconds:.3g} ms"
