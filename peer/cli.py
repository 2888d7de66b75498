"""`shoal peer`: reads the volunteer's wishes and runs a peer."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shoal.blocks.choices import BEST_DEVICE, DEVICES, DTYPES, KV_DTYPES, QUANTIZATIONS
from shoal.dht.arguments import Parser, add_join, echoed, file, port, rate, seconds, size, whole
from shoal.dht.errors import InviteError
from shoal.dht.invite import check_maddr
from shoal.dht.starting import at_once
from shoal.dht.swarms import find_invite
from shoal.peer.config import PeerConfig, PeerError
from shoal.peer.wishes import add_wishes, idle_limits, public_name
from shoal.routing.names import MAX_NAME_CHARS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

logger = logging.getLogger("shoal.peer")

MOST_DIGITS = 9  # of a block's number
STAND_IN = "1" * 46  # where a peer's id would be
EXAMPLE = "shoal peer --join INVITE --blocks 0:6 --quant nf4"
SUMMARY = """\
Serve blocks of a model until Ctrl-C: load them, measure how fast they run here, join the swarm, answer its clients.

Without sizes it measures the memory that is free, takes as many blocks as fit with KV for its users, and says why.

Ctrl-C leaves tidily: no new sessions come, and running ones have --drain seconds to finish."""


def peer(argv: list[str]) -> int:
    """Serve blocks of a model until interrupted."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("shoal").setLevel(logging.WARNING if arguments.quiet else logging.INFO)
    try:
        config = _config(arguments)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    with at_once():
        from shoal.peer.loading import open_and_fit
        from shoal.peer.preview import preview
        from shoal.peer.serve import serve

        config, run = _placed(config), _runner()
    if arguments.dry_run:
        return asyncio.run(preview(config, *open_and_fit(config)))
    return run(serve(config))


def _runner() -> Callable[[Coroutine[Any, Any, int]], int]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    run: Callable[[Coroutine[Any, Any, int]], int] = uvloop.run
    return run


def _parser() -> argparse.ArgumentParser:
    parser = Parser("peer", SUMMARY, EXAMPLE)
    add_join(parser)
    parser.add_argument("--model", metavar="M", help="a directory, a hub name or demo (default: the invite's model)")
    parser.add_argument("--revision", metavar="R", help="the hub's branch, tag or commit, or a directory's fingerprint")
    _add_model_arguments(parser)
    _add_memory_arguments(parser)
    add_wishes(parser)
    parser.add_argument(
        "--host", type=_host, default="", metavar="A",
        help="address to listen on (default: all, or 127.0.0.1 if the swarm is here)",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=port, default=0, metavar="N", help="TCP port to listen on (default: any free one)"
    )
    parser.add_argument(
        "--direct-port", type=_direct_port, default=0, metavar="N",
        help="TCP port for direct streams, or none for libp2p alone (default: the one after --port, or any free one)",
    )  # fmt: skip
    parser.add_argument(
        "--max-bandwidth",
        type=rate,
        default=0.0,
        metavar="RATE",
        help="send and receive hidden states no faster than this, as in 20Mbit (default: as fast as the line)",
    )
    parser.add_argument(
        "--announce", type=_maddr, nargs="+", default=[], metavar="MADDR", help="tell others these addresses instead"
    )
    parser.add_argument("--identity", type=file, metavar="FILE", help="key file; made if absent (default: a new one)")
    parser.add_argument(
        "--public-name", type=public_name, default="", metavar="NAME",
        help=f"a name that others see beside your peer, at most {MAX_NAME_CHARS} characters",
    )  # fmt: skip
    parser.add_argument(
        "--drain",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="time for running sessions at the end (default 30)",
    )
    parser.add_argument(
        "--rebalance-s",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="look about this often whether other blocks need this peer more, and move there (default 600; 0: never)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would serve, why and what the swarm gains; load nothing"
    )
    parser.add_argument("--quiet", action="store_true", help="log warnings only")
    parser.add_argument("--json", action="store_true", help="say that it is online as one JSON object")
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--blocks", type=_span, metavar="A:B", help="blocks A to B-1 (default: where they help most)")
    which.add_argument(
        "--num-blocks", type=whole(1), metavar="N", help="serve at most N blocks (default: as many as fit)"
    )
    parser.add_argument(
        "--quant", choices=QUANTIZATIONS, default="none", help="quantization of the weights (default none)"
    )
    parser.add_argument("--device", default=BEST_DEVICE, metavar="D", help=DEVICES)
    parser.add_argument("--dtype", choices=DTYPES, help="of activations and KV (default: the checkpoint's own)")
    parser.add_argument(
        "--max-batch", type=whole(2), metavar="N", help="sessions in one step of the device at most (default 256)"
    )


