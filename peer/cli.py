"""`shoal peer`: reads the volunteer's wishes and runs a peer."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from shoal.dht.invite import Invite
from shoal.peer.config import PeerConfig, PeerError

QUANTIZATIONS = ("none", "int8", "nf4", "fp4")
DTYPES = ("float32", "bfloat16", "float16")
EXAMPLE = "example: shoal peer --model demo --join shoal1... --blocks 0:6 --quant nf4"


def peer(argv: list[str]) -> int:
    """Serve blocks of a model until interrupted."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("shoal").setLevel(logging.WARNING if arguments.quiet else logging.INFO)
    config = _config(arguments)
    _check_device(config.device)
    from shoal.peer.serve import serve

    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(config))
    status: int = uvloop.run(serve(config))
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shoal peer", description=peer.__doc__, epilog=EXAMPLE)
    parser.add_argument("--join", required=True, metavar="INVITE", help="the swarm's invite (shoal1...)")
    parser.add_argument("--model", help="local directory, hub name or demo (default: what the invite names)")
    parser.add_argument("--revision", help="insist on this revision of the model")
    parser.add_argument("--blocks", type=_span, metavar="A:B", help="blocks A to B-1 (default: where they help most)")
    parser.add_argument("--num-blocks", type=int, metavar="N", help="how many blocks to serve if --blocks is not given")
    parser.add_argument("--quant", choices=QUANTIZATIONS, default="none", help="quantization of the weights")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--dtype", choices=DTYPES, help="of activations and KV (default: the checkpoint's own)")
    parser.add_argument("--kv-tokens", type=int, default=8192, metavar="N", help="tokens of KV to hold (default 8192)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (0.0.0.0 for all)")
    parser.add_argument("--port", type=int, default=0, help="TCP port to listen on (default: any free one)")
    parser.add_argument("--announce", nargs="+", default=[], metavar="MADDR", help="addresses to tell others instead")
    parser.add_argument("--identity", type=Path, metavar="FILE", help="key file; made if absent (default: a new one)")
    parser.add_argument("--public-name", default="", metavar="NAME", help="a name that others see beside your peer")
    parser.add_argument(
        "--drain", type=float, default=30.0, metavar="SECONDS", help="time for running sessions on exit"
    )
    parser.add_argument("--quiet", action="store_true", help="log warnings only")
    parser.add_argument("--json", action="store_true", help="print start-up as JSON")
    return parser


def _config(arguments: argparse.Namespace) -> PeerConfig:
    invite = Invite.parse(arguments.join)
    if arguments.num_blocks is not None and arguments.num_blocks < 1:
        raise PeerError(f"--num-blocks {arguments.num_blocks} serves nothing: give 1 or more")
    if arguments.kv_tokens < 16:
        raise PeerError(f"--kv-tokens {arguments.kv_tokens} holds no session: give 16 or more")
    return PeerConfig(
        invite=invite, model=arguments.model or invite.model, blocks=arguments.blocks,
        num_blocks=arguments.num_blocks, quantization=arguments.quant, device=arguments.device, dtype=arguments.dtype,
        listen=arguments.host, port=arguments.port, announce=tuple(arguments.announce), identity=arguments.identity,
        revision=arguments.revision, kv_tokens=arguments.kv_tokens, drain_s=arguments.drain, name=arguments.public_name,
        json=arguments.json,
    )  # fmt: skip


def _span(text: str) -> range:
    start, colon, stop = text.partition(":")
    if not colon or not start.isdigit() or not stop.isdigit() or int(start) >= int(stop):
        raise argparse.ArgumentTypeError(f"{text!r} is no span: write A:B with A < B, for blocks A to B-1")
    return range(int(start), int(stop))


def _check_device(device: str) -> None:
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise PeerError(f"{device!r} is no device: use cpu, cuda or cuda:1") from error
    if wanted.type == "cuda" and (not torch.cuda.is_available() or (wanted.index or 0) >= torch.cuda.device_count()):
        raise PeerError(f"this machine has no device {device}: torch sees {torch.cuda.device_count()} CUDA devices")
