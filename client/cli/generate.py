"""`shoal generate`: arguments in, text on stdout, progress and figures on stderr; knows no protocol."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from shoal.blocks.choices import DTYPES
from shoal.blocks.formats import FORMS
from shoal.client.cli.arguments import add_sampling, add_speculation, token_ids
from shoal.client.cli.surroundings import utf8
from shoal.client.cli.terminal import gap_teller, quiet_libraries, route_json, route_line, run_async, tell, write
from shoal.client.sampling_options import Sampling
from shoal.dht.arguments import Parser, add_join, seconds, whole
from shoal.dht.starting import at_once
from shoal.dht.swarms import find_invite

if TYPE_CHECKING:
    import argparse

    from shoal.client.cli.completion import Listener, Outcome, Request

EXAMPLE = 'shoal generate "class Config(dict):" --join INVITE --max-new-tokens 64'
SUMMARY = """\
Continue a prompt through a swarm. The text comes on stdout as it is made; the route and the speed on stderr.

The speed is the decode rate: tokens after the first one per second. The time to the first token (ttft) begins when
the swarm has been joined and ends with the first token, so it holds the prompt's pass."""


def generate(argv: list[str]) -> int:
    """Continue a prompt through a swarm."""
    arguments = _parse(argv)
    invite = find_invite(arguments.join)
    prompt = utf8(sys.stdin.read()) if arguments.prompt == "-" else arguments.prompt
    quiet_libraries()
    with at_once():
        from shoal.blocks.hub_progress import downloads
        from shoal.client.cli.completion import complete
        from shoal.client.local import load_model

    request = _request(arguments, prompt)
    with downloads() as progress:
        model = load_model(arguments.model or invite.model, arguments.dtype, arguments.revision, progress)
    outcome = run_async(complete(model, invite, request, _listener(quiet=arguments.json)))
    if arguments.json:
        write(json.dumps(as_json(outcome)) + "\n")
    else:
        write("\n")
        tell(_figures(outcome))
    return 0


def as_json(outcome: Outcome) -> dict[str, object]:
    """What `--json` prints."""
    completion = outcome.completion
    return {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "prompt_token_ids": outcome.prompt_ids,
        "cached_tokens": completion.cached_tokens,
        "route": route_json(completion.route),
        "repairs": completion.repairs,
        "finish": completion.finish,
        "ttft_s": completion.ttft_s,
        "tokens_per_s": completion.tokens_per_s,
    }


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("generate", SUMMARY, EXAMPLE)
    parser.add_argument(
        "prompt", type=utf8, nargs="?", metavar="PROMPT", help="the text to continue; - reads it from stdin"
    )
    parser.add_argument("--token-ids", type=token_ids, metavar="1,2,3", help="token ids in place of a prompt")
    add_join(parser)
    parser.add_argument("--model", metavar="M", help="a directory, a hub name or demo (default: the invite's model)")
    parser.add_argument("--revision", metavar="R", help="the hub's branch, tag or commit, or a directory's fingerprint")
    parser.add_argument("--max-new-tokens", type=whole(1), default=128, metavar="N", help="at most N (default 128)")
    parser.add_argument(
        "--stop", type=utf8, action="append", default=[], metavar="STR", help="end before STR; may be repeated"
    )
    parser.add_argument("--wait", type=seconds, default=0.0, metavar="SECONDS", help="wait so long for missing blocks")
    parser.add_argument("--dtype", choices=DTYPES, help="of the ends and on the wire (default: the model's own)")
    parser.add_argument(
        "--activations", choices=("auto", *FORMS), default="auto",
        help="how hidden states travel (default auto: as they are, or 16-bit ones as int8 over slow lines)",
    )  # fmt: skip
    parser.add_argument("--background", action="store_true", help="wait behind all that others ask of the peers")
    add_speculation(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, at the end")
    add_sampling(parser)
    arguments = parser.parse_args(argv)
    if (arguments.prompt is None) == (arguments.token_ids is None):
        parser.error("give a prompt, or --token-ids, and not both")
    return arguments


def _request(arguments: argparse.Namespace, prompt: str | None) -> Request:
    from shoal.client.cli.completion import Request
    from shoal.client.generation import GenerationOptions

    sampling = Sampling(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
    )
    options = GenerationOptions(
        arguments.max_new_tokens, sampling, tuple(arguments.stop), speculate=arguments.speculate
    )
    return Request(prompt, arguments.token_ids, options, arguments.wait, arguments.background, arguments.activations)


def _listener(*, quiet: bool) -> Listener:
    from shoal.client.cli.completion import Listener

    return Listener((lambda _: None) if quiet else write, tell, gap_teller())


def _figures(outcome: Outcome) -> str:
    completion = outcome.completion
    count = len(completion.pieces)
    return (
        f"route: {route_line(completion.route)}\n"
        f"{count} tokens, {completion.tokens_per_s:.1f} tokens/s, first after {completion.ttft_s:.2f} s"
    )