def _add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    memory = parser.add_argument_group("memory", "Sizes as in 10GiB or 512MiB. What is not given is chosen to fit.")
    memory.add_argument("--vram", type=size, metavar="SIZE", help="use no more of the device than this")
    memory.add_argument("--kv-tokens", type=whole(16), metavar="N", help="tokens of KV to hold")
    memory.add_argument(
        "--kv-dtype",
        choices=KV_DTYPES,
        default="auto",
        help="int8 holds about twice the tokens (default auto: --dtype)",
    )
    memory.add_argument(
        "--offload", action="store_true", help="stream blocks that do not fit from host memory, which is slow"
    )
    memory.add_argument(
        "--host-memory", type=size, metavar="SIZE", help="for sessions that wait, kept outputs and streamed blocks"
    )


def _config(arguments: argparse.Namespace) -> PeerConfig:
    invite = find_invite(arguments.join)
    return PeerConfig(
        invite=invite, model=arguments.model or invite.model, blocks=arguments.blocks,
        num_blocks=arguments.num_blocks, quantization=arguments.quant, device=arguments.device, dtype=arguments.dtype,
        listen=arguments.host, port=arguments.port, direct_port=arguments.direct_port,
        announce=tuple(arguments.announce), identity=arguments.identity, revision=arguments.revision,
        kv_tokens=arguments.kv_tokens, kv_dtype=arguments.kv_dtype, vram=arguments.vram,
        host_memory=arguments.host_memory, offload=arguments.offload, max_batch=arguments.max_batch,
        max_bandwidth=arguments.max_bandwidth,
        drain_s=arguments.drain, rebalance_s=arguments.rebalance_s, name=arguments.public_name, json=arguments.json,
        idle=idle_limits(arguments), max_power_w=arguments.max_power,
    )  # fmt: skip


def _host(text: str) -> str:
    try:
        return text and str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{echoed(text)} is not an IP address: listen on one of this machine's, or on 0.0.0.0"
        ) from None


def _maddr(text: str) -> str:
    """An address to be dialled at, without the peer's id."""
    try:
        check_maddr(f"{text}/p2p/{STAND_IN}")
    except InviteError:
        raise argparse.ArgumentTypeError(
            f"{echoed(text)} is no address that others can dial: write it as /ip4/192.0.2.7/tcp/4001"
        ) from None
    return text


def _direct_port(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return port(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or none for no direct streams") from None


def _span(text: str) -> range:
    start, colon, stop = text.partition(":")
    numbers = all(part.isdecimal() and len(part) <= MOST_DIGITS for part in (start, stop))
    if not colon or not numbers or int(start) >= int(stop):
        raise argparse.ArgumentTypeError(f"{echoed(text)} is no span: write A:B with A < B, for blocks A to B-1")
    return range(int(start), int(stop))


def _placed(config: PeerConfig) -> PeerConfig:
    """With a device that is there."""
    from shoal.blocks.devices import check_device, choose_device

    if config.device == BEST_DEVICE:
        found = choose_device()
        logger.log(logging.WARNING if found.instead else logging.INFO, "computing on %s: %s", found.name, found.why)
        config = replace(config, device=found.name)
    device = check_device(config.device)
    if config.offload and device.type != "cuda":
        raise PeerError(f"--offload is for GPUs: on {device.type} blocks are in host memory anyway, so leave it out")
    return config
